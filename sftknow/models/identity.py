"""The one identity of weights: by content, the same everywhere, computed once for a file.

Two folders have the same identity where their ``*.safetensors`` files have the same names and bytes. A delta
has that of the files it stands for. The same values in other shards, or in another dtype, are other weights here:
what would not depend on that costs a second kind of hash over every file.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sftknow.artifacts.files import digest, file_sha256, read_json, write_json
from sftknow.checkpoints.deltas import is_delta, stored_weights
from sftknow.errors import ModelError, RunError
from sftknow.resources import cache_folder

_KEPT_FROM = 2**24
"""Bytes from which a file's hash is kept: smaller ones are hashed as fast as a note of them is read."""
_SETTLED = 2_000_000_000
"""Nanoseconds after which a further write gives a file another time on every file system."""
_OLD_WHOLE = 2**30


def weights_sha256(folder: Path) -> str:
    """What identifies the weights of a checkpoint, SHA-256 (hex); of a delta that of the whole checkpoint.

    Raises:
        ModelError: the folder holds no safetensors weights.
        CheckpointError: the delta is damaged.
    """
    if is_delta(folder):
        return digest([list(file) for file in stored_weights(folder)])
    refuse_no_weights(folder)
    return files_sha256(folder, ("*.safetensors",))


def refuse_no_weights(folder: Path) -> None:
    """Raise ModelError where a folder holds no safetensors weights."""
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} has no safetensors weights; convert the model first (pickles are never loaded)")


def files_sha256(folder: Path, patterns: Sequence[str]) -> str:
    """SHA-256 (hex) of the names and contents of the files of a folder that match one of the patterns."""
    files = sorted({file for pattern in patterns for file in folder.glob(pattern)})
    return digest([[file.name, known_sha256(file)] for file in files])


def known_sha256(path: Path) -> str:
    """`file_sha256`, taken from the user's cache folder where this very file was hashed before.

    What was noted counts only while place, size, times and inode are the same. A cache that cannot be read or written
    costs time and nothing else.
    """
    if path.stat().st_size < _KEPT_FROM:
        return file_sha256(path)
    status = _status(path)
    place = cache_folder() / "weights" / f"{digest(status['path'])}.json"
    with suppress(OSError, RunError):  # nothing noted, or damaged: it is written anew
        noted = read_json(place)
        if isinstance(noted, dict) and {**status, "sha256": noted.get("sha256")} == noted and noted["sha256"]:
            return str(noted["sha256"])
    # A file that was written to just now may change again without a new time.
    settled = int(status["mtime_ns"]) < time.time_ns() - _SETTLED
    found = file_sha256(path)
    if settled and _status(path) == status:
        with suppress(OSError):  # a read-only home, or a full disk
            write_json(place, {**status, "sha256": found})
    return found


def identity_by_time(folder: Path) -> str | None:
    """How earlier versions identified weights with a file of more than 1 GiB: by its size and time.

    None where there is no such file: the identity has not changed then. Runs that they began go on by it.
    """
    files = sorted(folder.glob("*.safetensors"))
    sizes = [file.stat() for file in files]
    if not any(status.st_size > _OLD_WHOLE for status in sizes):
        return None
    return digest(
        [
            [file.name, known_sha256(file) if status.st_size <= _OLD_WHOLE else [status.st_size, status.st_mtime_ns]]
            for file, status in zip(files, sizes, strict=True)
        ]
    )


def _status(path: Path) -> dict[str, int | str]:
    found, place = path.stat(), path.resolve()
    return {
        "path": str(place),
        "size": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "ctime_ns": found.st_ctime_ns,
        "inode": found.st_ino,
    }
