"""Progress bars for what may be over before anybody looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sftknow.progress import progress


@contextmanager
def watched(total: int, description: str, *, unit: str = "parameters", quiet: int) -> Iterator[Callable[[int], object]]:
    """A progress bar's ``update`` for more than ``quiet`` units of work, else a function that does nothing."""
    if total <= quiet:
        yield lambda _: None
        return
    with progress(total, description, unit=unit) as bar:
        yield bar.update
