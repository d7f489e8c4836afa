"""Which elements a level selects: exact shares, orders as unsigned integers, cuts, and the masks they give.

Every strategy is an order of the region's elements by an unsigned 32-bit *key* (see `strategies`), largest first, equal
keys by lowest global index. The first floor(n·f) elements of the order are selected, so levels are nested.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from sftknow.parameters.rank_kernels import fill_random_keys
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
    mixed seed. Integers only, hence the same on every machine; they know nothing of values, shards or blocks.
    """
    keys = np.empty(count, dtype=np.uint32)
    fill_random_keys(np.uint64(seed % (1 << 64)), first, keys)
    return keys


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
