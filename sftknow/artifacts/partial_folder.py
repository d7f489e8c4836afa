"""A folder that is written beside its place, can be gone on with after a kill, and is put there whole at the end."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import IO

from sftknow.artifacts.files import fsync_folder
from sftknow.errors import RunError

_MARK = ".unfinished.json"


class PartialFolder:
    """``.<name>.partial`` beside ``path``.

    What a kill leaves there is found again by the next start with the same key; with another key it is cleared away.

    Args:
        path: where the folder belongs. Nothing happens there before `finish`.
        key: tells what the folder will hold.

    Attributes:
        folder: where to write.
        resumed: whether there was something of this key.

    Raises:
        RunError: another process is writing it.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = Path(os.path.realpath(path))
        self.folder = self.path.with_name(f".{self.path.name}.partial")
        self._key = key
        self._mark: IO[str] | None = None
        self.resumed = False
        self._made: list[Path] = []

    def open(self, finished: Path | None = None) -> None:
        """Make it ready to be written.

        Args:
            finished: a file within ``path`` that marks it as finished. Where it is given, the folder at ``path`` has
                this very key and is taken apart again: moved here, the mark removed, so that it is verified and mended.
        """
        parents = [self.path.parent, *self.path.parent.parents]
        self._made = [parent for parent in parents if not parent.exists()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._restore_moved_aside()
        if finished is not None and not self.folder.exists():
            self.path.replace(self.folder)
            (self.folder / finished.name).unlink()
            (self.folder / _MARK).write_text(json.dumps({"key": self._key}))
        self.folder.mkdir(exist_ok=True)
        self._mark = (self.folder / _MARK).open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._mark.close()
            self._mark = None
            raise RunError(f"another process is writing {self.path}; wait for it or give another folder") from None
        self._mark.seek(0)
        try:
            self.resumed = json.load(self._mark).get("key") == self._key
        except (ValueError, AttributeError):
            self.resumed = False
        if not self.resumed:
            self._clear()
            self._mark.seek(0)
            self._mark.truncate()
            json.dump({"key": self._key}, self._mark)
            self._mark.flush()

    def finish(self) -> None:
        """Put the folder in its place, instead of what was there."""
        (self.folder / _MARK).unlink()
        for file in self.folder.rglob("*"):
            if file.is_dir():
                fsync_folder(file)
        fsync_folder(self.folder)
        old = self._old()
        if self.path.exists():
            self.path.replace(old)
        self.folder.replace(self.path)
        fsync_folder(self.path.parent)
        self.close()
        if old.exists():
            shutil.rmtree(old)

    def discard(self) -> None:
        """Remove what was written, and the folders above that were made for it."""
        if self._mark is not None:
            shutil.rmtree(self.folder)
            for parent in self._made:
                with suppress(OSError):  # another folder has come there since
                    parent.rmdir()
        self.close()

    def close(self) -> None:
        """Leave it as it is and let others go on with it."""
        if self._mark is not None:
            self._mark.close()
            self._mark = None

    def _clear(self) -> None:
        for entry in self.folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != _MARK:
                entry.unlink()

    def _old(self) -> Path:
        return self.path.with_name(f".{self.path.name}.old")

    def _restore_moved_aside(self) -> None:
        """What was at ``path`` comes back where a kill fell between its moving away and the new folder's moving in."""
        old = self._old()
        if old.exists() and not self.path.exists():
            old.replace(self.path)
        elif old.exists():
            shutil.rmtree(old)
