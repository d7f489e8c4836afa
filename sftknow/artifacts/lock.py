"""One process at a time in one place: a lock on a file that goes with the process that holds it, however that ends."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import IO

from sftknow.errors import SftknowError


class Lock:
    """An exclusive lock. A context manager, or `take` and `release`.

    Args:
        file: made where it is not there, with its folder. It lies outside of whatever is moved or cleared under the
            lock.
        busy: raised where another process holds it: names the place, and says that another process works there.
        wait: seconds to wait for the other one.
        keep: leave the file there in the end; otherwise it goes away.
        holder: what the file shall say while it is held.
    """

    def __init__(
        self, file: Path, busy: SftknowError, *, wait: float = 0.0, keep: bool = False, holder: str = ""
    ) -> None:
        self._path, self._busy, self._wait, self._keep, self._holder = file, busy, wait, keep, holder
        self._file: IO[str] | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._file is not None

    def take(self) -> None:
        """Take the lock, or raise the error that was given."""
        deadline = time.monotonic() + self._wait
        while self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = self._path.open("a+")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                if time.monotonic() >= deadline:
                    raise self._busy from None
                time.sleep(0.5)
                continue
            # Another process may have removed the file since it was opened: then this lock keeps nobody out.
            if _is_file_at(file, self._path):
                self._file = file
                file.truncate(0)
                file.write(self._holder)
                file.flush()
            else:
                file.close()

    def release(self) -> None:
        """Let others in."""
        if self._file is not None:
            if not self._keep:
                self._path.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def __enter__(self) -> Lock:
        self.take()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def wait_for_release(file: Path) -> None:
    """Return when no process holds the lock on a file any more."""
    with file.open() as opened:
        fcntl.flock(opened, fcntl.LOCK_SH)


def _is_file_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
