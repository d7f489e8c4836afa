"""Checkpoints as bytes: the index, a reader by blocks, and the step between stored bits and float32 values.

Nothing here loads a model class or a whole tensor. Stored bits travel as unsigned integers (``uint16`` for BF16 and
F16, ``uint32`` for F32), so that copying them is exact whatever they mean.
"""

from __future__ import annotations

import os
import threading
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
    """Reads blocks of tensors; any number of threads may share one. Use as a context manager."""

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def read(self, entry: TensorEntry, first: int, count: int) -> NDArray[Any]:
        """The stored bits of elements ``first … first + count − 1`` in row-major order: `read_into` a new array."""
        out: NDArray[Any] = np.empty(count, dtype=FLOAT_BITS[entry.dtype])
        self.read_into(entry, first, out)
        return out

    def read_into(self, entry: TensorEntry, first: int, out: NDArray[Any]) -> None:
        """Fill an array with the stored bits of a tensor's elements, from ``first`` on in row-major order.

        Args:
            entry: a tensor with a dtype of `FLOAT_BITS`.
            out: shape (count,), contiguous, uint16 for BF16 and F16, uint32 for F32.

        Raises:
            CheckpointError: the file cannot be read or ends too early.
        """
        if entry.parts:
            self._read_parts(entry, first, out)
            return
        item = FLOAT_BITS[entry.dtype].itemsize
        if out.dtype != FLOAT_BITS[entry.dtype] or entry.start + (first + out.size) * item > entry.end:
            raise ValueError(f"{entry.name} has no elements {first} to {first + out.size} of that width")
        if entry.made is not None:
            entry.made(first * item, out)
            return
        try:
            self.read_bytes(entry.file, entry.start + first * item, out)
        except EOFError:
            raise CheckpointError(f"{entry.file} ends within {entry.name}; copy or download it again") from None
        except OSError as error:
            raise CheckpointError(f"{entry.file} cannot be read: {error.strerror}") from None

    def _read_parts(self, entry: TensorEntry, first: int, out: NDArray[Any]) -> None:
        begin = 0
        for part in entry.parts:
            start, stop = max(first, begin), min(first + out.size, begin + part.elements)
            if start < stop:
                self.read_into(part, start - begin, out[start - first : stop - first])
            begin += part.elements

    def read_bytes(self, file: Path, offset: int, out: NDArray[Any]) -> None:
        """Fill an array (contiguous) with the file's bytes from ``offset`` on.

        Raises:
            OSError: the file cannot be read.
            EOFError: it ends too early.
        """
        view = out.data.cast("B")
        while view:
            done = os.preadv(self._open(file), [view], offset)
            if not done:
                raise EOFError(str(file))
            view, offset = view[done:], offset + done

    def _open(self, file: Path) -> int:
        if file not in self._descriptors:
            with self._lock:
                if file not in self._descriptors:
                    self._descriptors[file] = os.open(file, os.O_RDONLY)
        return self._descriptors[file]


def widen(bits: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Stored bits as float32 values; exact for every dtype of `FLOAT_BITS`, any shape."""
    if dtype == "BF16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype == "F16":
        return bits.view(np.float16).astype(np.float32)
    return bits.view(np.float32)


def values_differing(first: NDArray[Any], second: NDArray[Any], dtype: str) -> int:
    """How many stored values of one dtype, shape (count,), differ; equal bits never do, ±0 are one value."""
    index = np.flatnonzero(first != second)
    return int((widen(first[index], dtype) != widen(second[index], dtype)).sum())


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
