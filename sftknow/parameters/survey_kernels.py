"""Counts r by its bits, compiled. What the counters are for is said in `survey`.

An *entry* (uint64) says that so many elements have a certain r in one of the bins that are counted by lower halves:
the base value is 0 (1 bit), the bin's place among these (15), the lower half of r (16), the elements (32).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sftknow.parameters.compiled import compiled, inlined
from sftknow.parameters.relative_kernels import STRETCH, Formula, Scratch, stretch_changes

_LOWER = np.uint32(0xFFFF)
_SCALES = np.append(2.0 ** (np.maximum(np.arange(255), 1) - 150), np.inf)  # of a float32's significand, by exponent

EDGE = np.uint16(0x8000)
_FROM_ZERO = np.uint32(1 << 31)


class Counters(NamedTuple):
    """One thread's counters of r. The lookups come first; all that follows is added to."""

    interval_of: NDArray[np.uint16]
    """By bin its interval (see `survey`), shape (65,536,)."""
    marks: NDArray[np.uint16]
    """By bin 0, or what else is to be counted: the lower 15 bits are 1 + its place among the bins that are counted by
    lower halves too, `EDGE` marks a bin that an edge of the histogram of decades cuts through; shape (65,536,)."""
    edge_in: NDArray[np.uint32]
    """That edge's bits, shape (65,536,)."""
    packed: NDArray[np.int64]
    """Of the present chunk, by 2 · rank + 1 where the base is 0, and bin: elements · 2^40 + sum of their lower halves;
    shape (2 · ranks, 65,536). See `unpack`."""
    second: NDArray[np.int64]
    """Further counts of the first row of ``packed``, shape (65,536,)."""
    histogram: NDArray[np.int64]
    """Of all chunks so far, rows as in ``packed``: elements and sum of lower halves, shape (2 · ranks, 65,536, 2)."""
    above_edge: NDArray[np.int64]
    """Of all chunks so far, by bin: elements that are not below its edge, shape (65,536,)."""
    intervals: NDArray[np.int64]
    """Changed elements of this chunk by interval."""
    changed: NDArray[np.int64]
    """Changed elements of this chunk by rank, shape (ranks,)."""
    sums: NDArray[np.float64]
    """Of r of this chunk, where the base is not 0 and where it is, shape (2,)."""
    entries: NDArray[np.uint64]
    """Of this chunk, with room for one of each element; the last one holds how many there are."""


@inlined
def count_marked(bits: Any, found: Any, zero: Any, counters: Any, some: int) -> int:
    """Count ``found`` elements of a marked bin more closely; returns how many entries there are."""
    upper = np.int64(bits >> np.uint32(16))
    mark = counters.marks[upper]
    if mark & np.uint16(0x8000):
        counters.above_edge[upper] += np.int64(found) * np.int64(bits >= counters.edge_in[upper])
    place = np.int64(mark & np.uint16(0x7FFF)) - 1
    if place < 0:
        return some
    key = np.uint32(np.uint32(place << 16) | np.uint32(bits & _LOWER))
    if zero:
        key = np.uint32(key | _FROM_ZERO)
    counters.entries[some] = np.uint64(np.uint64(key) << np.uint64(32)) | np.uint64(found)
    return some + 1


@compiled
def _without_zeros(p: NDArray[np.float32]) -> bool:
    zeros = 0
    for i in range(p.size):
        zeros += p[i] == np.float32(0)
    return zeros == 0


@compiled
def _count_pairwise(
    bits: NDArray[np.uint32],
    marks: NDArray[np.uint16],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    places: NDArray[np.int32],
) -> int:
    """Count elements in two tables by turns, since equal neighbours would wait for each other in one.

    Returns:
        How many are in marked bins; their places are in ``places``.
    """
    few = np.uint64(0)
    even = np.uint64(bits.size & ~1)
    for i in range(np.uint64(0), even, np.uint64(2)):
        one, other = bits[i], bits[i + np.uint64(1)]
        upper_one, upper_other = np.uint32(one >> np.uint32(16)), np.uint32(other >> np.uint32(16))
        first[upper_one] += (1 << 40) + np.int64(one & _LOWER)
        second[upper_other] += (1 << 40) + np.int64(other & _LOWER)
        places[few] = i
        few += np.uint64(marks[upper_one] != 0)
        places[few] = i + np.uint64(1)
        few += np.uint64(marks[upper_other] != 0)
    if even < np.uint64(bits.size):
        upper = np.uint32(bits[even] >> np.uint32(16))
        first[upper] += (1 << 40) + np.int64(bits[even] & _LOWER)
        places[few] = even
        few += np.uint64(marks[upper] != 0)
    return int(few)


@compiled
def survey_block(
    base: NDArray[Any],
    tuned: NDArray[Any],
    formula: Formula,
    mixed: Any,
    rounded: Any,
    ranks: Any,
    scratch: Scratch,
    counters: Counters,
) -> int:
    """Count r of the changed elements of a block.

    Args:
        base, tuned: stored bits, shape (count,); for ``formula``, ``mixed``, ``rounded`` see `relative_kernels`.
        ranks: by element its rank, uint8, shape (count,); None: all have rank 0.

    Returns:
        0, or `NONFINITE` or `TOO_LARGE`.
    """
    entries, marks, p, bits, places = counters.entries, counters.marks, scratch.base, scratch.bits, scratch.places
    some: Any = np.int64(entries[entries.size - 1])
    few: Any = 0
    flat = counters.packed.reshape(counters.packed.size)
    for start in range(0, base.size, STRETCH):
        stop = min(start + STRETCH, base.size)
        count = stretch_changes(base[start:stop], tuned[start:stop], formula, mixed, rounded, scratch)
        if count < 0:
            return int(count)
        if ranks is None and _without_zeros(p[:count]):
            few = _count_pairwise(bits[:count], marks, counters.packed[0], counters.second, places)
            for j in range(few):
                some = count_marked(bits[np.uint32(places[j])], np.uint32(1), False, counters, some)
            continue
        # Signed numbers below, since numba adds an unsigned and a signed 64-bit integer as floating point.
        few = 0
        for i in range(count):
            upper = np.uint32(bits[i] >> np.uint32(16))
            place = upper | np.uint32(np.uint32(p[i] == np.float32(0)) << np.uint32(16))
            if ranks is not None:
                place += np.uint32(np.uint32(ranks[start + places[i]]) << np.uint32(17))
            flat[place] += (1 << 40) + np.int64(bits[i] & _LOWER)
            places[few] = i  # few is at most i: what is written over has been read
            few += np.int64(marks[upper] != 0)
        for j in range(few):
            waiting = np.uint32(places[j])
            some = count_marked(bits[waiting], np.uint32(1), p[waiting] == np.float32(0), counters, some)
    entries[entries.size - 1] = some
    return 0


@compiled
def unpack(counters: Counters) -> None:
    """Move a chunk's packed counts on and clear them: at most 2^23 elements, so that no sum of lower halves reaches
    2^40."""
    packed, second, histogram, sums = counters.packed, counters.second, counters.histogram, counters.sums
    intervals, interval_of = counters.intervals, counters.interval_of
    for r_bin in range(second.size):
        packed[0, r_bin] += second[r_bin]
        second[r_bin] = 0
    for row in range(packed.shape[0]):
        counts = packed[row]
        total = np.int64(0)
        for r_bin in range(counts.size):
            found = counts[r_bin]
            if found:
                counts[r_bin] = 0
                count = found >> 40
                histogram[row, r_bin, 0] += count
                lower = found & ((1 << 40) - 1)
                histogram[row, r_bin, 1] += lower
                leading = (1 << 23 if r_bin >> 7 else 0) | (r_bin & 127) << 16
                sums[row & 1] += np.float64(count * leading + lower) * _SCALES[r_bin >> 7]
                intervals[interval_of[r_bin]] += count
                total += count
        counters.changed[row >> 1] += total


@compiled
def add_entries(entries: NDArray[np.uint64], half: int, totals: NDArray[np.int64]) -> None:
    """Add entries to counts by place and lower half, shape (2 · half,); the second half for a base value of 0."""
    for i in range(entries.size):
        key = np.uint32(entries[i] >> np.uint64(32))
        index = np.int64(key & ~_FROM_ZERO)
        totals[index + half if key & _FROM_ZERO else index] += np.int64(entries[i] & np.uint64(0xFFFF_FFFF))


@compiled
def split_entries(
    entries: NDArray[np.uint64], starts: NDArray[np.int64], thresholds: NDArray[np.uint32], out: NDArray[np.int64]
) -> None:
    """For every cut, of the elements in its bin: above the threshold, at it, at it with a base value of 0, below.

    Args:
        entries: of one chunk.
        starts: by place, the first of its cuts; shape (places + 1,).
        thresholds: lower halves, by cut in the order of the places.
        out: shape (cuts, 4); added to.
    """
    for i in range(entries.size):
        key, found = np.uint32(entries[i] >> np.uint64(32)), np.int64(entries[i] & np.uint64(0xFFFF_FFFF))
        lower = np.uint32(key & _LOWER)
        place = np.int64((key & ~_FROM_ZERO) >> np.uint32(16))
        for cut in range(starts[place], starts[place + 1]):
            if lower > thresholds[cut]:
                out[cut, 0] += found
            elif lower < thresholds[cut]:
                out[cut, 3] += found
            else:
                out[cut, 1] += found
                if key & _FROM_ZERO:
                    out[cut, 2] += found


def merged(entries: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The same elements in one entry for each r, ascending."""
    keys, place = np.unique(entries >> np.uint64(32), return_inverse=True)
    found = np.zeros(keys.size, dtype=np.uint64)
    np.add.at(found, place, entries & np.uint64(0xFFFF_FFFF))
    found |= keys << np.uint64(32)
    return found
