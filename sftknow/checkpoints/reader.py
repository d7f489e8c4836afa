"""Checkpoints as bytes: the index, a reader by blocks, and the step between stored bits and float32 values.

Nothing here loads a model class or a whole tensor. Stored bits travel as unsigned integers (``uint16`` for BF16 and
F16, ``uint32`` for F32), so that copying them is exact whatever they mean.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sftknow.checkpoints.index import (
    SHARD_INDEX,
    SINGLE_FILE,
    CheckpointIndex,
    TensorEntry,
    listed,
    read_header,
    read_index,
)
from sftknow.errors import CheckpointError

__all__ = [
    "FLOAT_BITS",
    "SHARD_INDEX",
    "SINGLE_FILE",
    "CheckpointIndex",
    "CheckpointReader",
    "TensorEntry",
    "listed",
    "narrow",
    "nonfinite",
    "read_header",
    "read_index",
    "round_to_bfloat16",
    "widen",
]

FLOAT_BITS: dict[str, np.dtype[Any]] = {"BF16": np.dtype("<u2"), "F16": np.dtype("<u2"), "F32": np.dtype("<u4")}
"""The dtypes whose values can be compared, and the integers that carry their bits."""

_EXPONENT = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F80_0000}


class CheckpointReader:
    """Reads blocks of tensors from a checkpoint, with one shard open at a time. Use as a context manager."""

    def __init__(self, index: CheckpointIndex) -> None:
        self.index = index
        self._file: Path | None = None
        self._descriptor = -1

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def read(self, entry: TensorEntry, first: int, count: int) -> NDArray[Any]:
        """The stored bits of elements ``first … first + count − 1`` in row-major order.

        Args:
            entry: a tensor of this checkpoint, with a dtype of `FLOAT_BITS`.

        Returns:
            A read-only array of shape (count,), uint16 for BF16 and F16, uint32 for F32.

        Raises:
            CheckpointError: the file cannot be read or ends too early.
        """
        bits = FLOAT_BITS[entry.dtype]
        if entry.start + (first + count) * bits.itemsize > entry.end:
            raise ValueError(f"{entry.name} has no elements {first} to {first + count}")
        return np.frombuffer(self._bytes(entry, first * bits.itemsize, count * bits.itemsize), dtype=bits)

    def read_into(self, entry: TensorEntry, first: int, out: NDArray[Any]) -> None:
        """`read` into an array of the caller's: shape (count,), contiguous, of the dtype's integers.

        Raises:
            CheckpointError: the file cannot be read or ends too early.
        """
        item = FLOAT_BITS[entry.dtype].itemsize
        if out.dtype != FLOAT_BITS[entry.dtype] or entry.start + (first + out.size) * item > entry.end:
            raise ValueError(f"{entry.name} has no elements {first} to {first + out.size} of that width")
        view, offset = out.data.cast("B"), entry.start + first * item
        try:
            self._open(entry)
            while view:
                done = os.preadv(self._descriptor, [view], offset)
                if not done:
                    raise CheckpointError(f"{entry.file} ends within {entry.name}; copy or download it again")
                view, offset = view[done:], offset + done
        except OSError as error:
            raise CheckpointError(f"{entry.file} cannot be read: {error.strerror}") from None

    def _open(self, entry: TensorEntry) -> None:
        if entry.file is not self._file and entry.file != self._file:
            self._close()
            self._descriptor = os.open(entry.file, os.O_RDONLY)
            self._file = entry.file

    def _bytes(self, entry: TensorEntry, offset: int, count: int) -> bytes:
        try:
            self._open(entry)
            data = os.pread(self._descriptor, count, entry.start + offset)
        except OSError as error:
            raise CheckpointError(f"{entry.file} cannot be read: {error.strerror}") from None
        if len(data) != count:
            raise CheckpointError(f"{entry.file} ends within {entry.name}; copy or download it again")
        return data

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._file, self._descriptor = None, -1


def widen(bits: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Stored bits as float32 values; exact for every dtype of `FLOAT_BITS`, any shape."""
    if dtype == "BF16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype == "F16":
        return bits.view(np.float16).astype(np.float32)
    return bits.view(np.float32)


def narrow(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """float32 values as the bits of a dtype of `FLOAT_BITS`, rounded to nearest, ties to even.

    Values too large for the dtype become infinite: check with `nonfinite`.
    """
    if dtype == "BF16":
        bits = round_to_bfloat16(values).view(np.uint32) >> np.uint32(16)
        return bits.astype(np.uint16)
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint16)
    return values.view(np.uint32)


def round_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 values rounded to the nearest bfloat16, ties to even, as torch does; still float32. No NaN allowed."""
    bits = values.view(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + (even + np.uint32(0x7FFF))) & np.uint32(0xFFFF_0000)).view(np.float32)


def nonfinite(bits: NDArray[Any], dtype: str) -> tuple[int, int]:
    """How many of the stored values are NaN and how many are infinite."""
    exponent = bits.dtype.type(_EXPONENT[dtype])
    magnitude = bits & bits.dtype.type(np.iinfo(bits.dtype).max >> 1)
    if not bits.size or magnitude.max() < exponent:
        return 0, 0
    return int((magnitude > exponent).sum()), int((magnitude == exponent).sum())
