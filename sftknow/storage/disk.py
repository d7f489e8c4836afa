"""How much room a disk has."""

from __future__ import annotations

import shutil
from pathlib import Path


def free_space(path: Path) -> tuple[Path, int]:
    """Where a file or folder would be written, there or not: the nearest folder that exists, and its free bytes."""
    place = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    return place, shutil.disk_usage(place).free
