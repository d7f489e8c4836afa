"""The weight files that a delta stands for, made as they are read: nothing of them is written to disk."""

from __future__ import annotations

import base64
import bisect
import hashlib
import io
import os
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

from sftknow.artifacts.files import file_sha256
from sftknow.checkpoints.deltas import (
    BLOCKS,
    StoredEntry,
    damaged,
    decode_block,
    kept_files,
    other_base,
    read_delta,
    shell,
    tensors,
)
from sftknow.checkpoints.index import TensorEntry
from sftknow.checkpoints.packing import PackingError


def stored_files(base: Path, delta: Path) -> dict[str, Path | StoredFile]:
    """The files of the checkpoint that a delta stands for, by their path: weights, then those that lie on disk.

    Args:
        base: the folder of the base that the delta was made from.
        delta: the delta's folder.

    Raises:
        CheckpointError: this is another base, or the delta is damaged.
    """
    index, of_base = read_delta(delta), tensors(base)
    found: dict[str, Path | StoredFile] = {
        name: StoredFile(entry, of_base, base=base, delta=delta) for name, entry in index.files.items()
    }
    for name, sha256 in index.from_base.items():
        if not (base / name).is_file() or file_sha256(base / name) != sha256:
            raise other_base(base, delta)
        found[name] = base / name
    return found | kept_files(delta, index)


class StoredFile(io.BufferedIOBase):
    """One safetensors file of a checkpoint that is stored as a delta, as a readable and seekable file.

    A block is decoded when one of its bytes is asked for, and the last one is kept. Threads may share one.

    Attributes:
        path: where the delta's blocks lie.
        size: of the whole file, in bytes.
        sha256: (hex) of its content, as it was before it was stored.
    """

    def __init__(self, entry: StoredEntry, of_base: Mapping[str, TensorEntry], *, base: Path, delta: Path) -> None:
        self.path = delta / BLOCKS
        self.size = entry.size
        self.sha256 = entry.sha256
        self._base, self._delta = base, delta
        with tempfile.TemporaryDirectory() as folder:
            # Of the file's full length, but a hole beyond the header: it takes no room.
            place = Path(folder) / "model.safetensors"
            self._blocks = shell(place, entry, of_base, base=base, delta=delta)
            self._header = base64.b64decode(entry.header)
        self._starts = [block.tuned.start + block.first for block, _ in self._blocks]
        self._position, self._last = 0, (-1, b"")
        self._lock = threading.RLock()

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Where the next byte is read from."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set where the next byte is read from."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """The next bytes.

        Raises:
            CheckpointError: the delta is damaged.
        """
        with self._lock:
            end = self.size if size is None or size < 0 else min(self.size, self._position + size)
            parts = []
            while self._position < end:
                parts.append(self._piece(end))
                self._position += len(parts[-1])
            return b"".join(parts)

    def verify(self) -> str:
        """Read it all; return `sha256`, which it has.

        Raises:
            CheckpointError: the delta is damaged, or was made from another base.
        """
        found = hashlib.sha256()
        self.seek(0)
        while content := self.read(2**23):
            found.update(content)
        self.seek(0)
        if found.hexdigest() != self.sha256:
            raise other_base(self._base, self._delta)
        return self.sha256

    def _piece(self, end: int) -> bytes:
        """Some bytes from the position on, at least one, none beyond ``end``."""
        at = self._position
        if at < len(self._header):
            return self._header[at:end]
        number = bisect.bisect_right(self._starts, at) - 1
        if number < 0:
            raise damaged(self._delta, "bytes that belong to no tensor")
        if number != self._last[0]:
            self._last = number, self._decoded(number)
        first = at - self._starts[number]
        content = self._last[1][first : first + end - at]
        if not content:
            raise damaged(self._delta, "bytes that belong to no tensor")
        return content

    def _decoded(self, number: int) -> bytes:
        block, (offset, length) = self._blocks[number]
        with self.path.open("rb") as source:
            source.seek(offset)
            packed = source.read(length)
        try:
            return decode_block((block, packed))
        except PackingError as error:
            raise damaged(self._delta, error) from None
