"""Which elements a level selects: exact shares, orders as unsigned integers, cuts, and the masks they give.

Every strategy is an order of the region's elements by an unsigned 32-bit *key* (see `strategies`), largest first, equal
keys by lowest global index. The first floor(n·f) elements of the order are selected, so levels are nested.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from sftknow.records import LevelCut

BINS = 1 << 16
"""Values of the upper half of a key, and of the lower half."""

_NONE_ABOVE = 0xFFFF_FFFF


def selected_elements(elements: int, share: Fraction) -> int:
    """floor(n · f), on integers."""
    return elements * share.numerator // share.denominator


def order_key(bits: int, strategy: str) -> int:
    """The key from what a plan records as threshold, r's bits for ``top`` and ``bottom``; its own inverse."""
    return bits ^ 0xFFFF_FFFF if strategy == "bottom" else bits


def random_keys(seed: int, first: int, count: int) -> NDArray[np.uint32]:
    """Keys of ``random`` for the elements with global indices ``first … first + count − 1``, shape (count,).

    The upper 32 bits of SplitMix64 (Steele, Lea and Flood, 2014) at position ``index`` of the stream that starts at the
    mixed seed. Integers only, hence the same on every machine.
    """
    state = np.arange(first, first + count, dtype=np.uint64)
    state += np.uint64(1)
    state *= np.uint64(0x9E37_79B9_7F4A_7C15)
    state += mixed_seed(seed)
    _mix(state)
    return (state >> np.uint64(32)).astype(np.uint32)


def mixed_seed(seed: int) -> np.uint64:
    """Where the stream of keys of a seed starts."""
    start = np.array([seed % (1 << 64)], dtype=np.uint64)
    _mix(start)
    return np.uint64(start[0])


def _mix(state: NDArray[np.uint64]) -> None:
    """SplitMix64's finaliser, in place."""
    for shift, factor in ((30, 0xBF58_476D_1CE4_E5B9), (27, 0x94D0_49BB_1331_11EB)):
        state ^= state >> np.uint64(shift)
        state *= np.uint64(factor)
    state ^= state >> np.uint64(31)


def cut_bin(counts: NDArray[np.int64], selected: int) -> tuple[int, int]:
    """Where the last of ``selected`` elements falls when the highest bins are taken first.

    Args:
        counts: elements by bin, shape (bins,).
        selected: between 1 and the sum of ``counts``.

    Returns:
        The bin, and how many of its own elements are needed (at least 1).
    """
    from_top = np.cumsum(counts[::-1])
    reverse = int(np.searchsorted(from_top, selected))
    above = int(from_top[reverse - 1]) if reverse else 0
    return len(counts) - 1 - reverse, selected - above


def make_cut(level: str, selected: int, key: int | None, ties: int, strategy: str) -> LevelCut:
    """The record of a cut at ``key``; None where nothing is selected, which no key lies above and no tie belongs to."""
    threshold = _NONE_ABOVE if key is None else key
    return LevelCut(level=level, selected=selected, threshold_bits=order_key(threshold, strategy), ties=ties)
