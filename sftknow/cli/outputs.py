"""The places that a command is to write to, refused before the work where nothing could be written there."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from sftknow import processes
from sftknow.errors import RecipeError

_FILES = ("json", "markdown", "html")
"""Options whose value is a file; ``-`` stands for standard output."""


def refuse_places(arguments: argparse.Namespace) -> None:
    """Raise RecipeError where ``--out``, or a file that a command writes, cannot be made; ``~`` is spelt out.

    A place that is there already and holds something is the command's own matter.
    """
    given = vars(arguments)
    out = given.get("out")
    if isinstance(out, Path):
        arguments.out = out = out.expanduser()
        if not given.get("dry_run"):
            _refuse("--out", out, file=None if given.get("patch") else False)
    for name in _FILES:
        if isinstance(given.get(name), str) and given[name] != "-":
            _refuse(f"--{name}", Path(given[name]).expanduser(), file=True)


def _refuse(option: str, place: Path, *, file: bool | None) -> None:
    """``file`` says what belongs there; None where it may be a file or a folder."""
    said = f"{option} {place}"
    if place.is_symlink() and not place.exists():
        raise RecipeError(f"{said} is a link to nothing; remove it or give another place")
    if file is not None and place.exists() and place.is_dir() == file:
        raise RecipeError(f"{said} is a folder; give a file" if file else f"{said} is a file; give a folder")
    above = next(each for each in (place, *place.absolute().parents) if each.exists())
    if not above.is_dir() and above != place:
        raise RecipeError(f"{said} cannot be made: {above} is a file; give another place")
    folder = above if above.is_dir() else above.absolute().parent
    try:
        if folder == place or not processes.is_main():
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(0, "no right to write there")
        else:
            os.rmdir(tempfile.mkdtemp(prefix=".sftknow-", dir=folder))
    except OSError as error:
        raise RecipeError(f"{said} cannot be written ({folder}: {error.strerror}); give another place") from None
