"""Does a node see the run directory? Imports nothing heavy: the look is the first thing that a node does."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sftknow.artifacts.files import write_text
from sftknow.errors import ClusterError

MARK = ".seen-by-nodes"
"""A file in the run directory; a node that cannot read what this process wrote there has another file system."""


@dataclass(frozen=True, kw_only=True)
class SharedFolder:
    """A look at whether a node sees the run directory. Picklable."""

    path: Path
    """Absolute."""
    word: str
    """What `MARK` holds."""

    def __call__(self) -> None:
        """Raise ClusterError where the mark is not there or holds something else."""
        try:
            found = (self.path / MARK).read_text(encoding="utf-8")
        except OSError:
            found = ""
        if found != self.word:
            raise ClusterError(
                f"{self.path} is not the run directory there; put it on a file system that all nodes share (--out)"
            )


@contextmanager
def marked(path: Path) -> Iterator[SharedFolder]:
    """Within the block, nodes can tell that they see the run directory."""
    folder = SharedFolder(path=path.absolute(), word=secrets.token_hex(16))
    write_text(folder.path / MARK, folder.word)
    try:
        yield folder
    finally:
        (folder.path / MARK).unlink(missing_ok=True)
