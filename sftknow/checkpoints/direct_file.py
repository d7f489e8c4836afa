"""Large files written past the page cache, where the file system allows it.

A checkpoint of many gigabytes gains nothing from the page cache and pays for it twice, in memory and in the kernel's
time. With O_DIRECT the disk takes blocks straight from the writer's buffers; these, their lengths and their places in
the file must then be multiples of `ALIGNMENT`, and the end of the file is cut to length at last. File systems that
refuse get ordinary writes.
"""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 4096
_O_DIRECT = getattr(os, "O_DIRECT", 0)  # macOS has none
_REFUSED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}


def aligned_rows(rows: int, row_bytes: int) -> NDArray[np.uint8]:
    """Zeroed memory of shape (rows, row_bytes), each row at a page's start. ``row_bytes`` is a multiple of 4096."""
    if row_bytes % ALIGNMENT:
        raise ValueError(f"{row_bytes} is no multiple of {ALIGNMENT}")
    return np.frombuffer(mmap.mmap(-1, rows * row_bytes), dtype=np.uint8).reshape(rows, row_bytes)


class DirectFile:
    """One file of a known size, written in aligned blocks by several threads, in any order.

    Of a file that is there already, from an interrupted write, a block that is right is left alone, until the first one
    that differs. A file that has a second name (a hard link) is never written to: it is copied before that.

    Args:
        path: the file.
        size: its final size in bytes.
        direct: False for ordinary writes from the start.

    Attributes:
        written: bytes that had to be written.
    """

    def __init__(self, path: Path, size: int, *, direct: bool = True) -> None:
        self.path = path
        self.size = size
        self.written = 0
        self._lock = threading.Lock()
        self._plain = -1
        self._copy = path.with_name(f"{path.name}.copy")
        self._copy.unlink(missing_ok=True)  # of an interrupted write
        self._comparing = path.is_file() and path.stat().st_size > 0
        self._foreign = path.is_file() and (path.stat().st_nlink > 1 or not os.access(path, os.W_OK))
        self._left: list[int] = []
        self._direct = direct and _O_DIRECT != 0
        self._descriptor = self._open(os.O_RDONLY if self._foreign else os.O_RDWR | os.O_CREAT)

    def _open(self, flags: int) -> int:
        if self._direct:
            try:
                return os.open(self.path, flags | _O_DIRECT, 0o666)
            except OSError as error:
                if error.errno not in _REFUSED:
                    raise
                self._direct = False
        return os.open(self.path, flags, 0o666)

    def _make_own(self) -> None:
        """Put a copy in the place of a file that is not to be written to."""
        with self._lock:
            if self._foreign:
                shutil.copyfile(self.path, self._copy)
                self._copy.replace(self.path)
                self._left.append(self._descriptor)  # other threads may be reading it
                self._descriptor = self._open(os.O_RDWR)
                self._foreign = False

    def write(self, offset: int, block: NDArray[np.uint8], scratch: NDArray[np.uint8]) -> None:
        """Put a block in its place.

        Args:
            offset: in the file, a multiple of `ALIGNMENT`.
            block: shape (bytes,), at a page's start, a multiple of `ALIGNMENT` long; what lies beyond the file's size
                is cut off by `finish`.
            scratch: at least as long, at a page's start; overwritten.
        """
        if self._comparing and self._is_there(offset, block, scratch):
            return
        self._make_own()
        self._write(offset, block.data.cast("B"))
        with self._lock:
            self.written += block.size

    def finish(self) -> None:
        """Cut the file to its size, make it durable, close it."""
        if os.fstat(self._descriptor).st_size != self.size:
            self._make_own()
            os.ftruncate(self._descriptor, self.size)
        os.fsync(self._descriptor)
        self.close()

    def close(self) -> None:
        for descriptor in (self._descriptor, self._plain, *self._left):
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptor = self._plain = -1
        self._left = []

    def _is_there(self, offset: int, block: NDArray[np.uint8], scratch: NDArray[np.uint8]) -> bool:
        wanted = min(block.size, self.size - offset)
        try:
            found = os.preadv(self._descriptor, [scratch.data[: block.size]], offset)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            found = 0
        if found >= wanted and np.array_equal(scratch[:wanted], block[:wanted]):
            return True
        self._comparing = False  # what comes after was hardly written either: no use in reading it
        return False

    def _write(self, offset: int, data: memoryview) -> None:
        while data:
            aligned = offset % ALIGNMENT == 0 and len(data) % ALIGNMENT == 0
            if self._direct and aligned:
                try:
                    done = os.pwrite(self._descriptor, data, offset)
                except OSError as error:
                    if error.errno not in _REFUSED:
                        raise
                    self._direct = False
                    continue
            else:
                done = os.pwrite(self._buffered(), data, offset)
            data, offset = data[done:], offset + done

    def _buffered(self) -> int:
        with self._lock:
            if self._plain < 0:
                self._plain = os.open(self.path, os.O_RDWR)
            return self._plain
