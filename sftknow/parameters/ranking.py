"""Exact cuts of the order of r, and what they select, without sorting anything.

The survey has counted r by its upper 16 bits, so every level's cut is known to lie within one such bin. The pass here
counts these few bins by their lower 16 bits, which gives threshold and ties. What is counted for each tensor goes to a
temporary file where it would grow with the model. Where a level ends amid equal values, a part of one tensor is
read once more if the statistics depend on which of them come first.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import IO

import numpy as np
from numpy.typing import NDArray

from sftknow.parameters.pairs import TensorPair
from sftknow.parameters.passes import Run, Survey, Tally
from sftknow.parameters.selection import (
    BINS,
    count_fine,
    cut_bin,
    cut_zones,
    make_cut,
    order_key,
    order_keys,
    selected_elements,
)
from sftknow.parameters.statistics import ExactSum, RHistogram, bin_sum
from sftknow.records import LevelCut

_SPOOL_BYTES = 1 << 25  # kept in memory up to here, in a temporary file beyond


@dataclass(frozen=True)
class _FineCounts:
    """The second pass: cut bins counted by lower halves of the key, and what lies between them by tensor."""

    bins: list[int]
    """Cut bins of keys, ascending."""
    zones: list[NDArray[np.int64]]
    """By tensor: elements by zone (see `cut_zones`), shape (2 · bins + 1,)."""
    all: NDArray[np.int64]
    """All elements of the region, shape (bins, 65,536)."""
    zero_base: NDArray[np.int64]
    """Changed elements whose base value is 0, shape (bins, 65,536)."""
    by_tensor: IO[bytes]
    """One array a tensor, in order: place in (bins · 65,536), count, count of zero base; shape (3, filled)."""


def ordered_tallies(run: Run, survey: Survey, levels: Sequence[tuple[str, Fraction]], strategy: str) -> list[Tally]:
    """The second pass of ``top`` and ``bottom``: exact cuts and what they select."""
    elements = run.pair.elements
    coarse = survey.all.counts.copy()
    coarse[0] += elements - sum(survey.changed)
    coarse = coarse[::-1] if strategy == "bottom" else coarse  # by key
    wanted = {level: selected_elements(elements, share) for level, share in levels}
    places = {level: cut_bin(coarse, count) for level, count in wanted.items() if count}
    with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES) as spool:
        fine = _count_cut_bins(run, strategy, sorted({place[0] for place in places.values()}), spool)
        tallies = []
        for level, count in wanted.items():
            if not count:
                nothing = Tally(make_cut(level, 0, None, 0, strategy))
                nothing.selected = [0] * len(run.pair.tensors)
                tallies.append(nothing)
                continue
            coarse_bin, needed = places[level]
            lower, ties = cut_bin(fine.all[fine.bins.index(coarse_bin)], needed)
            tally = Tally(make_cut(level, count, coarse_bin << 16 | lower, ties, strategy))
            tally.sum = _sum_from(survey.all, fine.all, fine.bins, tally.cut, strategy)
            tally.sum += _value_sum(tally.cut.threshold_bits, ties)
            tally.zero_base_sum = _sum_from(survey.zero_base, fine.zero_base, fine.bins, tally.cut, strategy)
            tallies.append(tally)
        _tally_tensors(run, survey, fine, [tally for tally in tallies if tally.cut.selected], strategy)
    return tallies


def _count_cut_bins(run: Run, strategy: str, bins: list[int], spool: IO[bytes]) -> _FineCounts:
    zone_of = cut_zones(bins)
    unmoved_key = order_key(0, strategy)
    unmoved_zone = int(zone_of[unmoved_key >> 16])
    shape = (len(bins), BINS)
    total, total_zero_base = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    fine, zero_base = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)  # of one tensor, then cleared
    zones = []
    for tensor in run.pair.tensors:
        by_zone = np.zeros(2 * len(bins) + 1, dtype=np.int64)
        for _, found in run.changes(tensor):
            run.advance(found.count)
            keys = order_keys(found.bits, strategy)
            zone = zone_of[keys >> np.uint32(16)]
            by_zone += np.bincount(zone, minlength=by_zone.size)
            inside = zone % 2 == 1
            count_fine(fine, zone[inside], keys[inside])
            inside &= found.zero_base
            count_fine(zero_base, zone[inside], keys[inside])
            unmoved = found.count - found.index.size
            by_zone[unmoved_zone] += unmoved
            if unmoved_zone % 2:
                fine[unmoved_zone >> 1, unmoved_key & 0xFFFF] += unmoved
        filled = np.flatnonzero(fine)
        counts, zero_counts = fine.reshape(-1)[filled], zero_base.reshape(-1)[filled]
        np.save(spool, np.stack([filled, counts, zero_counts]))
        total.reshape(-1)[filled] += counts
        total_zero_base.reshape(-1)[filled] += zero_counts
        fine.reshape(-1)[filled] = zero_base.reshape(-1)[filled] = 0
        zones.append(by_zone)
    spool.seek(0)
    return _FineCounts(bins, zones, total, total_zero_base, spool)


def _sum_from(
    histogram: RHistogram, fine: NDArray[np.int64], bins: list[int], cut: LevelCut, strategy: str
) -> ExactSum:
    """Exact sum of r over the elements that come strictly before the cut's threshold."""
    key = order_key(cut.threshold_bits, strategy)
    coarse_bin, lower = key >> 16, key & 0xFFFF
    counts = fine[bins.index(coarse_bin), lower + 1 :]
    key_lowers = np.arange(lower + 1, BINS)
    if strategy == "bottom":
        upper_of_r, lowers = BINS - 1 - coarse_bin, BINS - 1 - key_lowers
        before = histogram.sum(0, upper_of_r)
    else:
        upper_of_r, lowers = coarse_bin, key_lowers
        before = histogram.sum(upper_of_r + 1)
    return before + bin_sum(upper_of_r, int(counts.sum()), int(counts @ lowers))


def _value_sum(bits: int, count: int) -> ExactSum:
    return bin_sum(bits >> 16, count, count * (bits & 0xFFFF))


def _tally_tensors(run: Run, survey: Survey, fine: _FineCounts, tallies: list[Tally], strategy: str) -> None:
    """Give every selected element to its tensor, and the threshold's ties to the first tensors that have them."""
    unmoved_key = order_key(0, strategy)
    ties_left = [tally.cut.ties for tally in tallies]
    for tensor, by_zone, changed in zip(run.pair.tensors, fine.zones, survey.changed, strict=True):
        places, counts, zero_counts = np.load(fine.by_tensor, allow_pickle=False)
        unchanged = tensor.elements - changed
        for i, tally in enumerate(tallies):
            key = order_key(tally.cut.threshold_bits, strategy)
            cut_place = fine.bins.index(key >> 16)
            threshold = cut_place * BINS + (key & 0xFFFF)
            start, end = np.searchsorted(places, [threshold + 1, (cut_place + 1) * BINS])
            before = int(by_zone[2 * cut_place + 2 :].sum()) + int(counts[start:end].sum())
            tied = start > 0 and places[start - 1] == threshold
            ties, zero_ties = (int(counts[start - 1]), int(zero_counts[start - 1])) if tied else (0, 0)
            taken = min(ties, ties_left[i])
            ties_left[i] -= taken
            unmoved_ties = unchanged if key == unmoved_key else 0
            if 0 < taken < ties and not ({unmoved_ties, zero_ties} <= {0, ties}):
                unmoved_ties, zero_ties = _first_ties(run, tensor, tally.cut.threshold_bits, taken)
            else:  # all of one kind, or all taken, or none
                unmoved_ties, zero_ties = min(unmoved_ties, taken), min(zero_ties, taken)
            tally.selected.append(before + taken)
            tally.unchanged += unchanged if unmoved_key > key else unmoved_ties
            tally.zero_base_sum += _value_sum(tally.cut.threshold_bits, zero_ties)


def _first_ties(run: Run, tensor: TensorPair, bits: int, taken: int) -> tuple[int, int]:
    """Of the tensor's first ``taken`` elements with this r: how many are unchanged, how many changed from 0."""
    unchanged = zero_base = 0
    for _, found in run.changes(tensor):
        tied = np.flatnonzero(found.all_bits() == np.uint32(bits))[:taken]
        moved = np.isin(found.index, tied, assume_unique=True)
        unchanged += tied.size - int(moved.sum())
        zero_base += int((moved & found.zero_base).sum())
        taken -= tied.size
        if not taken:
            break
    return unchanged, zero_base
