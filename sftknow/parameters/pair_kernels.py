"""Counts pairs of 16-bit values that differ, compiled: far fewer than elements, so that r is computed once for each.

Fine-tuning moves a value by a few units in the last place. In sixteen bits there are then some thousands of different
pairs (magnitude, step) among the million elements of a unit of work, and r is a function of the pair: r(−p, −s) is
r(p, s). What has moved further, or changed its sign, is kept element by element.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sftknow.parameters.compiled import compiled, inlined
from sftknow.parameters.relative_kernels import (
    NONFINITE,
    STRETCH,
    TOO_LARGE,
    places_by_masks,
    relative_bits,
    widen_bits,
)
from sftknow.parameters.survey_kernels import beside
from sftknow.parameters.vectors import FAR, NEAR, NEAREST, VECTORS, append_steps, float_of

PAIRS = NEAR << 15
"""Counters of `count_pairs`: 32 MB, of which only what is counted becomes memory in use."""

_MAGNITUDE = np.uint16(0x7FFF)
_FAR = np.uint32(FAR)


@inlined
def _number_of(p: Any, s: Any, place: Any) -> Any:
    """The number of one element; see `vectors.append_steps`."""
    step = np.uint32(s - p + np.uint32(NEAREST)) & np.uint32(0xFFFF)
    near = np.uint32(step << np.uint32(15)) | np.uint32(p & _MAGNITUDE)
    return near if step < np.uint32(NEAR) else np.uint32(_FAR + np.uint32(place))


@compiled
def number_by_masks(base: NDArray[np.uint16], tuned: NDArray[np.uint16], numbers: NDArray[np.uint32]) -> int:
    """The numbers of `vectors.append_steps` of the elements that differ, in their order; returns how many."""
    count = places_by_masks(base, tuned, numbers.view(np.int32))
    for i in range(count):
        place = numbers[i]
        numbers[i] = _number_of(base[place], tuned[place], place)
    return count


@compiled
def number_by_vectors(base: NDArray[np.uint16], tuned: NDArray[np.uint16], numbers: NDArray[np.uint32]) -> int:
    """The same as `number_by_masks`, where the processor can compress vectors."""
    count: Any = 0
    vectors = base.size & ~15
    for start in range(0, vectors, 16):
        count = append_steps(base, tuned, start, numbers, count)
    for i in range(vectors, base.size):
        numbers[count] = _number_of(base[i], tuned[i], i)
        count += np.int64(base[i] != tuned[i])
    return int(count)


_number = number_by_vectors if VECTORS else number_by_masks


@compiled
def count_pairs(
    base: NDArray[np.uint16],
    tuned: NDArray[np.uint16],
    infinity: Any,
    numbers: NDArray[np.uint32],
    pairs: NDArray[np.uint32],
    met: NDArray[np.uint32],
    far: NDArray[np.uint32],
) -> int:
    """Count the pairs of a block.

    Args:
        base, tuned: stored bits of one dtype, shape (count,).
        infinity: bits of the dtype's infinity (uint16).
        numbers: room for `STRETCH` elements and 16 more; overwritten.
        pairs: elements by number, shape (`PAIRS`,). Added to, as is all that follows.
        met: numbers that are no longer 0 in ``pairs``; the last entry holds how many.
        far: base · 2^16 + tuned of the elements that have no number; the last entry holds how many. Both have room for
            a unit's elements.

    Returns:
        0, or `NONFINITE`.
    """
    some: Any = np.uint64(met[met.size - 1])
    distant: Any = np.uint64(far[far.size - 1])
    for start in range(0, base.size, STRETCH):
        stop = min(start + STRETCH, base.size)
        here, there = base[start:stop], tuned[start:stop]
        largest = np.uint16(0)
        for i in range(here.size):
            largest = max(largest, max(np.uint16(here[i] & _MAGNITUDE), np.uint16(there[i] & _MAGNITUDE)))
        if largest >= infinity:
            return NONFINITE
        count = _number(here, there, numbers)
        for j in range(count):
            number = numbers[j]
            if number >= _FAR:
                place = np.uint32(number - _FAR)
                p, s = np.uint32(here[place]), np.uint32(there[place])
                if (p | s) & np.uint32(0x7FFF):  # +0 and −0 are one value
                    far[distant] = np.uint32(p << np.uint32(16)) | s
                    distant += np.uint64(1)
                continue
            before = pairs[number]
            met[some] = number
            some += np.uint64(before == 0)
            pairs[number] = np.uint32(before + np.uint32(1))
    met[met.size - 1] = some
    far[far.size - 1] = distant
    return 0


@compiled
def drain_pairs(
    pairs: NDArray[np.uint32],
    met: NDArray[np.uint32],
    far: NDArray[np.uint32],
    kind: int,
    epsilon: Any,
    rounded: Any,
    p: NDArray[np.float32],
    s: NDArray[np.float32],
    bits: NDArray[np.uint32],
    counts: NDArray[np.uint32],
    zone_of: NDArray[np.uint16],
    special: NDArray[np.uint16],
    edge_in: NDArray[np.uint32],
    histogram: NDArray[np.int64],
    zones: NDArray[np.int64],
    changed: NDArray[np.int64],
    sums: NDArray[np.float64],
    above_edge: NDArray[np.int64],
    words: NDArray[np.uint32],
) -> int:
    """Move the pairs of a unit on to the counters of `survey_kernels` and clear them.

    Args:
        pairs, met, far: of `count_pairs`.
        p, s, bits, counts: room for `STRETCH` elements; overwritten.
        zone_of, histogram, zones, changed, sums: of `survey_kernels.unpack`.
        kind, epsilon, rounded, special, edge_in, above_edge, words: of `survey_kernels.survey_block`.

    Returns:
        0, or `TOO_LARGE`.
    """
    some: Any = np.int64(words[words.size - 1])
    near: Any = np.int64(met[met.size - 1])
    distant: Any = np.int64(far[far.size - 1])
    met[met.size - 1] = 0
    far[far.size - 1] = 0
    p_bits, s_bits = p.view(np.uint32), s.view(np.uint32)
    total = np.int64(0)
    nonzero_sum, zero_sum = 0.0, 0.0
    for start in range(0, near + distant, STRETCH):
        count: Any = min(STRETCH, near + distant - start)
        for i in range(count):
            if start + i < near:
                number = met[start + i]
                p_bits[i] = number & np.uint32(0x7FFF)
                s_bits[i] = p_bits[i] + (number >> np.uint32(15)) - np.uint32(NEAREST)
                counts[i] = pairs[number]
                pairs[number] = 0
            else:
                both = far[start + i - near]
                p_bits[i], s_bits[i], counts[i] = both >> np.uint32(16), both & np.uint32(0xFFFF), 1
        widen_bits(p_bits[:count], kind)
        widen_bits(s_bits[:count], kind)
        if not relative_bits(p[:count], s[:count], epsilon, rounded, bits[:count]):
            return TOO_LARGE
        for i in range(count):
            found, upper = np.int64(counts[i]), np.int64(bits[i] >> np.uint32(16))
            zero = np.int64(p[i] == np.float32(0))
            histogram[zero, upper, 0] += found
            histogram[zero, upper, 1] += found * np.int64(bits[i] & np.uint32(0xFFFF))
            change = np.float64(float_of(bits[i])) * np.float64(found)
            if zero:
                zero_sum += change
            else:
                nonzero_sum += change
            zones[zone_of[upper]] += found
            total += found
            if special[upper]:
                some = beside(bits[i], counts[i], zero, special, edge_in, above_edge, words, some)
    sums[0] += nonzero_sum
    sums[1] += zero_sum
    changed[0] += total
    words[words.size - 1] = some
    return 0
