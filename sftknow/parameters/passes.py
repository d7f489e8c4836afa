"""Passes over both checkpoints: what every pass shares, the surveying one, and the only one of ``random``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sftknow.errors import CheckpointError
from sftknow.parameters.pairs import CheckpointPair, RegionHash, TensorPair, blocks
from sftknow.parameters.relative import Changes, Measure, changes
from sftknow.parameters.selection import Selector, random_keys
from sftknow.parameters.statistics import ExactSum, QuarterDecades, RHistogram
from sftknow.progress import progress
from sftknow.records import LevelCut
from sftknow.storage.checkpoints import CheckpointReader, nonfinite

_QUIET = 30_000_000  # elements that take about a second: below, a progress bar is only noise


@dataclass
class Survey:
    """What the first pass gathers."""

    all: RHistogram = field(default_factory=RHistogram)
    """r of changed elements."""
    zero_base: RHistogram = field(default_factory=RHistogram)
    """Of those, the elements whose base value is 0."""
    decades: QuarterDecades = field(default_factory=QuarterDecades)
    changed: list[int] = field(default_factory=list)
    """By tensor."""
    base_hash: RegionHash = field(default_factory=RegionHash)
    tuned_hash: RegionHash = field(default_factory=RegionHash)


@dataclass
class Tally:
    """What one level selects."""

    cut: LevelCut
    selected: list[int] = field(default_factory=list)
    """By tensor."""
    unchanged: int = 0
    sum: ExactSum = field(default_factory=ExactSum)
    """Of r over the selected."""
    zero_base_sum: ExactSum = field(default_factory=ExactSum)
    """Of those, over elements whose base value is 0."""


@dataclass(frozen=True)
class Run:
    """The pair with both readers open and everything that stays the same through a run."""

    pair: CheckpointPair
    base: CheckpointReader
    tuned: CheckpointReader
    measure: Measure
    block: int
    advance: Callable[[int], object]

    def changes(self, tensor: TensorPair) -> Iterator[tuple[int, Changes]]:
        """(first element within the tensor, what changed) block by block."""
        for first, base, tuned in blocks(tensor, self.base, self.tuned, self.block):
            yield first, changes(base, tensor.base.dtype, tuned, tensor.tuned.dtype, self.measure)


@contextmanager
def watched(elements: int, description: str) -> Iterator[Callable[[int], object]]:
    """A progress bar's ``update`` for work of more than about a second, else a function that does nothing."""
    if elements < _QUIET:
        yield lambda _: None
        return
    with progress(elements, description, unit="parameters") as bar:
        yield bar.update


def survey_region(run: Run, survey: Survey, visit: Callable[[TensorPair, int, Changes], None]) -> None:
    """The first pass: hashes, a check for NaN and infinities, histograms. ``visit`` sees every block."""
    for tensor in run.pair.tensors:
        broken = np.zeros((2, 2), dtype=np.int64)
        changed = 0
        for first, base, tuned in blocks(tensor, run.base, run.tuned, run.block):
            survey.base_hash.update(base)
            survey.tuned_hash.update(tuned)
            broken += [nonfinite(base, tensor.base.dtype), nonfinite(tuned, tensor.tuned.dtype)]
            run.advance(base.size)
            if broken.any():
                continue  # count the rest of the tensor's, then stop
            found = changes(base, tensor.base.dtype, tuned, tensor.tuned.dtype, run.measure)
            changed += found.index.size
            survey.all.add(found.bits)
            survey.decades.add(found.bits)
            survey.zero_base.add(found.bits[found.zero_base])
            visit(tensor, first, found)
        if broken.any():
            raise CheckpointError(_broken_message(run.pair, tensor, broken))
        survey.base_hash.close(tensor.base)
        survey.tuned_hash.close(tensor.tuned)
        survey.changed.append(changed)


def _broken_message(pair: CheckpointPair, tensor: TensorPair, broken: NDArray[np.int64]) -> str:
    sides = [
        f"{nan} NaN and {infinite} infinite values in {index.folder}"
        for index, (nan, infinite) in zip((pair.base, pair.tuned), broken.tolist(), strict=True)
        if nan or infinite
    ]
    return (
        f"{tensor.name} has {' and '.join(sides)}: such values have no relative change; use checkpoints without them, "
        "or a region without this tensor"
    )


def random_tallies(run: Run, survey: Survey, tallies: list[Tally], seed: int) -> None:
    """The one pass of ``random``, whose cuts are known beforehand."""
    selectors = [Selector(tally.cut, "random") for tally in tallies]
    histograms = [(RHistogram(), RHistogram()) for _ in tallies]
    for tally in tallies:
        tally.selected = [0] * len(run.pair.tensors)
    place = {tensor.name: i for i, tensor in enumerate(run.pair.tensors)}

    def visit(tensor: TensorPair, first: int, found: Changes) -> None:
        keys = random_keys(seed, tensor.first + first, found.count)
        for tally, selector, (all_r, zero_base) in zip(tallies, selectors, histograms, strict=True):
            mask = selector.mask(keys)
            moved = mask[found.index]
            tally.selected[place[tensor.name]] += int(mask.sum())
            tally.unchanged += int(mask.sum()) - int(moved.sum())
            all_r.add(found.bits[moved])
            zero_base.add(found.bits[moved & found.zero_base])

    survey_region(run, survey, visit)
    for tally, (all_r, zero_base) in zip(tallies, histograms, strict=True):
        tally.sum, tally.zero_base_sum = all_r.sum(), zero_base.sum()
