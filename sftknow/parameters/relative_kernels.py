"""The inner loops: relative changes of blocks of stored bits, compiled. The arithmetic is that of `relative`.

Blocks are walked in pieces that stay in the first-level cache. Elements whose bits are equal, which are most of them in
bfloat16, cost a comparison; the others are gathered first, so that the arithmetic runs over dense vectors. A *kind* is
how bits are to be read: 0 BF16, 1 F16 (both uint16), 2 F32 (uint32).

Where a kernel takes ``rounded``, None means float32 arithmetic and True the authors' bfloat16; where it takes
``mixed``, None means that both sides are of one kind. It is None and not False because the compiler leaves out what
follows a None, so that the rarer way is compiled only where it is asked for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sftknow.parameters.compiled import compiled, inlined
from sftknow.parameters.vectors import (
    HALVES,
    VECTORS,
    append_differing,
    bits_of,
    differing,
    float_of,
    half_value,
    lowest_bit,
)

KINDS = {"BF16": 0, "F16": 1, "F32": 2}
STRETCH = 2048
"""Elements that are worked on together."""

NONFINITE, TOO_LARGE = -1, -2
"""What kernels return in place of a count: a NaN or infinity was met; a value is infinite in bfloat16."""

MAGNITUDE = np.uint32(0x7FFF_FFFF)
INFINITY = np.uint32(0x7F80_0000)


class Scratch(NamedTuple):
    """Working arrays of one thread, with room for `STRETCH` elements and what a vector may write beyond."""

    places: NDArray[np.int32]
    """Of elements, within the stretch."""
    base: NDArray[np.float32]
    tuned: NDArray[np.float32]
    bits: NDArray[np.uint32]
    """Of r."""


def new_scratch() -> Scratch:
    """Arrays with room enough."""
    room = STRETCH + 16
    base, tuned = np.empty((2, room), dtype=np.float32)
    return Scratch(np.empty(room, dtype=np.int32), base, tuned, np.empty(room, dtype=np.uint32))


class Formula(NamedTuple):
    """How the bits of both sides are read, and the ε of r."""

    base_kind: int
    tuned_kind: int
    epsilon: np.float32


@inlined
def half_by_steps(wide: Any) -> Any:
    """The bits of a finite float16, as uint32, as a float32."""
    # 2^112 moves the exponent's bias from 15 to 127, exactly, subnormal numbers included.
    magnitude = float_of(np.uint32((wide & np.uint32(0x7FFF)) << np.uint32(13))) * np.float32(2.0**112)
    return float_of(np.uint32(bits_of(magnitude) | (wide & np.uint32(0x8000)) << np.uint32(16)))


@inlined
def half_by_instruction(wide: Any) -> Any:
    """The same as `half_by_steps`, where the processor can do it."""
    return half_value(np.uint32(wide))


half_as_single = half_by_instruction if HALVES else half_by_steps


@inlined
def _round(value: Any) -> Any:
    """A float32, not NaN, rounded to the nearest bfloat16, ties to even."""
    bits = bits_of(value)
    even = np.uint32(bits >> np.uint32(16)) & np.uint32(1)
    return float_of(np.uint32(np.uint32(bits + even + np.uint32(0x7FFF)) & np.uint32(0xFFFF_0000)))


# Loops run over slices: of an index that may be negative the compiler would not make vectors.


@compiled
def _finite(bits: NDArray[Any], kind: int) -> bool:
    if kind == 2:
        largest = np.uint32(0)
        for i in range(bits.size):
            largest = max(largest, np.uint32(bits[i] & MAGNITUDE))
        return bool(largest < INFINITY)
    largest_half = np.uint16(0)
    for i in range(bits.size):
        largest_half = max(largest_half, np.uint16(bits[i] & np.uint16(0x7FFF)))
    return bool(largest_half < (np.uint16(0x7F80) if kind == 0 else np.uint16(0x7C00)))


@compiled
def places_by_masks(base: NDArray[Any], tuned: NDArray[Any], places: NDArray[np.int32]) -> int:
    """Places, ascending, at which the bits differ; returns how many."""
    count: Any = 0
    vectors = base.size & ~31
    for start in range(0, vectors, 32):
        mask = differing(base, tuned, start)
        while mask:
            places[count] = start + lowest_bit(mask)
            count += 1
            mask = np.uint32(mask & np.uint32(mask - np.uint32(1)))
    for i in range(vectors, base.size):
        places[count] = i
        count += np.int64(base[i] != tuned[i])
    return int(count)


@compiled
def gather_by_masks(
    base: NDArray[Any],
    tuned: NDArray[Any],
    places: NDArray[np.int32],
    p: NDArray[np.uint32],
    s: NDArray[np.uint32],
) -> int:
    """Places, ascending, at which the bits differ, and both sides' bits there; returns how many.

    ``p`` and ``s`` may be ``base`` and ``tuned`` themselves: nothing is written before it has been read.
    """
    count = places_by_masks(base, tuned, places)
    for i in range(count):
        place = np.uint32(places[i])
        p[i], s[i] = base[place], tuned[place]
    return count


@compiled
def gather_by_vectors(
    base: NDArray[Any],
    tuned: NDArray[Any],
    places: NDArray[np.int32],
    p: NDArray[np.uint32],
    s: NDArray[np.uint32],
) -> int:
    """The same as `gather_by_masks`, where the processor can compress vectors."""
    count: Any = 0
    vectors = base.size & ~15
    for start in range(0, vectors, 16):
        count = append_differing(base, tuned, start, places, p, s, count)
    for i in range(vectors, base.size):
        places[count], p[count], s[count] = i, base[i], tuned[i]
        count += np.int64(base[i] != tuned[i])
    return int(count)


_gather = gather_by_vectors if VECTORS else gather_by_masks


@compiled
def widen_bits(bits: NDArray[np.uint32], kind: int) -> None:
    """Stored bits to those of the same values as float32, in place."""
    if kind == 0:
        for i in range(bits.size):
            bits[i] = bits[i] << np.uint32(16)
    elif kind == 1:
        for i in range(bits.size):
            bits[i] = bits_of(half_as_single(bits[i]))


@compiled
def _keep_moved(places: NDArray[np.int32], p: NDArray[np.float32], s: NDArray[np.float32]) -> int:
    """Drop, in place, the elements of equal values; returns how many are left."""
    equal = 0
    for i in range(places.size):
        equal += p[i] == s[i]
    if not equal:
        return places.size
    count: Any = 0
    for i in range(places.size):
        place, before, after = places[i], p[i], s[i]
        places[count], p[count], s[count] = place, before, after
        count += before != after
    return int(count)


@compiled
def _relative(p: NDArray[np.float32], s: NDArray[np.float32], epsilon: Any, bits: NDArray[np.uint32]) -> None:
    """Bits of r of values that differ, so that no r is NaN."""
    for i in range(bits.size):
        bits[i] = bits_of(abs(s[i] - p[i]) / (abs(p[i]) + epsilon))


@compiled
def _relative_rounded(p: NDArray[np.float32], s: NDArray[np.float32], epsilon: Any, bits: NDArray[np.uint32]) -> bool:
    """`_relative` in bfloat16; False where a value is too large for it."""
    fits = True
    for i in range(bits.size):
        before, after = _round(p[i]), _round(s[i])
        fits &= (bits_of(before) & MAGNITUDE) < INFINITY
        fits &= (bits_of(after) & MAGNITUDE) < INFINITY
        change = abs(_round(np.float32(after - before)))
        r = change / _round(np.float32(abs(before) + epsilon))
        bits[i] = bits_of(_round(r)) if change != np.float32(0) else np.uint32(0)
    return fits


@compiled
def relative_bits(
    p: NDArray[np.float32], s: NDArray[np.float32], epsilon: Any, rounded: Any, bits: NDArray[np.uint32]
) -> bool:
    """Bits of r of values that differ; False where a value is too large for bfloat16."""
    if rounded is None:
        _relative(p, s, epsilon, bits)
        return True
    return _relative_rounded(p, s, epsilon, bits)


@compiled
def stretch_changes(
    base: NDArray[Any], tuned: NDArray[Any], formula: Formula, mixed: Any, rounded: Any, scratch: Scratch
) -> int:
    """r of the elements of a stretch whose values differ, with their places and values, in ``scratch``.

    Args:
        base, tuned: stored bits, shape (count,), at most `STRETCH` elements.

    Returns:
        How many there are, or `NONFINITE` or `TOO_LARGE`.
    """
    if not (_finite(base, formula.base_kind) and _finite(tuned, formula.tuned_kind)):
        return NONFINITE
    places, p, s = scratch.places, scratch.base, scratch.tuned
    p_bits, s_bits = p.view(np.uint32), s.view(np.uint32)
    if mixed is None:
        count = _gather(base, tuned, places, p_bits, s_bits)
        widen_bits(p_bits[:count], formula.base_kind)
        widen_bits(s_bits[:count], formula.tuned_kind)
    else:
        before, after = p_bits[: base.size], s_bits[: base.size]
        for i in range(base.size):
            before[i] = base[i]
        for i in range(base.size):
            after[i] = tuned[i]
        widen_bits(before, formula.base_kind)
        widen_bits(after, formula.tuned_kind)
        count = _gather(before, after, places, p_bits, s_bits)
    count = _keep_moved(places[:count], p, s)
    if not relative_bits(p[:count], s[:count], formula.epsilon, rounded, scratch.bits[:count]):
        return TOO_LARGE
    return int(count)
