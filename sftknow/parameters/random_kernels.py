"""The keys of the strategy ``random`` (see `selection.random_keys`), compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sftknow.parameters.compiled import compiled, inlined

_LOWER = np.uint32(0xFFFF)


@inlined
def _mix(state: Any) -> Any:
    """SplitMix64's finaliser."""
    state = np.uint64((state ^ (state >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9))
    state = np.uint64((state ^ (state >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB))
    return np.uint64(state ^ (state >> np.uint64(31)))


@inlined
def random_key(mixed_seed: Any, index: Any) -> Any:
    """See `selection.random_keys`."""
    state = np.uint64((np.uint64(index) + np.uint64(1)) * np.uint64(0x9E37_79B9_7F4A_7C15) + mixed_seed)
    return np.uint32(_mix(state) >> np.uint64(32))


@compiled
def count_random(
    mixed_seed: Any, first: int, count: int, inside: bool, zone_of: NDArray[np.uint16], totals: NDArray[np.int64]
) -> None:
    """Count keys by upper half, or, where ``inside``, those in odd zones by place among these and lower half."""
    for index in range(first, first + count):
        key = random_key(mixed_seed, index)
        if not inside:
            totals[key >> np.uint32(16)] += 1
            continue
        zone = zone_of[key >> np.uint32(16)]
        if zone & np.uint16(1):
            totals[(np.int64(zone >> np.uint16(1)) << 16) + np.int64(key & _LOWER)] += 1


@compiled
def find_random(mixed_seed: Any, first: int, count: int, wanted: NDArray[np.uint32], found: NDArray[np.int64]) -> int:
    """Global indices whose key is one of the few ``wanted``, with the place among them; shape (room, 2); how many."""
    some: Any = 0
    for index in range(first, first + count):
        key = random_key(mixed_seed, index)
        for i in range(wanted.size):
            if key == wanted[i]:
                if some < found.shape[0]:
                    found[some, 0], found[some, 1] = index, i
                some += 1
    return int(some)
