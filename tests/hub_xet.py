"""Xet storage for the test Hub: `hf_xet` keeps blocks in a folder itself, given a ``local://`` address.

Nothing here speaks the storage's own protocol: the real client writes blocks and shards into the folder, and what the
Hub needs to know (which blocks make up the file of a given SHA-256) is read from the shards.
"""

from __future__ import annotations

import shutil
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import hf_xet

_HEADER, _ENTRY = 48, 48
_VERIFIED, _HAS_SHA256 = 1 << 31, 1 << 30


class XetStore:
    """A folder that Xet clients write to. The storage allows one process at a time, so that readers get copies."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._copies = 0

    def token(self, kind: str) -> dict[str, str]:
        """Headers of an answer that lets a client write to the storage, or read from a copy as it is now."""
        place = self._folder / "store" if kind == "write" else self._copy()
        return {
            "X-Xet-Cas-Url": f"local://{place}",
            "X-Xet-Access-Token": "xet-token",
            "X-Xet-Token-Expiration": str(int(time.time()) + 3600),
        }

    def file_hash(self, sha256: str) -> tuple[str, int] | None:
        """Xet's own hash and the size of the file with this SHA-256; None where nobody uploaded it."""
        wanted = _bytes(sha256)
        for shard in sorted((self._folder / "store").glob("**/shards/*.mdb")):
            for file_hash, size, found in _files(shard.read_bytes()):
                if found == wanted:
                    return _hex(file_hash), size
        return None

    def read(self, sha256: str) -> bytes | None:
        """The file with this SHA-256; None where nobody uploaded it."""
        known = self.file_hash(sha256)
        if known is None:
            return None
        with tempfile.TemporaryDirectory() as out:
            place = Path(out) / "file"
            wanted = hf_xet.PyXetDownloadInfo(str(place), known[0], known[1])
            hf_xet.download_files([wanted], f"local://{self._copy()}", ("", 0), None, None)
            return place.read_bytes()

    def _copy(self) -> Path:
        self._copies += 1
        place = self._folder / f"copy-{self._copies}"
        if (self._folder / "store").is_dir():
            shutil.copytree(self._folder / "store", place)
        return place


def _files(shard: bytes) -> Iterator[tuple[bytes, int, bytes | None]]:
    """(file hash, size, SHA-256) of every file in a shard."""
    at = _HEADER
    while shard[at : at + 32] != b"\xff" * 32:
        flags, entries = struct.unpack_from("<II", shard, at + 32)
        sizes = [struct.unpack_from("<I", shard, at + 48 + 48 * i + 36)[0] for i in range(entries)]
        end = at + 48 + _ENTRY * entries * (2 if flags & _VERIFIED else 1)
        sha256 = shard[end : end + 32] if flags & _HAS_SHA256 else None
        yield shard[at : at + 32], sum(sizes), sha256
        at = end + (_ENTRY if flags & _HAS_SHA256 else 0)


def _hex(value: bytes) -> str:
    """Xet writes hashes as four little-endian numbers."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", value))


def _bytes(text: str) -> bytes:
    return struct.pack("<4Q", *(int(text[i : i + 16], 16) for i in range(0, 64, 16)))
