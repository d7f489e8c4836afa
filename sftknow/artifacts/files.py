"""Files written whole or not at all, JSON, and the digests that name contents."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sftknow.artifacts.lock import Lock
from sftknow.errors import FactsError, RunError
from sftknow.records import to_json
from sftknow.untrusted import load_json, parse_json


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of records, mappings, sequences and scalars."""
    text = json.dumps(to_json(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def visible_files(folder: Path) -> list[Path]:
    """The files below a folder, sorted, without hidden ones and what lies in hidden folders; none where it is none."""
    found = sorted(folder.rglob("*")) if folder.is_dir() else []
    return [p for p in found if p.is_file() and not any(part.startswith(".") for part in p.relative_to(folder).parts)]


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path, *, alone: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it there when the block ends well, remove it when not.

    Args:
        path: the file.
        alone: for large files: one process writes it at a time, and what a kill leaves the next one replaces.

    Raises:
        RunError: with ``alone``, another process is writing it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    busy = RunError(f"another process is writing {path}; wait for it or give another file")
    partial = path.with_name(f".{path.name}.partial" if alone else f".{path.name}.{os.getpid()}.partial")
    with Lock(path.with_name(f".{path.name}.lock"), busy) if alone else nullcontext():
        yield from _written(path, partial)


def _written(path: Path, partial: Path) -> Iterator[Path]:
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

    Raises:
        RunError: another process is writing it.
    """
    busy = RunError(f"another process is writing {path}; wait for it or give another folder")
    with Lock(path.with_name(f".{path.name}.lock"), busy):
        yield from _replaced(path)


def _replaced(path: Path) -> Iterator[Path]:
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


def readable(folder: Path, like: str) -> None:
    """Give the files of a folder the rights of one that was made in it as the umask says: safetensors keeps its own to
    their owner.

    Args:
        folder: with the files.
        like: name of the one that was made by an ordinary write.
    """
    rights = (folder / like).stat().st_mode
    for file in folder.iterdir():
        if file.is_file():
            file.chmod(rights)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text so that the file is either the old one or the whole new one."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write records, mappings, sequences and scalars as JSON, atomically. NaN is refused: JSON has none."""
    write_text(path, json.dumps(to_json(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON. Raises RunError that names the file where it is missing or damaged."""
    return load_json(path, way_out="delete it and start again")


def read_mapping(
    path: Path, what: str, *, example: str, twice: str, same: Callable[[str], str] = str
) -> dict[str, Any]:
    """Read a person's own JSON file of names and what belongs to them.

    Args:
        path: UTF-8, with or without a byte order mark.
        what: is in it, as in "the topics file".
        example: of its content, for the error.
        twice: what is wrong with a name that stands there twice, ``{}`` for the name.
        same: names are one where this makes them equal.

    Raises:
        FactsError: the file cannot be read, is no JSON object, or has a name twice.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: set[str] = set()
        for name, _ in pairs:
            if same(name) in seen:
                raise FactsError(f"{path}: {twice.format(repr(name))}")
            seen.add(same(name))
        return dict(pairs)

    try:
        content = path.read_bytes()
    except OSError as error:
        raise FactsError(f"the {what} file {path} cannot be read: {error.strerror}") from None
    table = parse_json(content, f"the {what} file {path}", error=FactsError, way_out="write UTF-8 JSON", pairs=once)
    if not isinstance(table, dict):
        raise FactsError(f"the {what} file {path} must be an object{example}")
    return table
