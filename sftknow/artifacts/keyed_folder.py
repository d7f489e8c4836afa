"""Half-done work on disk: a folder that belongs to one key, the digest of all that the work depends on.

The key stands in a mark, a JSON file. A start with the same key finds what an earlier one left there; a start with
another key finds an empty folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sftknow.artifacts.files import fsync_folder, read_json, write_json
from sftknow.artifacts.lock import Lock
from sftknow.errors import RunError

MARK = ".unfinished.json"
"""The mark's name where it lies within the folder."""


def has_key(mark: Path, key: str) -> bool:
    """Whether a mark is there, whole, and of this key."""
    try:
        found = read_json(mark)
    except RunError:
        return False
    return isinstance(found, dict) and found.get("key") == key


def ready_folder(folder: Path, key: str, *, mark: Path | None = None, notes: Mapping[str, Any] | None = None) -> bool:
    """Make a folder ready for the work of a key; return whether work of that key is there.

    Args:
        folder: cleared where its mark is missing, damaged, or of another key.
        key: see the module.
        mark: where the mark is, in a folder that is an artifact itself; None for `MARK` within the folder.
        notes: what else to write into a new mark.
    """
    mark = mark or folder / MARK
    same = has_key(mark, key)
    if not same:
        clear(folder)
        folder.mkdir(parents=True)
        write_json(mark, {"key": key, **(notes or {})})
    folder.mkdir(parents=True, exist_ok=True)
    return same


def clear(folder: Path) -> None:
    """Remove a folder and what is in it, where it is there."""
    if folder.exists():
        shutil.rmtree(folder)


class PartialFolder:
    """``.<name>.partial`` beside ``path``: a keyed folder that is put in the place of ``path`` whole at the end.

    Args:
        path: where the folder belongs. Nothing happens there before `finish`.
        key: tells what the folder will hold.

    Attributes:
        folder: where to write.
        resumed: whether there was something of this key.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = Path(os.path.realpath(path))
        self.folder = self.path.with_name(f".{self.path.name}.partial")
        self.resumed = False
        self._key = key
        self._old = self.path.with_name(f".{self.path.name}.old")
        busy = RunError(f"another process is writing {self.path}; wait for it or give another folder")
        self._lock = Lock(self.path.with_name(f".{self.path.name}.lock"), busy)
        self._made: list[Path] = []

    def open(self, known: Sequence[str] = ()) -> None:
        """Make it ready to be written.

        Args:
            known: files that the folder at ``path`` probably has as they shall be. They are here then, too, as second
                names of the same files, which are to be compared and never written to: until `finish` the folder at
                ``path`` stays as it is.

        Raises:
            RunError: another process is writing it.
        """
        parents = [self.path.parent, *self.path.parent.parents]
        self._made = [parent for parent in parents if not parent.exists()]
        self._lock.take()
        if self._old.exists() and not self.path.exists():
            self._old.replace(self.path)  # a kill fell between its moving away and the new folder's moving in
        clear(self._old)
        self.resumed = ready_folder(self.folder, self._key)
        for name in known:
            with suppress(OSError):  # it is here already, or there no longer, or the file system has no links
                os.link(self.path / name, self.folder / name)

    def finish(self) -> None:
        """Put the folder in its place, instead of what was there."""
        (self.folder / MARK).unlink()
        for file in self.folder.rglob("*"):
            if file.is_dir():
                fsync_folder(file)
        fsync_folder(self.folder)
        if self.path.exists():
            self.path.replace(self._old)
        self.folder.replace(self.path)
        fsync_folder(self.path.parent)
        clear(self._old)  # under the lock: without it that might be somebody's finished folder by now
        self.close()

    def discard(self) -> None:
        """Remove what was written, and the folders above that were made for it."""
        if self._lock.held:
            clear(self.folder)
            self.close()
            for parent in self._made:
                with suppress(OSError):  # another folder has come there since
                    parent.rmdir()

    def close(self) -> None:
        """Leave it as it is and let others go on with it."""
        self._lock.release()
