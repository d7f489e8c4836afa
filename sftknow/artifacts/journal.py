"""Work under way, kept line by line beside what it will become, so that a kill costs little of it.

One entry of JSON a line behind a first line that says whose work it is. What a kill tore off, and all behind what is
damaged, does not count. The answers of an evaluation are kept so batch by batch; batches have a fixed make-up, so that
an evaluation that was cut off ends with the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

JOURNALS = "answers.*.partial.jsonl"
"""Pattern of the names of evaluations' files."""


def journal_name(splits: Sequence[str]) -> str:
    """The file's name for the splits that are asked together."""
    return JOURNALS.replace("*", "-".join(splits))


class KeyedLines:
    """Entries of JSON that belong to one piece of work, added to a file and read again.

    Args:
        path: the file, there or not. That of other work is removed, a damaged one is cut behind its last whole entry.
        head: the first line: identifies everything that the entries depend on.
        take: is given every entry that is there; ValueError, TypeError or LookupError says that it is damaged.
    """

    def __init__(self, path: Path, head: Mapping[str, Any], take: Callable[[Any], object]) -> None:
        self.path = path
        self._head = dict(head)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return
        whole = 0
        for number, line in enumerate(content.splitlines(keepends=True)):
            try:
                entry = json.loads(line) if line.endswith(b"\n") else None
                if entry is None or (number == 0 and entry != self._head):
                    break
                if number:
                    take(entry)
            except (ValueError, TypeError, LookupError):
                break
            whole += len(line)
        if not whole:
            path.unlink()
        elif whole < len(content):
            os.truncate(path, whole)

    def append(self, entries: Sequence[Any]) -> None:
        """Add entries; they are on disk when this returns. File and folder are made where they are not there."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        heads = [] if self.path.exists() else [self._head]
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(f"{json.dumps(entry)}\n" for entry in [*heads, *entries]))
            file.flush()
            os.fsync(file.fileno())


class Journal:
    """The answers of one evaluation.

    Args:
        path: the file. None keeps nothing.
        key: identifies everything that the answers depend on; a journal of another key is thrown away.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self._done: dict[int, list[Any]] = {}
        self._lines = None if path is None else KeyedLines(path, {"key": key}, self._take)

    def outputs(self, batch: int) -> list[Any] | None:
        """What `save` was given for a batch before the kill, as JSON has it; None where it was not asked yet."""
        return self._done.get(batch)

    def save(self, batch: int, outputs: Sequence[Any]) -> None:
        """Keep a batch's answers."""
        if self._lines is not None:
            self._lines.append([{"batch": batch, "outputs": list(outputs)}])

    def _take(self, entry: Any) -> None:
        self._done[int(entry["batch"])] = list(entry["outputs"])
