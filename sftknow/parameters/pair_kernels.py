"""Counts pairs of 16-bit values that differ, compiled: far fewer than elements, so that r is computed once for each.

Fine-tuning moves a value by a few units in the last place. In sixteen bits there are then some thousands of different
pairs (magnitude, step) among the million elements of a chunk, and r is a function of the pair: r(−p, −s) is
r(p, s). What has moved further, or changed its sign, is kept element by element.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sftknow.parameters.compiled import compiled, inlined
from sftknow.parameters.relative_kernels import (
    NONFINITE,
    STRETCH,
    TOO_LARGE,
    Scratch,
    places_by_masks,
    relative_bits,
    widen_bits,
)
from sftknow.parameters.survey_kernels import Counters, count_marked
from sftknow.parameters.vectors import FAR, NEAR, NEAREST, VECTORS, append_steps, float_of

PAIRS = NEAR << 15
"""Counters of `count_pairs`: 32 MB, of which only what is counted becomes memory in use."""


class Pairs(NamedTuple):
    """The pairs that a thread has counted in the present chunk."""

    numbers: NDArray[np.uint32]
    """Room for `STRETCH` elements and 16 more; overwritten."""
    pairs: NDArray[np.uint32]
    """Elements by number, shape (`PAIRS`,)."""
    met: NDArray[np.uint32]
    """Numbers that are no longer 0 in ``pairs``; the last one holds how many."""
    far: NDArray[np.uint32]
    """Both values (base in the upper half) of elements without a number; the last one holds how many."""


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
def count_pairs(base: NDArray[np.uint16], tuned: NDArray[np.uint16], infinity: Any, found: Pairs) -> int:
    """Count the pairs of a block.

    Args:
        base, tuned: stored bits of one dtype, shape (count,).
        infinity: bits of the dtype's infinity (uint16).

    Returns:
        0, or `NONFINITE`.
    """
    numbers, pairs, met, far = found.numbers, found.pairs, found.met, found.far
    some, distant = np.uint64(met[met.size - 1]), np.uint64(far[far.size - 1])
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
def drain_pairs(found: Pairs, kind: int, epsilon: Any, rounded: Any, scratch: Scratch, counters: Counters) -> int:
    """Move the pairs of a chunk on to the counters and clear them.

    Returns:
        0, or `TOO_LARGE`.
    """
    pairs, met, far, counts = found.pairs, found.met, found.far, found.numbers
    p, s, bits = scratch.base, scratch.tuned, scratch.bits
    histogram, intervals, interval_of, marks = (
        counters.histogram, counters.intervals, counters.interval_of, counters.marks,
    )  # fmt: skip
    some: Any = np.int64(counters.entries[counters.entries.size - 1])
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
            same, upper = np.int64(counts[i]), np.int64(bits[i] >> np.uint32(16))
            zero = np.int64(p[i] == np.float32(0))
            histogram[zero, upper, 0] += same
            histogram[zero, upper, 1] += same * np.int64(bits[i] & np.uint32(0xFFFF))
            change = np.float64(float_of(bits[i])) * np.float64(same)
            if zero:
                zero_sum += change
            else:
                nonzero_sum += change
            intervals[interval_of[upper]] += same
            total += same
            if marks[upper]:
                some = count_marked(bits[i], counts[i], zero, counters, some)
    counters.sums[0] += nonzero_sum
    counters.sums[1] += zero_sum
    counters.changed[0] += total
    counters.entries[counters.entries.size - 1] = some
    return 0
