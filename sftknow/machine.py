"""What this machine has: processors to share work among, room on its disks, memory to give back."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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


def free_memory() -> int | None:
    """Bytes of memory that this process can still take without swapping; None where the system does not say.

    On Linux: what the kernel calls available, or what the process's control groups leave, whichever is less.
    """
    try:
        found = [int(_status("/proc/meminfo")["MemAvailable"].split()[0]) * 1024]
    except (OSError, KeyError, ValueError):
        return None
    return max(0, min(found + _left_in_groups()))


def used_memory() -> int:
    """Bytes of memory that this process holds now; 0 where the system does not say."""
    try:
        return int(_status("/proc/self/status")["VmRSS"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 0


def _status(path: str) -> dict[str, str]:
    with open(path, encoding="ascii", errors="replace") as lines:
        return {name: value for name, _, value in (line.partition(":") for line in lines)}


def _left_in_groups() -> list[int]:
    """Bytes left of every limit of the control groups that this process is in, of either version."""
    left = []
    for folder, most, used in (
        (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            # Files that the kernel holds in memory count as used, and give way.
            gives_way = int(dict(map(str.split, (folder / "memory.stat").read_text().splitlines()))["inactive_file"])
            left.append(int((folder / most).read_text()) - int((folder / used).read_text()) + gives_way)
        except (OSError, ValueError, KeyError):  # no such group, or no limit
            continue
    return left


_MMAP_THRESHOLD, _HANDED_BACK = -3, 128 * 1024
"""glibc's number for `mallopt` and the size in bytes of what it then always hands back."""


@contextmanager
def memory_peak() -> Iterator[list[int]]:
    """Within the block the most memory is watched that this process takes on top of what it held before.

    Yields:
        A list, empty; when the block ends it holds the bytes, or 0 where the system does not say.
    """
    _trim()
    found: list[int] = []
    try:
        Path("/proc/self/clear_refs").write_text("5")  # from now on VmHWM is counted anew
        before = used_memory()
    except OSError:
        before = 0
    try:
        yield found
    finally:
        most = int(_status("/proc/self/status").get("VmHWM", "0").split()[0]) * 1024 if before else 0
        found.append(max(0, most - before))


def _trim() -> None:
    """Hand back freed memory that the C library holds; what is freed later is not hurried."""
    library = ctypes.CDLL(None) if os.name == "posix" else None
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(ctypes.c_size_t(0))  # type: ignore[union-attr]


def give_back_memory() -> None:
    """Hand freed memory back to the system, where the C library keeps it for later (glibc, most of all after threads).

    A step that has large buffers calls it first, so that those of the step before do not count beside them. From then
    on buffers go back as soon as they are freed: left alone, glibc raises the size from which they do to 32 MB.
    """
    if os.name != "posix":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_MMAP_THRESHOLD, _HANDED_BACK)
    _trim()
