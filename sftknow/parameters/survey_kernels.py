"""Counts r by its bits, compiled. What the counters are for is said in `survey`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sftknow.parameters.compiled import compiled, inlined
from sftknow.parameters.relative_kernels import STRETCH, stretch_changes

_LOWER = np.uint32(0xFFFF)
_SCALES = np.append(2.0 ** (np.maximum(np.arange(255), 1) - 150), np.inf)  # of a float32's significand, by exponent


_FROM_ZERO = np.uint32(1 << 31)
_COUNTED = np.uint32(1 << 30)
"""Flags of a *word*, which says that an element has a certain r in a bin of which these are listed: (place among these
bins) · 2^16 + lower half; the base value is 0; the next word holds how many such elements there are, else one."""


@inlined
def beside(
    bits: Any,
    found: Any,
    zero: Any,
    special: NDArray[np.uint16],
    edge_in: NDArray[np.uint32],
    above_edge: NDArray[np.int64],
    words: NDArray[np.uint32],
    some: int,
) -> int:
    """What is done with ``found`` elements of a special bin beside; returns how many of ``words`` are filled."""
    upper = np.int64(bits >> np.uint32(16))
    todo = special[upper]
    if todo & np.uint16(0x8000):
        above_edge[upper] += np.int64(found) * np.int64(bits >= edge_in[upper])
    place = np.int64(todo & np.uint16(0x7FFF)) - 1
    if place < 0:
        return some
    word = np.uint32(np.uint32(place << 16) | np.uint32(bits & _LOWER))
    if zero:
        word = np.uint32(word | _FROM_ZERO)
    if found > 1:
        words[some] = np.uint32(word | _COUNTED)
        words[some + 1] = found
        return some + 2
    words[some] = word
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
    special: NDArray[np.uint16],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    places: NDArray[np.int32],
) -> int:
    """Count elements in two tables by turns, since equal neighbours would wait for each other in one.

    Returns:
        How many are in special bins; their places are in ``places``.
    """
    few = np.uint64(0)
    even = np.uint64(bits.size & ~1)
    for i in range(np.uint64(0), even, np.uint64(2)):
        one, other = bits[i], bits[i + np.uint64(1)]
        upper_one, upper_other = np.uint32(one >> np.uint32(16)), np.uint32(other >> np.uint32(16))
        first[upper_one] += (1 << 40) + np.int64(one & _LOWER)
        second[upper_other] += (1 << 40) + np.int64(other & _LOWER)
        places[few] = i
        few += np.uint64(special[upper_one] != 0)
        places[few] = i + np.uint64(1)
        few += np.uint64(special[upper_other] != 0)
    if even < np.uint64(bits.size):
        upper = np.uint32(bits[even] >> np.uint32(16))
        first[upper] += (1 << 40) + np.int64(bits[even] & _LOWER)
        places[few] = even
        few += np.uint64(special[upper] != 0)
    return int(few)


@compiled
def survey_block(
    base: NDArray[Any],
    base_kind: int,
    tuned: NDArray[Any],
    tuned_kind: int,
    mixed: Any,
    epsilon: Any,
    rounded: Any,
    ranks: Any,
    places: NDArray[np.int32],
    p: NDArray[np.float32],
    s: NDArray[np.float32],
    bits: NDArray[np.uint32],
    special: NDArray[np.uint16],
    edge_in: NDArray[np.uint32],
    packed: NDArray[np.int64],
    beside_first: NDArray[np.int64],
    above_edge: NDArray[np.int64],
    words: NDArray[np.uint32],
) -> int:
    """Count r of the changed elements of a block.

    Args:
        base, tuned: stored bits, shape (count,).
        ranks: by element which pair of rows of ``packed`` it is counted in, uint8, shape (count,); None: the first.
        places, p, s, bits: `Scratch`.
        special: by upper half of r's bits 0, or what is to be done beside: its lower 15 bits are 1 + the place among
            the bins that are counted by lower halves too, the highest bit marks a half that a histogram's edge cuts
            through; shape (65,536,).
        edge_in: that edge's bits, shape (65,536,).
        packed: by rank and base value (2 · rank + 1 where it is 0) and upper half: elements · 2^40 + sum of their lower
            halves; shape (2 · ranks, 65,536). Added to, as is all that follows; see `unpack`.
        beside_first: further counts of the first row of ``packed``, shape (65,536,).
        above_edge: by upper half, elements not below its edge, shape (65,536,).
        words: of the elements in those bins, with room for one of each element of a unit; the last entry holds how
            many words there are.

    Returns:
        0, or `NONFINITE` or `TOO_LARGE`.
    """
    some: Any = np.int64(words[words.size - 1])
    few: Any = 0
    flat = packed.reshape(packed.size)
    for start in range(0, base.size, STRETCH):
        stop = min(start + STRETCH, base.size)
        here, there = base[start:stop], tuned[start:stop]
        count = stretch_changes(here, base_kind, there, tuned_kind, mixed, epsilon, rounded, places, p, s, bits)
        if count < 0:
            return int(count)
        if ranks is None and _without_zeros(p[:count]):
            few = _count_pairwise(bits[:count], special, packed[0], beside_first, places)
            for j in range(few):
                at = bits[np.uint32(places[j])]
                some = beside(at, np.uint32(1), False, special, edge_in, above_edge, words, some)
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
            few += np.int64(special[upper] != 0)
        for j in range(few):
            waiting = np.uint32(places[j])
            zero = p[waiting] == np.float32(0)
            some = beside(bits[waiting], np.uint32(1), zero, special, edge_in, above_edge, words, some)
    words[words.size - 1] = some
    return 0


@compiled
def unpack(
    packed: NDArray[np.int64],
    beside_first: NDArray[np.int64],
    zone_of: NDArray[np.uint16],
    histogram: NDArray[np.int64],
    zones: NDArray[np.int64],
    changed: NDArray[np.int64],
    sums: NDArray[np.float64],
) -> None:
    """Move a unit's counts on and clear them: at most 2^23 elements, so that no sum of lower halves reaches 2^40.

    Args:
        packed, beside_first: of `survey_block`.
        zone_of: by bin its zone (see `survey`), shape (65,536,).
        histogram: shape (2 · ranks, 65,536, 2): elements, sums of lower halves; added to.
        zones: elements by zone; added to.
        changed: elements by rank, shape (ranks,); added to.
        sums: of r, where the base is not 0 and where it is, shape (2,); added to.
    """
    for r_bin in range(beside_first.size):
        packed[0, r_bin] += beside_first[r_bin]
        beside_first[r_bin] = 0
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
                zones[zone_of[r_bin]] += count
                total += count
        changed[row >> 1] += total


@compiled
def add_words(words: NDArray[np.uint32], half: int, totals: NDArray[np.int64]) -> None:
    """Add words to counts by place and lower half, shape (2 · half,); the second half for a base value of 0."""
    i = 0
    while i < words.size:
        word, found = words[i], np.int64(1)
        if word & _COUNTED:
            i += 1
            found = np.int64(words[i])
        i += 1
        index = np.int64(word & ~(_FROM_ZERO | _COUNTED))
        totals[index + half if word & _FROM_ZERO else index] += found


@compiled
def split_words(
    words: NDArray[np.uint32], starts: NDArray[np.int64], thresholds: NDArray[np.uint32], out: NDArray[np.int64]
) -> None:
    """For every cut, of the elements in its bin: above the threshold, at it, at it with a base value of 0, below.

    Args:
        words: of one unit.
        starts: by place, the first of its cuts; shape (places + 1,).
        thresholds: lower halves, by cut in the order of the places.
        out: shape (cuts, 4); added to.
    """
    i = 0
    while i < words.size:
        word, found = words[i], np.int64(1)
        if word & _COUNTED:
            i += 1
            found = np.int64(words[i])
        i += 1
        lower = np.uint32(word & _LOWER)
        place = np.int64((word & ~(_FROM_ZERO | _COUNTED)) >> np.uint32(16))
        for cut in range(starts[place], starts[place + 1]):
            if lower > thresholds[cut]:
                out[cut, 0] += found
            elif lower < thresholds[cut]:
                out[cut, 3] += found
            else:
                out[cut, 1] += found
                if word & _FROM_ZERO:
                    out[cut, 2] += found


def merged(words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The same elements in fewer words, where none of these holds a number yet."""
    if (words & _COUNTED).any():
        return words
    single, counts = np.unique(words, return_counts=True)
    several = counts > 1
    ends = np.cumsum(1 + several)
    found = np.empty(int(ends[-1]) if ends.size else 0, dtype=np.uint32)
    found[ends - 1 - several] = np.where(several, single | _COUNTED, single)
    found[ends[several] - 1] = counts[several]
    return found
