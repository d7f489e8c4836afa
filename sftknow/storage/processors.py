"""How many processors there are to share work among."""

from __future__ import annotations

import os


def available_processors() -> int:
    """Processors that this process may use: those it is bound to, where the system says, else all; at least 1."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1
