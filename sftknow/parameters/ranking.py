"""Exact cuts of the order of r, and what they select, without sorting anything.

A sample says in which bins of r (`survey`) the levels will end; the survey counts these to the last bit, which gives
every threshold, how many of its ties are selected and, from what each chunk spooled, what each tensor contributes. A
sample can mislead, but the survey's own counts show it, and name the right bins for a second pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from sftknow.checkpoints.reader import CheckpointReader
from sftknow.parameters.key_order import Workload, cuts_by_keys
from sftknow.parameters.leveling import LevelSelector
from sftknow.parameters.passes import Chunk
from sftknow.parameters.selection import BINS, cut_bin, make_cut, order_key, selected_elements
from sftknow.parameters.statistics import ExactSum, bin_sum, histogram_sum
from sftknow.parameters.survey import Survey, most_bins, sample, survey_region
from sftknow.parameters.survey_kernels import split_entries
from sftknow.records import LevelCut, RestorePlan
from sftknow.workers import share_jobs

_CAUTION = 6.0  # standard errors of a sampled share; neighbouring parameters resemble each other, so it is no law
_MOST_BINS = 256


@dataclass
class LevelCounts:
    """What one level selects."""

    cut: LevelCut
    selected: NDArray[np.int64]
    """By tensor."""
    unchanged: int = 0
    sum: ExactSum = field(default_factory=ExactSum)
    """Of r over the selected."""
    zero_base_sum: ExactSum = field(default_factory=ExactSum)
    """Of those, over elements whose base value is 0."""


def rank_by_change(work: Workload, levels: Sequence[tuple[str, Fraction]]) -> tuple[Survey, list[LevelCounts]]:
    """Pass over the region, once or twice, for ``top`` or ``bottom``, whose order is that of r."""
    elements = work.pair.elements
    wanted = {level: selected_elements(elements, share) for level, share in levels}
    guessed = guess_bins(work, list(wanted.values()))
    survey = survey_region(work, guessed, hashed=True, description="comparing parameters")
    found = _cut_bins(survey, elements, wanted, work.strategy)
    missed = {r_bin for r_bin, _ in found.values()} - set(survey.bins)
    if missed:
        bins = sorted({r_bin for r_bin, _ in found.values()} | {0})
        again = survey_region(work, bins, hashed=False, description="comparing once more")
        again.hashes = survey.hashes
        survey.close()
        survey = again
    with closing(survey):
        return survey, _LevelCounter(work, survey, wanted, found).count_all()


def rank_by_keys(work: Workload, levels: Sequence[tuple[str, Fraction]]) -> tuple[Survey, list[LevelCounts]]:
    """Pass over the region once the keys of any other strategy have given the cuts."""
    measure = work.measure
    plan = RestorePlan(
        strategy=work.strategy, seed=work.seed, region="", epsilon=measure.epsilon, arithmetic=measure.arithmetic,
        compare_in=measure.compare_in, base_sha256="", tuned_sha256="", cuts=tuple(cuts_by_keys(work, levels)),
    )  # fmt: skip
    selector = LevelSelector(plan)
    survey = survey_region(work, [], selector, hashed=True, description="comparing parameters")
    survey.close()
    by_level: dict[str, LevelCounts] = {}
    selected = np.cumsum(survey.ranks, axis=1)
    all_r = zero_base = ExactSum()
    for rank, cut in enumerate(selector.cuts):
        here, zero_here = (histogram_sum(survey.histogram[2 * rank + zero]) for zero in (0, 1))
        all_r, zero_base = all_r + here + zero_here, zero_base + zero_here
        counts, changed = selected[:, rank, 0], selected[:, rank, 1]
        unchanged = int(counts.sum() - changed.sum())
        by_level[cut.level] = LevelCounts(cut, counts.copy(), unchanged, all_r, zero_base)
    return survey, [by_level[level] for level, _ in levels]


def guess_bins(work: Workload, wanted: Sequence[int]) -> list[int]:
    """Bins of r in which the cuts will probably fall, from a sample; that of 0 always among them."""
    elements, bottom = work.pair.elements, work.strategy == "bottom"
    counts, sampled = sample(work) if elements >= work.resources.sampled_from else (np.zeros(0), 0)
    if not sampled:
        return [0]
    from_top = np.cumsum(counts if bottom else counts[::-1])
    guessed = {0}
    for count in wanted:
        if not count:
            continue
        share = count / elements
        margin = _CAUTION * math.sqrt(share * (1 - share) / sampled) + 1 / sampled
        low, high = (share - margin) * sampled, (share + margin) * sampled
        start, stop = np.searchsorted(from_top, [max(low, 1), min(high, sampled)]).tolist()
        guessed |= {place if bottom else BINS - 1 - place for place in range(start, stop + 1)}
    guessed = {r_bin for r_bin in guessed if counts[r_bin]} | {0}
    return sorted(guessed) if len(guessed) <= min(_MOST_BINS, most_bins(work)) else [0]


def _cut_bins(survey: Survey, elements: int, wanted: Mapping[str, int], strategy: str) -> dict[str, tuple[int, int]]:
    """For every level that selects anything: its bin of r, and how many of the bin's elements it needs."""
    coarse = survey.histogram[:, :, 0].sum(axis=0)
    coarse[0] += elements - int(survey.changed.sum(dtype=np.int64))
    by_key = coarse[::-1] if strategy == "bottom" else coarse
    found = {}
    for level, count in wanted.items():
        if count:
            place, needed = cut_bin(by_key, count)
            found[level] = (BINS - 1 - place if strategy == "bottom" else place), needed
    return found


class _LevelCounter:
    """From a survey that counted the bins of all cuts by lower halves: what every level selects.

    Args:
        wanted: by level, how many elements it selects.
        found: by level that selects any, the bin of its cut and how many of the bin's elements it needs.
    """

    def __init__(
        self, work: Workload, survey: Survey, wanted: Mapping[str, int], found: Mapping[str, tuple[int, int]]
    ) -> None:
        self._work, self._survey, self._wanted = work, survey, wanted
        self._bottom = work.strategy == "bottom"
        sizes = np.array([chunk.count for chunk in survey.chunks], dtype=np.int64)
        self._unmoved = sizes - survey.changed  # by chunk
        self._owners = np.array([chunk.position for chunk in survey.chunks], dtype=np.int64)
        self._places = {level: survey.bins.index(r_bin) for level, (r_bin, _) in found.items()}
        self._cuts: dict[str, LevelCut] = {}
        for level, (r_bin, needed) in found.items():
            here = self._lower_halves(self._places[level])
            lower, ties = cut_bin(here[::-1] if self._bottom else here, needed)
            key = order_key(r_bin << 16 | (BINS - 1 - lower if self._bottom else lower), work.strategy)
            self._cuts[level] = make_cut(level, wanted[level], key, ties, work.strategy)
        # In the order of their bins, as `split_entries` wants them.
        self._by_place = sorted(self._cuts, key=lambda level: self._places[level])
        self._split: NDArray[np.int64] = np.zeros((len(sizes), len(self._cuts), 4), dtype=np.int64)

    def _lower_halves(self, place: int) -> NDArray[np.int64]:
        """Elements of a bin by the lower half of r, shape (65,536,)."""
        nonzero, zero = self._survey.fine.reshape(2, -1, BINS)[:, place]
        both: NDArray[np.int64] = nonzero.astype(np.int64) + zero
        if place == 0:  # the bin of 0
            both[0] += self._unmoved.sum()
        return both

    def count_all(self) -> list[LevelCounts]:
        """By level, in the order in which they were asked for."""
        survey, threads = self._survey, self._work.resources.threads
        places = [self._places[level] for level in self._by_place]
        starts = np.searchsorted(places, np.arange(len(survey.bins) + 1))
        thresholds = np.array([self._cuts[level].threshold_bits & 0xFFFF for level in self._by_place], np.uint32)

        def split(number: int) -> int:
            split_entries(survey.entries(number), starts, thresholds, self._split[number])
            return 0

        found: dict[str, LevelCounts] = {}

        def count(level: str) -> int:
            found[level] = self._count(level)
            return 0

        share_jobs(np.flatnonzero(survey.records[:, 1]).tolist(), lambda: split, threads)
        share_jobs(self._wanted, lambda: count, threads)
        return [found[level] for level in self._wanted]

    def _count(self, level: str) -> LevelCounts:
        survey, unmoved = self._survey, self._unmoved
        if not self._wanted[level]:
            cut = replace(make_cut(level, 0, None, 0, self._work.strategy), tie_end=0)
            return LevelCounts(cut, np.zeros(len(survey.intervals), dtype=np.int64))
        cut, place, split = self._cuts[level], self._places[level], self._split[:, self._by_place.index(level)]
        tied = split[:, 1] + (unmoved if cut.threshold_bits == 0 else 0)
        taken = np.clip(cut.ties - (np.cumsum(tied) - tied), 0, tied)
        last = int(np.flatnonzero(taken)[-1])
        end, unmoved_ties, zero_ties = self._last_tie(survey.chunks[last], cut.threshold_bits, int(taken[last]))
        cut = replace(cut, tie_end=end)
        if cut.threshold_bits == 0:
            unmoved_ties += int(unmoved[:last].sum())
        zero_ties += int(split[:last, 2].sum())
        unmoved_before = self._bottom and cut.threshold_bits > 0
        before = split[:, 3 if self._bottom else 0] + taken + (unmoved if unmoved_before else 0)
        outside = survey.intervals[:, : 2 * place + 1] if self._bottom else survey.intervals[:, 2 * place + 2 :]
        by_tensor = outside.sum(axis=1)
        np.add.at(by_tensor, self._owners, before)
        nonzero, zero = (self._sum_before(row, place, cut) for row in (0, 1))
        return LevelCounts(
            cut,
            by_tensor,
            int(unmoved.sum()) if unmoved_before else unmoved_ties,
            nonzero + zero + _value_sum(cut.threshold_bits, cut.ties),
            zero + _value_sum(cut.threshold_bits, zero_ties),
        )

    def _last_tie(self, chunk: Chunk, bits: int, wanted: int) -> tuple[int, int, int]:
        """One past the global index of the chunk's ``wanted``-th element with this r; how many of these are unchanged,
        and how many changed from 0."""
        seen = unchanged = from_zero = 0
        with CheckpointReader() as reader:
            # By the definition itself: for so few elements nothing is worth compiling.
            for block, keys in self._work.keyed(reader, chunk):
                tied = np.flatnonzero(keys == np.uint32(order_key(bits, self._work.strategy)))[: wanted - seen]
                seen += tied.size
                p, s = (side[tied] for side in block.compared)
                unchanged += int((p == s).sum())
                from_zero += int(((p == 0) & (s != 0)).sum())
                if seen == wanted:
                    return block.first + int(tied[-1]) + 1, unchanged, from_zero
        raise AssertionError("the checkpoints changed while they were read")

    def _sum_before(self, row: int, place: int, cut: LevelCut) -> ExactSum:
        """Exact sum of r over the changed elements of a histogram's row that come strictly before the threshold."""
        survey = self._survey
        r_bin, lower = cut.threshold_bits >> 16, cut.threshold_bits & 0xFFFF
        start = (row * len(survey.bins) + place) * BINS
        if self._bottom:
            inside, outside = slice(0, lower), histogram_sum(survey.histogram[row], 0, r_bin)
        else:
            inside, outside = slice(lower + 1, BINS), histogram_sum(survey.histogram[row], r_bin + 1)
        counts = survey.fine[start : start + BINS][inside].astype(np.int64)
        return outside + bin_sum(r_bin, int(counts.sum()), int(counts @ np.arange(BINS)[inside]))


def _value_sum(bits: int, count: int) -> ExactSum:
    return bin_sum(bits >> 16, count, count * (bits & 0xFFFF))
