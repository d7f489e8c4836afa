"""Progress bars: one look everywhere, quiet where nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from sftknow import processes

_ROUNDED = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
"""tqdm's own look, without the parts of a unit."""


@contextmanager
def progress(total: int, description: str, *, unit: str, done: int = 0, steady: bool = False) -> Iterator[tqdm[Any]]:
    """A bar on standard error with rate and time left; without a terminal one line every ten seconds.

    Args:
        total: units of work in all.
        description: what is going on, in two or three words.
        unit: the name of one unit.
        done: units that an earlier, interrupted run has already done.
        steady: the time left is told from the whole of this start and not from the last moments: for work that comes in
            waves. Parts of a unit may be done.
    """
    watched = sys.stderr.isatty()
    bar: tqdm[Any] = tqdm(
        total=total,
        desc=description,
        unit=f" {unit}",
        initial=done,
        mininterval=0.2 if watched else 10.0,
        dynamic_ncols=watched,
        smoothing=0.0 if steady else 0.1,
        bar_format=_ROUNDED if steady else None,
        leave=True,
        disable=not processes.is_main(),
    )
    with bar:
        yield bar
