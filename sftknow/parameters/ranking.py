"""Exact cuts of the order of r, and what they select, without sorting anything.

A sample says in which bins of r (`survey`) the levels will end; the survey counts these to the last bit, which gives
every threshold, how many of its ties are selected and, from what each unit spooled, what each tensor contributes. A
sample can mislead, but the survey's own counts show it, and name the right bins for a second pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sftknow.checkpoints.reader import widen
from sftknow.machine import available_processors
from sftknow.parameters.leveling import LevelSelector
from sftknow.parameters.random_order import random_cuts
from sftknow.parameters.relative import changes
from sftknow.parameters.selection import BINS, cut_bin, make_cut, order_key, selected_elements
from sftknow.parameters.statistics import ExactSum, bin_sum, histogram_sum
from sftknow.parameters.survey import Survey, Workload, most_bins, read_unit, sample, survey_region
from sftknow.parameters.survey_kernels import split_words
from sftknow.parameters.units import SPAN, Unit, units
from sftknow.records import LevelCut, RestorePlan

SAMPLED = 1 << 24
"""Regions below this many elements are not sampled: passing twice over them takes no time."""

_CAUTION = 6.0  # standard errors of a sampled share; neighbouring parameters resemble each other, so it is no law
_MOST_BINS = 256


@dataclass
class Tally:
    """What one level selects."""

    cut: LevelCut
    selected: list[int]
    """By tensor."""
    unchanged: int = 0
    sum: ExactSum = field(default_factory=ExactSum)
    """Of r over the selected."""
    zero_base_sum: ExactSum = field(default_factory=ExactSum)
    """Of those, over elements whose base value is 0."""


def ordered_tallies(
    work: Workload, levels: Sequence[tuple[str, Fraction]], strategy: str
) -> tuple[Survey, list[Tally]]:
    """Pass over the region, once or twice, for ``top`` or ``bottom``."""
    elements = work.pair.elements
    wanted = {level: selected_elements(elements, share) for level, share in levels}
    guessed = _guess(work, list(wanted.values()), strategy)
    survey = survey_region(work, guessed, hashed=True, description="comparing parameters")
    found = _cut_bins(survey, elements, wanted, strategy)
    missed = {r_bin for r_bin, _ in found.values()} - set(survey.bins)
    if missed:
        bins = sorted({r_bin for r_bin, _ in found.values()} | {0})
        again = survey_region(work, bins, hashed=False, description="comparing once more")
        again.hashes = survey.hashes
        survey.close()
        survey = again
    with closing(survey):
        return survey, _tallies(work, survey, wanted, found, strategy)


def random_tallies(work: Workload, levels: Sequence[tuple[str, Fraction]], seed: int) -> tuple[Survey, list[Tally]]:
    """Pass over the region for ``random``, whose cuts are known beforehand."""
    cuts = random_cuts(work.pair.elements, levels, seed)
    plan = RestorePlan(
        strategy="random", seed=seed, region="", epsilon=work.measure.epsilon, arithmetic=work.measure.arithmetic,
        base_sha256="", tuned_sha256="", cuts=tuple(cuts),
    )  # fmt: skip
    selector = LevelSelector(plan)
    survey = survey_region(work, [], selector, hashed=True, description="comparing parameters")
    survey.close()
    by_level: dict[str, Tally] = {}
    selected = np.cumsum(survey.ranks, axis=1)
    all_r = zero_base = ExactSum()
    for rank, cut in enumerate(selector.cuts):
        here, zero_here = (histogram_sum(survey.histogram[2 * rank + zero]) for zero in (0, 1))
        all_r, zero_base = all_r + here + zero_here, zero_base + zero_here
        counts, changed = selected[:, rank, 0], selected[:, rank, 1]
        unchanged = int(counts.sum() - changed.sum())
        by_level[cut.level] = Tally(cut, counts.tolist(), unchanged, all_r, zero_base)
    return survey, [by_level[level] for level, _ in levels]


def _guess(work: Workload, wanted: Sequence[int], strategy: str) -> list[int]:
    """Bins of r in which the cuts will probably fall; that of 0 always among them."""
    elements = work.pair.elements
    if elements < SAMPLED:
        return [0]
    counts, sampled = sample(work)
    if not sampled:
        return [0]
    from_top = np.cumsum(counts if strategy == "bottom" else counts[::-1])
    guessed = {0}
    for count in wanted:
        if not count:
            continue
        share = count / elements
        margin = _CAUTION * math.sqrt(share * (1 - share) / sampled) + 1 / sampled
        low, high = (share - margin) * sampled, (share + margin) * sampled
        start, stop = np.searchsorted(from_top, [max(low, 1), min(high, sampled)]).tolist()
        guessed |= {place if strategy == "bottom" else BINS - 1 - place for place in range(start, stop + 1)}
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


def _tallies(
    work: Workload, survey: Survey, wanted: Mapping[str, int], found: Mapping[str, tuple[int, int]], strategy: str
) -> list[Tally]:
    pair, bottom = work.pair, strategy == "bottom"
    half = len(survey.bins) * BINS
    fine = survey.fine
    all_units = list(units(pair, SPAN))
    sizes = np.array([unit.count for unit in all_units], dtype=np.int64)
    owners = np.array([unit.position for unit in all_units], dtype=np.int64)
    unmoved = sizes - survey.changed  # by unit
    both = fine[:half].astype(np.int64) + fine[half:]
    both[0] += unmoved.sum()  # the bin of 0 comes first

    places = {level: survey.bins.index(r_bin) for level, (r_bin, _) in found.items()}
    cuts: dict[str, LevelCut] = {}
    for level, (r_bin, needed) in found.items():
        here = both[places[level] * BINS : (places[level] + 1) * BINS]
        lower, ties = cut_bin(here[::-1] if bottom else here, needed)
        lower = BINS - 1 - lower if bottom else lower
        key = order_key(r_bin << 16 | lower, strategy)
        cuts[level] = make_cut(level, wanted[level], key, ties, strategy)

    split: NDArray[np.int64] = np.zeros((len(all_units), len(cuts), 4), dtype=np.int64)
    # In the order of their bins, as `split_words` wants them.
    by_place = sorted(cuts, key=lambda level: places[level])
    starts = np.searchsorted([places[level] for level in by_place], np.arange(len(survey.bins) + 1))
    thresholds: NDArray[np.uint32] = np.array([cuts[level].threshold_bits & 0xFFFF for level in by_place], np.uint32)

    def split_unit(number: int) -> None:
        split_words(survey.words(number), starts, thresholds, split[number])

    def tally(level: str) -> Tally:
        count = wanted[level]
        if not count:
            cut = replace(make_cut(level, 0, None, 0, strategy), tie_end=0)
            return Tally(cut, [0] * len(pair.tensors))
        place, number = places[level], by_place.index(level)
        cut = cuts[level]
        tied = split[:, number, 1] + (unmoved if cut.threshold_bits == 0 else 0)
        taken = np.clip(cut.ties - (np.cumsum(tied) - tied), 0, tied)
        last = int(np.flatnonzero(taken)[-1])
        end, unmoved_ties, zero_ties = _last_tie(work, all_units[last], cut.threshold_bits, int(taken[last]))
        cut = replace(cut, tie_end=end)
        if cut.threshold_bits == 0:
            unmoved_ties += int(unmoved[:last].sum())
        zero_ties += int(split[:last, number, 2].sum())
        unmoved_before = bottom and cut.threshold_bits > 0
        before = split[:, number, 3 if bottom else 0] + taken + (unmoved if unmoved_before else 0)
        outside = survey.zones[:, : 2 * place + 1] if bottom else survey.zones[:, 2 * place + 2 :]
        by_tensor = outside.sum(axis=1)
        np.add.at(by_tensor, owners, before)
        rows = [_sum_before(survey, fine, row, place, cut, strategy) for row in (0, 1)]
        return Tally(
            cut,
            by_tensor.tolist(),
            int(unmoved.sum()) if unmoved_before else unmoved_ties,
            rows[0] + rows[1] + _value_sum(cut.threshold_bits, cut.ties),
            rows[1] + _value_sum(cut.threshold_bits, zero_ties),
        )

    with ThreadPoolExecutor(available_processors()) as pool:
        list(pool.map(split_unit, np.flatnonzero(survey.records[:, 1]).tolist()))
        return list(pool.map(tally, wanted))


def _last_tie(work: Workload, unit: Unit, bits: int, wanted: int) -> tuple[int, int, int]:
    """One past the global index of the unit's ``wanted``-th element with this r; how many of these are unchanged, and
    how many changed from 0."""
    tensor = work.pair.tensors[unit.position]
    seen = unchanged = from_zero = 0
    for first, base, tuned in read_unit(work, unit):
        # By the definition itself: for so few elements nothing is worth compiling.
        found = changes(base, tensor.base.dtype, tuned, tensor.tuned.dtype, work.measure)
        tied = found.index[found.bits == bits] if bits else np.flatnonzero(found.all_bits() == 0)
        done = seen + tied.size >= wanted
        tied = tied[: wanted - seen]
        seen += tied.size
        p, s = widen(base[tied], tensor.base.dtype), widen(tuned[tied], tensor.tuned.dtype)
        unchanged += int((p == s).sum())
        from_zero += int(((p == 0) & (s != 0)).sum())
        if done:
            return tensor.first + first + int(tied[-1]) + 1, unchanged, from_zero
    raise AssertionError(f"{tensor.name} changed while it was read")


def _sum_before(survey: Survey, fine: NDArray[Any], row: int, place: int, cut: LevelCut, strategy: str) -> ExactSum:
    """Exact sum of r over the changed elements of a histogram's row that come strictly before the cut's threshold."""
    r_bin, lower = cut.threshold_bits >> 16, cut.threshold_bits & 0xFFFF
    start = (row * len(survey.bins) + place) * BINS
    if strategy == "bottom":
        inside, outside = slice(0, lower), histogram_sum(survey.histogram[row], 0, r_bin)
    else:
        inside, outside = slice(lower + 1, BINS), histogram_sum(survey.histogram[row], r_bin + 1)
    counts = fine[start : start + BINS][inside].astype(np.int64)
    return outside + bin_sum(r_bin, int(counts.sum()), int(counts @ np.arange(BINS)[inside]))


def _value_sum(bits: int, count: int) -> ExactSum:
    return bin_sum(bits >> 16, count, count * (bits & 0xFFFF))
