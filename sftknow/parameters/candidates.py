"""Candidates of a repair: a method at a strength, made of a checkpoint pair part by part.

The same bits go into a loaded model (`move_`), a checkpoint (`write_candidate`) and a patch (`write_candidate_patch`).
Nothing is kept of the weights, so that memory is bounded whatever the model's size.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sftknow.artifacts.levels import parse_level
from sftknow.checkpoints.layout import OutputShard
from sftknow.checkpoints.reader import narrow, nonfinite, values_differing, widen
from sftknow.errors import CheckpointError
from sftknow.parameters.between import all_weights, stream_
from sftknow.parameters.change import analyse
from sftknow.parameters.leveling import LevelSelector
from sftknow.parameters.methods import METHODS, Method, Part
from sftknow.parameters.options import Resources
from sftknow.parameters.outputs import Output
from sftknow.parameters.pairs import CheckpointPair, TensorPair, pair_checkpoints, pair_of
from sftknow.parameters.passes import Bits, Chunk
from sftknow.parameters.patch import write_made_patch
from sftknow.parameters.restore import Finishing, WriteJob, find_cut
from sftknow.records import RestorePlan

UNCHANGED = "as fine-tuned"


@dataclass(frozen=True, order=True)
class Candidate:
    """A method at a strength."""

    method: str
    """Of `METHODS`."""
    strength: str

    @property
    def name(self) -> str:
        return f"{self.method} {self.strength}"

    @property
    def how(self) -> Method:
        """Raises CheckpointError where there is no such method."""
        return METHODS.get(self.method)

    @property
    def words(self) -> str:
        """What it does, for people."""
        return self.how.title.format(strength=self.strength)


def grid(methods: Sequence[str] = (), strengths: Sequence[str] = ()) -> list[Candidate]:
    """The candidates that are tried.

    Args:
        methods: names in `METHODS`; none for all usual ones. Controls are always among them.
        strengths: shares such as ``20%`` in place of each method's own, for all methods that take shares.

    Raises:
        CheckpointError: there is no such method, or nothing but controls; a strength that is no share, or 0.
    """
    for text in strengths:
        if not parse_level(text):
            raise CheckpointError(f"a strength of {text} changes nothing; give more")
    for name in methods:
        METHODS.get(name)
    every = {name: METHODS.get(name) for name in METHODS}
    wanted = [n for n, how in every.items() if n in methods or how.control or (not methods and how.usual)]
    if all(METHODS.get(name).control for name in wanted):
        raise CheckpointError(f"{', '.join(wanted)} is what methods are compared with; give another one beside it")
    found = []
    for name in wanted:
        method = METHODS.get(name)
        found += [Candidate(name, s) for s in (strengths if strengths and method.shares else method.strengths)]
    return found


class Candidates:
    """What is needed to make any candidate of one checkpoint pair. Plans are worked out once an order, when needed.

    Args:
        base: folder of the pretrained checkpoint.
        tuned: folder of the fine-tuned one, or an adapter's.
        wanted: all candidates.
        seed: of random orders.
        common_rows, ignore: as for `pair_checkpoints`.

    Attributes:
        pair: every tensor of the two.

    Raises:
        CheckpointError: the checkpoints do not fit.
    """

    def __init__(
        self,
        base: Path,
        tuned: Path,
        wanted: Sequence[Candidate],
        *,
        seed: int = 0,
        common_rows: bool = False,
        ignore: str | None = None,
        resources: Resources | None = None,
    ) -> None:
        self.base, self.tuned, self.wanted, self.seed = base, tuned, tuple(wanted), seed
        self.resources = resources or Resources()
        self._more: dict[str, Any] = {"common_rows": common_rows, "ignore": ignore}
        self._everything = all_weights(base, tuned)
        self._plans: dict[tuple[str, str], RestorePlan] = {}
        self.pair = pair_checkpoints(base, tuned, self._everything, None, **self._more)

    def others(self, wanted: Sequence[Candidate]) -> Candidates:
        """Other candidates of the same pair."""
        return Candidates(self.base, self.tuned, wanted, seed=self.seed, resources=self.resources, **self._more)

    def maker(self, candidate: Candidate) -> Maker:
        """What makes a candidate.

        Raises:
            CheckpointError: no value differs, a value is NaN or infinite, or a strength cannot be read.
        """
        method = candidate.how
        region = self._everything if method.region == "all" else method.region
        if method.order is None:
            return Maker(candidate, pair_checkpoints(self.base, self.tuned, region, None, **self._more), self.pair)
        if method.each:
            pair = pair_checkpoints(self.base, self.tuned, region, None, **self._more)
            alone = {t.name: self._plan(method, region, candidate.strength, t.name) for t in pair.tensors}
            return Maker(candidate, pair, self.pair, each=alone)
        plan = self._plan(method, region, candidate.strength)
        return Maker(candidate, pair_of(self.base, self.tuned, plan), self.pair, plan)

    def _plan(self, method: Method, region: str, strength: str, tensor: str | None = None) -> RestorePlan:
        """The plan of all strengths of a method, in its region or in one tensor of that."""
        order = str(method.order)
        wide, region = region, region if tensor is None else f"re:^{re.escape(tensor)}$"
        if (order, region) not in self._plans:
            levels = [strength]
            for other in self.wanted:
                how = other.how
                there = self._everything if how.region == "all" else how.region
                if (how.order, there, how.each) == (order, wide, method.each) and other.strength not in levels:
                    levels.append(other.strength)
            with warnings.catch_warnings():
                # That nothing changed is an error, but in one tensor of many.
                warnings.simplefilter("error" if tensor is None else "ignore", UserWarning)
                try:
                    found = analyse(
                        self.base,
                        self.tuned,
                        levels,
                        region=region,
                        strategy=order,
                        seed=self.seed,
                        resources=self.resources,
                        **self._more,
                    )
                except UserWarning as nothing:
                    raise CheckpointError(f"there is nothing to repair: {nothing}") from None
            self._plans[order, region] = found.plan
        return self._plans[order, region]


class Maker:
    """Makes the bits of one candidate, block by block, from any thread.

    Args:
        candidate: what is made.
        region: the tensors that the method changes; others stay as fine-tuned.
        pair: all tensors of the two checkpoints.
        plan: of the region in the method's order, where it has one.
        each: plans of the region's tensors by their names, of a method that cuts each by itself.
    """

    def __init__(
        self,
        candidate: Candidate,
        region: CheckpointPair,
        pair: CheckpointPair,
        plan: RestorePlan | None = None,
        *,
        each: Mapping[str, RestorePlan] | None = None,
    ) -> None:
        self.candidate, self.plan = candidate, plan
        self._method = candidate.how
        self._places = {tensor.name: tensor for tensor in region.tensors}
        self._selector = None if plan is None else self._select(plan)
        self._each = {name: self._select(alone) for name, alone in (each or {}).items()}
        self.region = region
        layers = [tensor.place.layer for tensor in pair.tensors if tensor.place.layer is not None]
        self._layers = max(layers, default=-1) + 1

    def _select(self, plan: RestorePlan) -> LevelSelector:
        return LevelSelector(plan, [find_cut(plan, self.candidate.strength)])

    def bits(self, tensor: TensorPair, first: int, base: NDArray[Any], tuned: NDArray[Any]) -> NDArray[Any]:
        """The new bits of a block, in the fine-tuned dtype, shape (count,); may be ``tuned`` itself.

        Args:
            tensor: of the pair of all tensors.
            first: the block's first element within it.
            base, tuned: stored bits, shape (count,).

        Raises:
            CheckpointError: a value is NaN or infinite, or would be in the fine-tuned dtype.
        """
        if tensor.name not in self._places:
            return tuned
        made = self.values(tensor, first, base, tuned, widen(tuned, tensor.tuned.dtype))
        bits = narrow(np.ascontiguousarray(made), tensor.tuned.dtype)
        if any(nonfinite(bits, tensor.tuned.dtype)):
            raise CheckpointError(
                f"{tensor.name}: {self.candidate.name} makes a value too large for {tensor.tuned.dtype}, the dtype of "
                f"{tensor.tuned.file.parent}; leave that method or strength out"
            )
        return bits

    def values(
        self,
        tensor: TensorPair,
        first: int,
        base: NDArray[Any],
        tuned: NDArray[Any],
        exact: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """The same before rounding, of fine-tuned values that may be known more exactly than they are stored.

        Args:
            exact: the fine-tuned values, float32, shape (count,).

        Raises:
            CheckpointError: a value is NaN or infinite.
        """
        if sum(nonfinite(base, tensor.base.dtype)) + sum(nonfinite(tuned, tensor.tuned.dtype)):
            raise CheckpointError(f"{tensor.name} has NaN or infinite values; use checkpoints without them")
        if tensor.name not in self._places:
            return exact
        part = Part(
            base=widen(base, tensor.base.dtype),
            tuned=exact,
            strength=self.candidate.strength,
            selected=self._selected(tensor, first, base, tuned),
            name=tensor.name,
            layer=tensor.place.layer,
            layers=self._layers,
        )
        made = self._method.values(part)
        if made.dtype != np.float32 or made.shape != exact.shape:
            raise CheckpointError(
                f"the method {self.candidate.method} returned {made.dtype} of shape {made.shape}; it must return "
                f"float32 of shape {exact.shape}"
            )
        return made

    def _selected(
        self, tensor: TensorPair, first: int, base: NDArray[Any], tuned: NDArray[Any]
    ) -> NDArray[np.bool_] | None:
        selector = self._each.get(tensor.name, self._selector)
        if selector is None:
            return None
        ranks: NDArray[np.uint8] = np.empty(base.size, dtype=np.uint8)
        place = self._places[tensor.name]
        start = first if self._each else place.first + first
        selector.ranks(base, place.base.dtype, tuned, place.tuned.dtype, start, ranks)
        return np.equal(ranks, 0)

    @cached_property
    def described(self) -> dict[str, Any]:
        """What ``sftknow.json`` says of the candidate under ``restoration``."""
        plan = self.plan
        return {
            "level": self.candidate.strength,
            "strategy": self.candidate.method,
            "method": self.candidate.words,
            "source": self._method.source,
            "region": self._method.region,
            "elements": self.region.elements,
            **({"seed": plan.seed, "cut": find_cut(plan, self.candidate.strength)} if plan is not None else {}),
        }


def move_(model: Any, pair: CheckpointPair, maker: Maker | None) -> None:
    """Give a loaded model a candidate's weights, or with None those of the fine-tuned checkpoint.

    They are then, bit by bit, what loading the checkpoint of `write_candidate` gives, in the model's dtype.

    Args:
        model: a transformers model made from the pair's fine-tuned side, at whichever candidate; changed in place.
        pair: `Candidates.pair`.
        maker: of the candidate.

    Raises:
        CheckpointError: the model has no parameter like one of the pair's; what `Maker.bits` raises.
    """

    def values(tensor: TensorPair, chunk: Chunk, bits: Bits) -> NDArray[Any]:
        return bits[1] if maker is None else maker.bits(tensor, chunk.first, *bits)

    stream_(model, pair, values)


def write_candidate(
    candidates: Candidates,
    maker: Maker,
    out: Path,
    *,
    manifest: Mapping[str, Any] | None = None,
    notes: Mapping[str, Any] | None = None,
    shard_bytes: int | None = None,
    finishing: Finishing | None = None,
) -> int:
    """Write a candidate as a checkpoint that is otherwise the fine-tuned one; see `restore_levels` for what is kept.

    Returns:
        How many values differ from the fine-tuned model's.

    Raises:
        CheckpointError: what `restore_levels` raises of folders and disks, and what `Maker.bits` raises.
    """
    pair = candidates.pair
    job = WriteJob(pair, maker.candidate.name, candidates.resources, links=False, shard_bytes=shard_bytes)
    output = Output(folder=out, manifest=manifest or {}, restoration=dict(maker.described))
    painter = _Painter(maker)
    folders = job.prepare([output], painter, inputs=(candidates.base, candidates.tuned))
    counts = job.write(folders, painter, (1,))
    with folders:
        output.restoration |= {"restored": int(counts[0]), **(notes or {})}
        folders.finish(finishing)
    return int(counts[0])


class _Painter:
    """Makes blocks of one candidate. Counts, shape (1,): values that differ from the fine-tuned ones."""

    outputs = 1

    def __init__(self, maker: Maker) -> None:
        self._maker = maker

    def kinds(self, shard: OutputShard) -> Sequence[Hashable]:
        return [0]

    def paint(
        self,
        tensor: TensorPair,
        first: int,
        base: NDArray[Any],
        tuned: NDArray[Any],
        rows: NDArray[Any],
        start: int,
        counts: NDArray[np.int64],
    ) -> None:
        made = self._maker.bits(tensor, first, base, tuned)
        rows[0, start : start + tuned.size] = made
        counts[0] += values_differing(made, tuned, tensor.tuned.dtype)


def write_candidate_patch(
    candidates: Candidates,
    maker: Maker,
    file: Path,
    *,
    manifest: Mapping[str, Any] | None = None,
    notes: Mapping[str, Any] | None = None,
    say: Any = None,
) -> int:
    """Write a candidate as a sparse file of its difference from the fine-tuned model; see `write_patch`.

    Returns:
        How many values it changes.

    Raises:
        CheckpointError: what `write_patch` raises.
    """
    pair = candidates.pair
    region = replace(pair, tensors=tuple(t for t in pair.tensors if t.name in {r.name for r in maker.region.tensors}))
    firsts = np.cumsum([0, *(tensor.elements for tensor in region.tensors)]).tolist()
    region = replace(
        region, tensors=tuple(replace(t, first=first) for t, first in zip(region.tensors, firsts, strict=False))
    )

    def make(tensor: TensorPair, first: int, base: NDArray[Any], tuned: NDArray[Any]) -> tuple[NDArray[Any], int]:
        made = maker.bits(tensor, first, base, tuned)
        return made, values_differing(made, tuned, tensor.tuned.dtype)

    return write_made_patch(
        region,
        make,
        file,
        what=maker.candidate.name,
        restoration=lambda selected, changed: {**maker.described, "restored": changed, **(notes or {})},
        manifest=manifest,
        resources=candidates.resources,
        say=say,
    )
