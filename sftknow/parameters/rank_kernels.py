"""The keys of ``random``, the counting of keys, and ranks by a plan's cuts (see `leveling`), compiled."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sftknow.parameters.compiled import compiled, inlined
from sftknow.parameters.relative_kernels import STRETCH, Formula, Scratch, stretch_changes

_LOWER = np.uint32(0xFFFF)


class Cuts(NamedTuple):
    """A plan's cuts, in ascending order of what they select, so that thresholds fall."""

    first_rank: NDArray[np.uint8]
    """By upper half of a key the rank of the largest key with it, shape (65,536,)."""
    thresholds: NDArray[np.uint32]
    """Keys, shape (cuts,)."""
    tie_ends: NDArray[np.int64]
    """Of the elements at the threshold those with a global index below this are selected, shape (cuts,)."""


@inlined
def _mix(state: Any) -> Any:
    """SplitMix64's finaliser."""
    state = np.uint64((state ^ (state >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9))
    state = np.uint64((state ^ (state >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB))
    return np.uint64(state ^ (state >> np.uint64(31)))


@compiled
def fill_random_keys(seed: Any, first: int, out: NDArray[np.uint32]) -> None:
    """`selection.random_keys`; the seed is a uint64."""
    start = _mix(seed)
    for i in range(out.size):
        state = np.uint64((np.uint64(first + i) + np.uint64(1)) * np.uint64(0x9E37_79B9_7F4A_7C15) + start)
        out[i] = np.uint32(_mix(state) >> np.uint64(32))


@compiled
def count_keys(
    keys: NDArray[np.uint32], inside: bool, interval_of: NDArray[np.uint16], totals: NDArray[np.int64]
) -> None:
    """Count keys by upper half, or, where ``inside``, those in odd intervals by place among these and lower half."""
    for i in range(keys.size):
        key = keys[i]
        if not inside:
            totals[key >> np.uint32(16)] += 1
            continue
        interval = interval_of[key >> np.uint32(16)]
        if interval & np.uint16(1):
            totals[(np.int64(interval >> np.uint16(1)) << 16) + np.int64(key & _LOWER)] += 1


@inlined
def _rank(
    key: Any, index: Any, first_rank: NDArray[np.uint8], thresholds: NDArray[np.uint32], tie_ends: NDArray[np.int64]
) -> Any:
    """The smallest rank that selects an element, by the arrays of `Cuts`."""
    rank = first_rank[key >> np.uint32(16)]
    # first_rank is that of the largest key of its bin, the rest of the bin may belong to later cuts.
    while rank < thresholds.size and (key < thresholds[rank] or (key == thresholds[rank] and index >= tie_ends[rank])):
        rank += np.uint8(1)
    return rank


@compiled
def rank_keys(keys: NDArray[np.uint32], first: int, cuts: Cuts, out: NDArray[np.uint8]) -> None:
    """Ranks of elements by their keys; ``first`` is the global index of the first one."""
    first_rank, thresholds, tie_ends = cuts.first_rank, cuts.thresholds, cuts.tie_ends
    for i in range(out.size):
        out[i] = _rank(keys[i], first + i, first_rank, thresholds, tie_ends)


@compiled
def rank_block(
    base: NDArray[Any],
    tuned: NDArray[Any],
    formula: Formula,
    mixed: Any,
    rounded: Any,
    flip: Any,
    first: int,
    cuts: Cuts,
    scratch: Scratch,
    out: NDArray[np.uint8],
) -> int:
    """Ranks of the elements of a block for ``top`` (``flip`` 0) and ``bottom`` (all ones); see `stretch_changes`."""
    unmoved = np.uint32(flip)  # the key of r = 0
    places, bits = scratch.places, scratch.bits
    first_rank, thresholds, tie_ends = cuts.first_rank, cuts.thresholds, cuts.tie_ends
    for start in range(0, base.size, STRETCH):
        stop = min(start + STRETCH, base.size)
        ranks = out[start:stop]
        count = stretch_changes(base[start:stop], tuned[start:stop], formula, mixed, rounded, scratch)
        if count < 0:
            return int(count)
        # Among equal keys the rank depends on the index alone, and never falls with it.
        lowest = _rank(unmoved, first + start, first_rank, thresholds, tie_ends)
        highest = _rank(unmoved, first + stop - 1, first_rank, thresholds, tie_ends)
        if lowest == highest:
            ranks[:] = np.uint8(lowest)
        else:
            for i in range(stop - start):
                ranks[i] = _rank(unmoved, first + start + i, first_rank, thresholds, tie_ends)
        for i in range(count):
            key = np.uint32(bits[i] ^ unmoved)
            ranks[np.uint32(places[i])] = _rank(key, first + start + places[i], first_rank, thresholds, tie_ends)
    return 0
