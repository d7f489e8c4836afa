"""Restores a model that is loaded, level by level, touching only what differs between two levels.

The weights are then, bit by bit, what ``from_pretrained`` loads from the checkpoint that `restore` writes for the
level, in the dtype that the model was loaded in: rounding one value does not depend on its neighbours.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from sftknow.artifacts.levels import parse_level
from sftknow.checkpoints.reader import listed
from sftknow.errors import CheckpointError
from sftknow.models.loader_names import Landing, landings_in
from sftknow.parameters.hashing import RegionHash, verify_hash
from sftknow.parameters.leveling import LevelSelector
from sftknow.parameters.options import Resources
from sftknow.parameters.pairs import CheckpointPair, TensorPair, pair_of
from sftknow.parameters.passes import Bits, Chunk, for_each_chunk
from sftknow.parameters.restore import find_cut, in_tuned_dtype
from sftknow.records import RestorePlan

_TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def restore_(model: Any, base: str | Path, plan: RestorePlan, level: str, *, tuned: str | Path | None = None) -> int:
    """Bring a loaded model to a level of a plan, from whichever level it is at. For several levels use `ModelLevels`.

    Args:
        model: a fine-tuned transformers model; its weights are changed in place.
        base: folder of the pretrained checkpoint that the plan was made from.
        plan: from `analyse`.
        level: one of the plan's levels, or ``0%`` for the fine-tuned weights.
        tuned: folder of the fine-tuned checkpoint; None takes the one that the model says it was loaded from.

    Returns:
        How many values were touched.

    Raises:
        CheckpointError: as `ModelLevels`.
    """
    base = Path(base)
    tuned = None if tuned is None else Path(tuned)
    if tuned is None:
        named = Path(str(getattr(model, "name_or_path", "") or ""))
        if not (named / "config.json").is_file():
            raise CheckpointError("the model does not say which folder it was loaded from; give tuned=FOLDER")
        tuned = named
    return ModelLevels(model, base, tuned, plan).to(level)


class ModelLevels:
    """A loaded model that can be moved between the levels of a plan.

    Everything is worked out once, in one pass over both checkpoints. Memory: 4 bytes for the place and twice the stored
    width for the values of every element that differs at the largest level (8 bytes in bfloat16).

    Args:
        model: its weights are those of ``tuned``, or of any level of the plan, in any floating-point dtype.
        base: folder of the pretrained checkpoint that the plan was made from.
        tuned: folder of the fine-tuned one.
        plan: from `analyse`.
        resources: threads that prepare the levels.

    Attributes:
        level: where the model is now, as the plan writes it; ``0%`` for the fine-tuned weights.

    Raises:
        CheckpointError: checkpoints that are not those of the plan; a model that lacks a parameter of the region (as
            where transformers packs some in another order), or whose weights are those of none of the levels.
    """

    def __init__(
        self, model: Any, base: str | Path, tuned: str | Path, plan: RestorePlan, *, resources: Resources | None = None
    ) -> None:
        base = Path(base)
        tuned = Path(tuned)
        pair = pair_of(base, tuned, plan)
        self._plan = plan
        self._cuts = LevelSelector(plan).cuts
        parameters = loaded_parameters(model, pair)
        self._tensors = _gather(pair, plan, parameters, len(self._cuts), resources or Resources())
        self._reached = self._where(f"{tuned}")

    @property
    def level(self) -> str:
        return self._cuts[self._reached - 1].level if self._reached else "0%"

    def to(self, level: str) -> int:
        """Move the model to a level; return how many values were touched.

        Raises:
            CheckpointError: the plan has no such level.
        """
        target = 0 if parse_level(level) == 0 else self._cuts.index(find_cut(self._plan, level)) + 1
        touched = sum(tensor.move(self._reached, target) for tensor in self._tensors)
        self._reached = target
        return touched

    def _where(self, tuned: str) -> int:
        """How many of the cuts, ascending, the model's weights have been set back by."""
        at_base = sum((tensor.at_base for tensor in self._tensors), np.zeros(len(self._cuts), dtype=np.int64))
        at_tuned = sum((tensor.at_tuned for tensor in self._tensors), np.zeros(len(self._cuts), dtype=np.int64))
        reached = len(self._cuts)
        while reached and not at_base[reached - 1]:
            reached -= 1
        if at_tuned[:reached].any():
            raise CheckpointError(
                f"the loaded model's weights are neither those of {tuned} nor of a level of the plan; load that folder"
            )
        return reached


@dataclass
class _LoadedTensor:
    """One parameter and those of its elements that some level changes, in the order of their ranks."""

    parameter: torch.Tensor
    """Flat, a view of the model's."""
    index: torch.Tensor
    base: torch.Tensor
    tuned: torch.Tensor
    ends: NDArray[np.int64]
    """By number of cuts, from none: how many elements they change."""
    at_base: NDArray[np.int64]
    """By rank: elements that now are as in the base, and not as in the fine-tuned checkpoint."""
    at_tuned: NDArray[np.int64]

    def move(self, before: int, after: int) -> int:
        start, end = sorted((int(self.ends[before]), int(self.ends[after])))
        if start == end:
            return 0
        values = (self.base if after > before else self.tuned)[start:end]
        where = self.parameter.device
        self.parameter[self.index[start:end].to(where).long()] = values.to(where, self.parameter.dtype)
        return end - start


def unplaced(model: Any, base: Path, tuned: Path, plan: RestorePlan) -> list[str]:
    """Tensors of a plan's region that `ModelLevels` cannot find in a loaded model; none where it can be moved."""
    return _places(model, pair_of(base, tuned, plan))[1]


def loaded_parameters(model: Any, pair: CheckpointPair) -> dict[str, torch.Tensor]:
    """By the name of each tensor in the checkpoint: its elements in the model, flat."""
    found, missing = _places(model, pair)
    if missing:
        raise CheckpointError(
            f"the loaded model has no parameter like {listed(missing)} (transformers may have packed it in another "
            "order while loading, or quantised the model); restore to a folder and load that"
        )
    return found


def _places(model: Any, pair: CheckpointPair) -> tuple[dict[str, torch.Tensor], list[str]]:
    named: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    shapes = {name: entry.shape for name, entry in pair.tuned.tensors.items()}
    direct = {name: Landing(parameter=name, first=0, whole=True) for name in shapes if name in named}
    by_loader = {} if len(direct) == len(shapes) else landings_in(model, shapes)
    found, missing = {}, []
    for tensor in pair.tensors:
        landing = direct.get(tensor.name) or by_loader.get(tensor.name)
        parameter = named.get(landing.parameter) if landing else None
        full = pair.tuned.tensors[tensor.name]
        if parameter is None or landing is None or (landing.whole and tuple(parameter.shape) != full.shape):
            missing.append(tensor.name)
            continue
        if not parameter.is_contiguous():
            parameter.data = parameter.data.contiguous()
        found[tensor.name] = parameter.detach().view(-1)[landing.first : landing.first + full.elements]
    return found, missing


def _gather(
    pair: CheckpointPair,
    plan: RestorePlan,
    parameters: Mapping[str, torch.Tensor],
    levels: int,
    resources: Resources,
) -> list[_LoadedTensor]:
    selector = LevelSelector(plan)
    hashes = {side: RegionHash(pair.tensors, side) for side in ("base", "tuned")}
    pieces: dict[int, list[tuple[int, NDArray[Any], NDArray[np.uint8], NDArray[Any], NDArray[Any]]]] = {}
    lock = threading.Lock()

    def gather(chunk: Chunk, bits: Bits) -> None:
        base, tuned = bits
        tensor = pair.tensors[chunk.position]
        for side, found in zip(("base", "tuned"), bits, strict=True):
            hashes[side].add(chunk.position, chunk.piece, xxhash.xxh3_128(found.data).digest())
        ranks = np.empty(chunk.count, dtype=np.uint8)
        selector.ranks(base, tensor.base.dtype, tuned, tensor.tuned.dtype, tensor.first + chunk.first, ranks)
        restored = in_tuned_dtype(base, tensor, ranks, levels)
        index = np.flatnonzero((ranks < levels) & (restored != tuned))
        _refuse_other_values(parameters[tensor.name], tensor, chunk, index, tuned)
        width = np.int32 if tensor.elements < 2**31 else np.int64
        kept = (chunk.piece, (index + chunk.first).astype(width), ranks[index], restored[index], tuned[index])
        with lock:
            pieces.setdefault(chunk.position, []).append(kept)

    for_each_chunk(pair, ["base", "tuned"], gather, "preparing the levels", resources)
    for side, found in hashes.items():
        verify_hash(pair, plan, side, found.hexdigest())
    loaded = []
    for position, tensor in enumerate(pair.tensors):
        parts = sorted(pieces.pop(position, []), key=lambda part: part[0])
        if parts:
            columns = [np.concatenate(column) for column in zip(*(part[1:] for part in parts), strict=True)]
            loaded.append(_loaded(tensor, parameters[tensor.name], columns, levels))
    return loaded


def _loaded(tensor: TensorPair, parameter: torch.Tensor, columns: list[NDArray[Any]], levels: int) -> _LoadedTensor:
    index, ranks, restored, tuned = columns
    order = np.argsort(ranks, kind="stable")
    ranks = ranks[order]
    places = torch.from_numpy(index[order])
    base_values, tuned_values = (stored_values(bits[order], tensor.tuned.dtype) for bits in (restored, tuned))
    now = parameter[places.to(parameter.device).long()].cpu()
    as_base = _same_bits(now, base_values.to(now.dtype))
    as_tuned = _same_bits(now, tuned_values.to(now.dtype))
    if not bool((as_base | as_tuned).all()):
        raise _neither(tensor)
    ends = np.searchsorted(ranks, np.arange(levels + 1))
    return _LoadedTensor(
        parameter=parameter,
        index=places,
        base=base_values,
        tuned=tuned_values,
        ends=ends,
        # Where both are the same in the model's dtype the element does not tell.
        at_base=np.bincount(ranks[(as_base & ~as_tuned).numpy()], minlength=levels),
        at_tuned=np.bincount(ranks[(as_tuned & ~as_base).numpy()], minlength=levels),
    )


def _refuse_other_values(
    parameter: torch.Tensor, tensor: TensorPair, chunk: Chunk, index: NDArray[Any], tuned: NDArray[Any]
) -> None:
    """Elements that no level changes must be those of the fine-tuned checkpoint."""
    now = parameter[chunk.first : chunk.first + chunk.count].cpu()
    same = _same_bits(now, stored_values(tuned.copy(), tensor.tuned.dtype).to(now.dtype)).numpy()
    same[index] = True
    if not same.all():
        raise _neither(tensor)


def _neither(tensor: TensorPair) -> CheckpointError:
    return CheckpointError(
        f"{tensor.name} in the loaded model is neither as in {tensor.tuned.file.parent} nor as in a level of the plan; "
        "load that folder"
    )


def stored_values(bits: NDArray[Any], dtype: str) -> torch.Tensor:
    signed = bits.view(np.dtype(f"<i{bits.itemsize}"))
    return torch.from_numpy(signed).view(_TORCH[dtype])


def _same_bits(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    integers = _INTEGERS[first.element_size()]
    return first.contiguous().view(integers) == second.contiguous().view(integers)
