"""Makes the restored blocks of all levels at once, from ranks (`leveling`), in tiles that stay in the cache."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sftknow.parameters.compiled import compiled

_TILE = 8192
_TABLE = 1024  # ranks times four
_TABLES = 4  # equal ranks often follow one another, and an addition to the same place would wait for the one before


@compiled
def _differences(base: NDArray[Any], tuned: NDArray[Any], out: NDArray[Any]) -> None:
    for i in range(out.size):
        out[i] = base[i] ^ tuned[i]


@compiled
def _blend_tile(
    ranks: NDArray[np.uint8], limit: int, difference: NDArray[Any], tuned: NDArray[Any], out: NDArray[Any]
) -> None:
    # Without a load that depends on the rank, so that the compiler can take many elements at once.
    highest, nothing = np.uint8(limit), tuned.dtype.type(0)
    for i in range(out.size):
        part = difference[i]
        if ranks[i] > highest:
            part = nothing
        out[i] = tuned[i] ^ part


@compiled
def _count_tile(
    ranks: NDArray[np.uint8], base: NDArray[Any], tuned: NDArray[Any], magnitude: Any, seen: NDArray[np.uint32]
) -> None:
    places = np.empty(_TILE, dtype=np.uint16)
    for i in range(ranks.size):
        p, s = base[i], tuned[i]
        other = np.uint16(p != s)
        value = other & np.uint16(((p | s) & magnitude) != 0)
        places[i] = (np.uint16(ranks[i]) << np.uint16(2)) | (value << np.uint16(1)) | other
    for i in range(ranks.size):
        table = np.uint64(i) & np.uint64(_TABLES - 1)
        seen[table * np.uint64(_TABLE) + np.uint64(places[i])] += np.uint32(1)


@compiled
def blend_rows(
    ranks: NDArray[np.uint8],
    base: NDArray[Any],
    tuned: NDArray[Any],
    magnitude: Any,
    rows: NDArray[Any],
    start: int,
    counts: NDArray[np.int64],
) -> None:
    """Row j gets, from its element ``start`` on, the base's bits where the rank is at most j, else the tuned ones.

    Args:
        ranks: shape (count,), at most 250.
        base, tuned: bits in the fine-tuned checkpoint's dtype, shape (count,), count below 2^32.
        magnitude: all bits but the sign's.
        rows: shape (levels, at least start + count), contiguous.
        counts: shape (3, levels + 1), added to, by rank: elements; those of them whose value differs (±0 are one
            value); those whose bits do.
    """
    levels, count = rows.shape[0], ranks.size
    seen = np.zeros(_TABLES * _TABLE, dtype=np.uint32)
    difference = np.empty(_TILE, dtype=tuned.dtype)
    for first in range(0, count, _TILE):
        last = min(first + _TILE, count)
        some, p, s, x = ranks[first:last], base[first:last], tuned[first:last], difference[: last - first]
        _differences(p, s, x)
        for j in range(levels):
            _blend_tile(some, j, x, s, rows[j, start + first : start + last])
        _count_tile(some, p, s, magnitude, seen)
    for table in range(_TABLES):
        for rank in range(levels + 1):
            for kind in range(4):
                found = np.int64(seen[table * _TABLE + 4 * rank + kind])
                counts[0, rank] += found
                counts[1, rank] += found * (kind >> 1)
                counts[2, rank] += found * (kind & 1)
