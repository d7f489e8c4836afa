"""The ranks of elements by a plan's cuts (see `leveling`), compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sftknow.parameters.compiled import compiled, inlined
from sftknow.parameters.random_kernels import random_key
from sftknow.parameters.relative_kernels import STRETCH, stretch_changes


@inlined
def _rank(
    key: Any, index: Any, first_rank: NDArray[np.uint8], thresholds: NDArray[np.uint32], tie_ends: NDArray[np.int64]
) -> Any:
    """The smallest rank that selects an element. Thresholds fall and tie ends are those of the cuts, ascending."""
    rank = first_rank[key >> np.uint32(16)]
    # first_rank is that of the largest key of its bin, the rest of the bin may belong to later cuts.
    while rank < thresholds.size and (key < thresholds[rank] or (key == thresholds[rank] and index >= tie_ends[rank])):
        rank += np.uint8(1)
    return rank


@compiled
def rank_block(
    base: NDArray[Any],
    base_kind: int,
    tuned: NDArray[Any],
    tuned_kind: int,
    mixed: Any,
    epsilon: Any,
    rounded: Any,
    flip: Any,
    first: int,
    first_rank: NDArray[np.uint8],
    thresholds: NDArray[np.uint32],
    tie_ends: NDArray[np.int64],
    places: NDArray[np.int32],
    p: NDArray[np.float32],
    s: NDArray[np.float32],
    bits: NDArray[np.uint32],
    out: NDArray[np.uint8],
) -> int:
    """Ranks of the elements of a block for ``top`` (``flip`` 0) and ``bottom`` (all ones); see `leveling`."""
    unmoved = np.uint32(flip)  # the key of r = 0
    for start in range(0, base.size, STRETCH):
        stop = min(start + STRETCH, base.size)
        here, there, ranks = base[start:stop], tuned[start:stop], out[start:stop]
        count = stretch_changes(here, base_kind, there, tuned_kind, mixed, epsilon, rounded, places, p, s, bits)
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


@compiled
def random_ranks(
    mixed_seed: Any,
    first: int,
    first_rank: NDArray[np.uint8],
    thresholds: NDArray[np.uint32],
    tie_ends: NDArray[np.int64],
    out: NDArray[np.uint8],
) -> None:
    """Ranks of the elements of a block for ``random``."""
    for i in range(out.size):
        out[i] = _rank(random_key(mixed_seed, first + i), first + i, first_rank, thresholds, tie_ends)
