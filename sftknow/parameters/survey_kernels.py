"""Counts r by its bits, compiled. What the counters are for is said in `survey`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sftknow.parameters.compiled import compiled, inlined
from sftknow.parameters.relative_kernels import STRETCH, stretch_changes

_LOWER = np.uint32(0xFFFF)
_SCALES = np.append(2.0 ** (np.maximum(np.arange(255), 1) - 150), np.inf)  # of a float32's significand, by exponent


@inlined
def beside(
    bits: Any,
    found: Any,
    zero: Any,
    special: NDArray[np.uint16],
    edge_in: NDArray[np.uint32],
    above_edge: NDArray[np.int64],
    fine: NDArray[np.uint32],
    touched: NDArray[np.uint32],
    some: int,
) -> int:
    """What is done with ``found`` elements of a special bin beside; returns how many of ``touched`` are filled."""
    upper = np.int64(bits >> np.uint32(16))
    todo = special[upper]
    if todo & np.uint16(0x8000):
        above_edge[upper] += np.int64(found) * np.int64(bits >= edge_in[upper])
    place = np.int64(todo & np.uint16(0x7FFF)) - 1
    if place < 0:
        return some
    index = (place << 16) + np.int64(bits & _LOWER)
    if zero:
        index += fine.size >> 1
    if fine[index] == 0:
        touched[some] = index
        some += 1
    fine[index] += np.uint32(found)
    return some


@compiled
def survey_block(
    base: NDArray[Any],
    base_kind: int,
    tuned: NDArray[Any],
    tuned_kind: int,
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
    above_edge: NDArray[np.int64],
    fine: NDArray[np.uint32],
    touched: NDArray[np.uint32],
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
        above_edge: by upper half, elements not below its edge, shape (65,536,).
        fine: by place among those bins (twice: base value not 0, 0), lower half; shape (2 · bins · 65,536,).
        touched: indices into ``fine`` that are no longer 0; the last entry holds their number.

    Returns:
        0, or `NONFINITE` or `TOO_LARGE`.
    """
    some: Any = np.int64(touched[touched.size - 1])
    flat = packed.reshape(packed.size)
    for start in range(0, base.size, STRETCH):
        stop = min(start + STRETCH, base.size)
        here, there = base[start:stop], tuned[start:stop]
        count = stretch_changes(here, base_kind, there, tuned_kind, epsilon, rounded, places, p, s, bits)
        if count < 0:
            return int(count)
        # Signed numbers below, since numba adds an unsigned and a signed 64-bit integer as floating point.
        few: Any = 0
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
            some = beside(bits[waiting], np.uint32(1), zero, special, edge_in, above_edge, fine, touched, some)
    touched[touched.size - 1] = some
    return 0


@compiled
def unpack(
    packed: NDArray[np.int64],
    zone_of: NDArray[np.uint16],
    histogram: NDArray[np.int64],
    zones: NDArray[np.int64],
    changed: NDArray[np.int64],
    sums: NDArray[np.float64],
) -> None:
    """Move a unit's counts on and clear them: at most 2^23 elements, so that no sum of lower halves reaches 2^40.

    Args:
        packed: of `survey_block`.
        zone_of: by bin its zone (see `survey`), shape (65,536,).
        histogram: shape (2 · ranks, 65,536, 2): elements, sums of lower halves; added to.
        zones: elements by zone; added to.
        changed: elements by rank, shape (ranks,); added to.
        sums: of r, where the base is not 0 and where it is, shape (2,); added to.
    """
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
def drain(fine: NDArray[np.uint32], touched: NDArray[np.uint32], out: NDArray[np.uint32]) -> int:
    """Move what is in ``fine`` to ``out`` as (index, count) pairs, shape (2 · pairs,); clear it; return how many."""
    some: Any = np.int64(touched[touched.size - 1])
    for i in range(some):
        out[2 * i], out[2 * i + 1] = touched[i], fine[touched[i]]
        fine[touched[i]] = 0
    touched[touched.size - 1] = 0
    return int(some)


@compiled
def add_pairs(pairs: NDArray[np.uint32], totals: NDArray[np.int64]) -> None:
    """totals[index] += count for each of the (index, count) pairs of `drain`."""
    for i in range(0, pairs.size, 2):
        totals[pairs[i]] += np.int64(pairs[i + 1])


@compiled
def split_pairs(
    pairs: NDArray[np.uint32], half: int, first: NDArray[np.int64], threshold: NDArray[np.int64], out: NDArray[np.int64]
) -> None:
    """For every cut, of the elements in its odd zone: above the threshold, at it, at it with a base value of 0.

    Args:
        pairs: of `drain`.
        half: where the elements with a base value of 0 start.
        first: by cut, the index where its zone starts.
        threshold: by cut, the index of the threshold.
        out: shape (cuts, 4): above, at, at from 0, below; added to.
    """
    for i in range(0, pairs.size, 2):
        index, count = np.int64(pairs[i]), np.int64(pairs[i + 1])
        zero = index >= half
        if zero:
            index -= half
        for cut in range(first.size):
            if not first[cut] <= index < first[cut] + 65536:
                continue
            if index > threshold[cut]:
                out[cut, 0] += count
            elif index < threshold[cut]:
                out[cut, 3] += count
            else:
                out[cut, 1] += count
                if zero:
                    out[cut, 2] += count
