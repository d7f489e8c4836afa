"""Small whole numbers packed small: split into their bytes' planes and compressed with Zstandard.

Fine-tuning moves most values by a few units in the last place. Differences of bit patterns, folded so that small ones
of either sign are small numbers, have upper planes of nearly nothing but zeros.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

LEVEL = 3
"""Zstandard's level: beyond it, time grows much faster than size shrinks."""


class PackingError(ValueError):
    """Packed numbers are damaged."""


def compress(plain: bytes) -> bytes:
    """A Zstandard frame."""
    return zstandard.ZstdCompressor(level=LEVEL).compress(plain)


def decompress(packed: bytes, size: int) -> bytes:
    """The inverse of `compress`. Raises PackingError where it does not give so many bytes."""
    try:
        plain = zstandard.ZstdDecompressor().decompress(packed, max_output_size=max(size, 1))
    except zstandard.ZstdError as error:
        raise PackingError(str(error)) from None
    if len(plain) != size:
        raise PackingError(f"{len(plain)} bytes where {size} belong")
    return plain


def pack(values: NDArray[Any]) -> bytes:
    """Unsigned integers, shape (count,), as bytes."""
    # All lowest bytes, then all second ones …: equal bytes come to lie next to each other.
    planes: NDArray[np.uint8] = values.view(np.uint8).reshape(-1, values.dtype.itemsize)
    return compress(planes.T.tobytes())


def unpack(packed: bytes, width: np.dtype[Any], count: int) -> NDArray[Any]:
    """The inverse of `pack`, shape (count,). Raises PackingError where the bytes are damaged."""
    plain = decompress(packed, count * width.itemsize)
    planes = np.frombuffer(plain, dtype=np.uint8).reshape(width.itemsize, -1)
    return planes.T.copy().view(width).reshape(-1)


def fold(moved: NDArray[Any]) -> NDArray[Any]:
    """Two's complement to 0, −1, 1, −2, 2 … as 0, 1, 2, 3, 4 …, in place where it can be."""
    bits = moved.dtype.itemsize * 8
    sign = (moved >> moved.dtype.type(bits - 1)) * moved.dtype.type(2**bits - 1)
    moved <<= moved.dtype.type(1)
    moved ^= sign
    return moved


def unfold(folded: NDArray[Any]) -> NDArray[Any]:
    """The inverse of `fold`."""
    one = folded.dtype.type(1)
    sign = (folded & one) * folded.dtype.type(2 ** (folded.dtype.itemsize * 8) - 1)
    folded >>= one
    folded ^= sign
    return folded
