"""What restoring is compared with: a loaded model set back at random, or moved as a whole towards its base.

A model is moved by streaming both checkpoints over its weights. Nothing of them is kept, so memory is bounded whatever
the model's size and however much is set back; `in_memory.ModelLevels`, faster between levels, keeps what differs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sftknow.checkpoints.adapters import is_adapter
from sftknow.checkpoints.reader import narrow, read_index, widen
from sftknow.checkpoints.regions import OUTPUT_HEADS
from sftknow.parameters.in_memory import loaded_parameters, stored_values
from sftknow.parameters.leveling import LevelSelector
from sftknow.parameters.methods import between
from sftknow.parameters.options import Resources
from sftknow.parameters.pairs import CheckpointPair, TensorPair, pair_checkpoints, pair_of
from sftknow.parameters.passes import Bits, Chunk, for_each_chunk
from sftknow.parameters.restore import find_cut, in_tuned_dtype
from sftknow.records import RestorePlan


@dataclass(frozen=True, kw_only=True)
class Distances:
    """How far a fine-tuned model is from its base: squared L2 distances of the stored values, in float64."""

    whole: float
    """Of all weights."""
    region: float
    """Of the plan's region."""
    restored: float
    """What a level of the plan takes away from both."""

    @property
    def level(self) -> str:
        """The share of the region that set back at random leaves the same distance, as is to be expected."""
        return f"{100 * self.restored / self.region if self.region else 0:.4f}%"

    @property
    def weight(self) -> float:
        """The weight of the base in an interpolation of all weights that leaves the same distance."""
        return 1 - math.sqrt(max(0.0, 1 - self.restored / self.whole)) if self.whole else 0.0


def distances(base: Path, tuned: Path, plan: RestorePlan, level: str, resources: Resources | None = None) -> Distances:
    """Measure how far a level of a plan leaves a fine-tuned model from its base.

    Args:
        base: folder of the pretrained checkpoint.
        tuned: folder of the fine-tuned one.
        plan: from `analyse` of the two.
        level: one of the plan's.

    Raises:
        CheckpointError: the checkpoints do not fit or cannot be read; the plan has no such level.
    """
    resources = resources or Resources()
    selector = LevelSelector(plan, [find_cut(plan, level)])
    region = pair_of(base, tuned, plan)
    of_region, restored = _energy(region, selector, resources)
    everything = pair_checkpoints(base, tuned, all_weights(base, tuned), None, common_rows=plan.common_rows)
    whole, _ = _energy(everything, None, resources)
    return Distances(whole=whole, region=of_region, restored=restored)


def _energy(pair: CheckpointPair, selector: LevelSelector | None, resources: Resources) -> tuple[float, float]:
    """Squared distance over a region, and of what a level selects of it; the same whatever the order of threads."""
    parts: dict[tuple[int, int], tuple[float, float]] = {}

    def add(chunk: Chunk, bits: Bits) -> None:
        tensor = pair.tensors[chunk.position]
        # The base as restoring sets it back: in the dtype that the fine-tuned checkpoint is stored in.
        there = in_tuned_dtype(bits[0], tensor, np.ones(chunk.count, dtype=np.uint8), 1)
        base, tuned = (widen(side, tensor.tuned.dtype).astype(np.float64) for side in (there, bits[1]))
        squares = np.square(tuned - base)
        chosen = 0.0
        if selector is not None:
            chosen = float(squares[_selected(selector, tensor, chunk, bits)].sum())
        parts[chunk.position, chunk.piece] = float(squares.sum()), chosen

    for_each_chunk(pair, ["base", "tuned"], add, "measuring distances", resources)
    return math.fsum(p[0] for p in parts.values()), math.fsum(p[1] for p in parts.values())


def set_back_(model: Any, base: Path, tuned: Path, plan: RestorePlan, level: str) -> None:
    """Give a loaded model the weights of a level of a plan; those outside the plan's region are left as they are.

    Args:
        model: a transformers model made from ``tuned``; changed in place.
        base, tuned, plan, level: as for `distances`.

    Raises:
        CheckpointError: as `distances`; the model has no parameter like one of the region.
    """
    selector = LevelSelector(plan, [find_cut(plan, level)])
    pair = pair_of(base, tuned, plan)

    def values(tensor: TensorPair, chunk: Chunk, bits: Bits) -> NDArray[Any]:
        ranks = np.where(_selected(selector, tensor, chunk, bits), 0, 1).astype(np.uint8)
        return np.where(ranks == 0, in_tuned_dtype(bits[0], tensor, ranks, 1), bits[1])

    stream_(model, pair, values)


def blend_(model: Any, base: Path, tuned: Path, weight: float) -> None:
    """Give a loaded model weights between its own and the base's, all of them: (1 − weight) · tuned + weight · base.

    Computed in float32 and rounded to the dtype that the fine-tuned checkpoint is stored in; bit by bit the fine-tuned
    model at 0.

    Args:
        model: as for `set_back_`.
        base, tuned: as for `distances`.
        weight: of the base, 0 to 1.

    Raises:
        CheckpointError: as `set_back_`.
    """

    def values(tensor: TensorPair, chunk: Chunk, bits: Bits) -> NDArray[Any]:
        one, two = widen(bits[1], tensor.tuned.dtype), widen(bits[0], tensor.base.dtype)
        return narrow(between(one, two, weight), tensor.tuned.dtype)

    stream_(model, pair_checkpoints(base, tuned, all_weights(base, tuned), None), values)


def all_weights(base: Path, tuned: Path) -> str:
    """The region of every tensor of the two; an output head that is tied and stored a second time counts once."""
    heads = "|".join(re.escape(head) for head in OUTPUT_HEADS)
    return f"re:^(?!(?:{heads})$)" if read_index(base if is_adapter(tuned) else tuned).tied else "all"


def _selected(selector: LevelSelector, tensor: TensorPair, chunk: Chunk, bits: Bits) -> NDArray[np.bool_]:
    ranks: NDArray[np.uint8] = np.empty(chunk.count, dtype=np.uint8)
    selector.ranks(bits[0], tensor.base.dtype, bits[1], tensor.tuned.dtype, tensor.first + chunk.first, ranks)
    return np.equal(ranks, 0)


def stream_(model: Any, pair: CheckpointPair, values: Callable[[TensorPair, Chunk, Bits], NDArray[Any]]) -> None:
    """Give a loaded model new weights, chunk by chunk, in bounded memory.

    Args:
        model: a transformers model made from the pair's fine-tuned side; changed in place.
        pair: the tensors that get new values.
        values: from a chunk and the stored bits of both sides, to bits of the fine-tuned side's dtype, shape (count,).

    Raises:
        CheckpointError: the model has no parameter like one of the pair's; what ``values`` raises.
    """
    parameters = loaded_parameters(model, pair)

    def place(chunk: Chunk, bits: Bits) -> None:
        tensor = pair.tensors[chunk.position]
        made = stored_values(np.ascontiguousarray(values(tensor, chunk, bits)), tensor.tuned.dtype)
        part = parameters[tensor.name][chunk.first : chunk.first + chunk.count]
        part.copy_(made.to(part.device, part.dtype))

    for_each_chunk(pair, ["base", "tuned"], place, "moving the model", Resources())
