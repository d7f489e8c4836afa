"""What this machine has: processors to share work among, room on its disks."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def available_processors() -> int:
    """Processors that this process may use: those it is bound to, where the system says, else all; at least 1."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def free_space(path: Path) -> tuple[Path, int]:
    """Where a file or folder would be written, there or not: the nearest folder that exists, and its free bytes."""
    place = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    return place, shutil.disk_usage(place).free
