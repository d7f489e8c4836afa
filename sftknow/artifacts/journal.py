"""The answers of an evaluation that is under way, saved batch by batch, so that a kill costs one batch.

One line of JSON a batch behind a first line that says what the evaluation is. A line that a kill tore off does not
count. Batches have a fixed make-up, so that an evaluation that was cut off ends with the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

JOURNALS = "answers.*.partial.jsonl"
"""Pattern of the files' names."""


def journal_name(splits: Sequence[str]) -> str:
    """The file's name for the splits that are asked together."""
    return JOURNALS.replace("*", "-".join(splits))


class Journal:
    """The journal of one evaluation; a context manager.

    Args:
        path: the file; its folder is made where it is not there. None keeps nothing.
        key: identifies everything that the answers depend on; a journal of another key is thrown away.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self._path = path
        self._key = key
        self._file: IO[str] | None = None
        self._done: dict[int, list[Any]] = {}

    def __enter__(self) -> Journal:
        if self._path is None:
            return self
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._done, whole = self._read(self._path)
        self._file = self._path.open("r+" if whole else "w", encoding="utf-8")
        self._file.truncate(whole)
        self._file.seek(whole)
        if not whole:
            self._write({"key": self._key})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def outputs(self, batch: int) -> list[Any] | None:
        """What `save` was given for a batch before the kill, as JSON has it; None where it was not asked yet."""
        return self._done.get(batch)

    def save(self, batch: int, outputs: Sequence[Any]) -> None:
        """Keep a batch's answers."""
        if self._file is not None:
            self._write({"batch": batch, "outputs": list(outputs)})

    def _write(self, entry: dict[str, Any]) -> None:
        assert self._file is not None, "a journal is written inside its block"
        self._file.write(json.dumps(entry, ensure_ascii=True) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self, path: Path) -> tuple[dict[int, list[Any]], int]:
        """The whole batches, and how many bytes they take together with the first line; 0 for another key's journal."""
        done: dict[int, list[Any]] = {}
        if not path.is_file():
            return done, 0
        whole = 0
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True)):
            try:
                entry = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                entry = None
            if not isinstance(entry, dict) or (number == 0 and entry.get("key") != self._key):
                break
            if number:
                done[int(entry["batch"])] = list(entry["outputs"])
            whole += len(line)
        return done, whole
