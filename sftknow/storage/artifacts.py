"""Run directories: atomic writes, stages with keys, one process at a time.

A stage is complete when its manifest ``stages/<name>.json`` is there, and only then. Its key is the hash of everything
that it depends on. A stage that was cut off and is started again with the same key finds its partial work; with
another key it finds an empty folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from sftknow.errors import RunError
from sftknow.records import to_json


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of records, mappings, sequences and scalars."""
    text = json.dumps(to_json(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it there when the block ends well, remove it when not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        fsync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside ``path``; put it in ``path``'s place when the block ends well.

    A folder that was at ``path`` is replaced: moved aside in one step and then deleted, so that a kill never leaves it
    half deleted in its place. What a kill may leave beside it (``.<name>.partial``, ``.<name>.old``) is never read, and
    the next call clears it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    old = path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():
        old.replace(path)
    for left_behind in (partial, old):
        if left_behind.exists():
            shutil.rmtree(left_behind)
    partial.mkdir()
    try:
        yield partial
        for file in sorted(partial.rglob("*")):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        if path.exists():
            path.replace(old)
        partial.replace(path)
        fsync_folder(path.parent)
    finally:
        if partial.exists():
            shutil.rmtree(partial)
    if old.exists():
        shutil.rmtree(old)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text so that the file is either the old one or the whole new one."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write records, mappings, sequences and scalars as JSON, atomically. NaN is refused: JSON has none."""
    write_text(path, json.dumps(to_json(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON. Raises RunError that names the file where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is damaged ({error}); delete it and start again") from None


class Stage:
    """One folder of a run and the key of what it depends on.

    The marks (``<name>.started.json``, ``<name>.json``) lie apart from the folder, which may itself be an artifact that
    is put in place whole, such as a checkpoint.

    Attributes:
        folder: where the stage writes.
        key: SHA-256 (hex) of its inputs.
    """

    def __init__(self, folder: Path, marks: Path, inputs: Mapping[str, Any]) -> None:
        self.folder = folder
        self.inputs = dict(inputs)
        self.key = digest(inputs)
        self._started = marks.with_name(f"{marks.name}.started.json")
        self._done = marks.with_name(f"{marks.name}.json")

    @property
    def complete(self) -> bool:
        """True where the stage was finished with this very key and its folder is still there."""
        return self.folder.is_dir() and self._done.is_file() and read_json(self._done).get("key") == self.key

    @property
    def outputs(self) -> Any:
        """What `finish` was given. Raises RunError where the stage is not complete."""
        if not self.complete:
            raise RunError(f"{self.folder} is not complete")
        return read_json(self._done)["outputs"]

    def start(self) -> None:
        """Ready the folder: keep partial work of the same key, clear away work of any other."""
        self._done.unlink(missing_ok=True)
        if not self._started.is_file() or read_json(self._started).get("key") != self.key:
            if self.folder.exists():
                shutil.rmtree(self.folder)
            write_json(self._started, {"key": self.key, "inputs": self.inputs, "started": time.time()})
        self.folder.mkdir(parents=True, exist_ok=True)

    def finish(self, outputs: Any = None) -> None:
        """Mark the stage complete. The last thing a stage does."""
        started = read_json(self._started)["started"]
        write_json(
            self._done,
            {"key": self.key, "inputs": self.inputs, "outputs": outputs, "seconds": round(time.time() - started, 3)},
        )


class RunDirectory:
    """``runs/<name>/``: a lock and its stages.

    Use as a context manager. Raises RunError where another process works in the same directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    def __enter__(self) -> RunDirectory:
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is a file; give another --out")
        self.path.mkdir(parents=True, exist_ok=True)
        lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise RunError(f"another process is working in {self.path}; wait for it or give another --out") from None
        self._lock = lock
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def stage(self, name: str, inputs: Mapping[str, Any]) -> Stage:
        """The stage of that name (slashes make subfolders), keyed by ``inputs``."""
        return Stage(self.path / name, self.path / "stages" / name, inputs)
