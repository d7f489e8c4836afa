"""How far work is: a bar where somebody watches, a plain line now and then where nobody does."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from sftknow import processes

_EVERY = 30.0
"""Seconds between two lines where there is no terminal. Work that is done before says nothing of its own."""

_ROUNDED = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
"""tqdm's own look, without the parts of a unit."""


@contextmanager
def progress(total: int, description: str, *, unit: str, done: int = 0, steady: bool = False) -> Iterator[tqdm[Any]]:
    """A bar on standard error with rate and time left; without a terminal a plain line each half minute.

    Args:
        total: units of work in all.
        description: what is going on, in two or three words.
        unit: the name of one unit.
        done: units that an earlier, interrupted run has already done.
        steady: the time left is told from the whole of this start and not from the last moments: for work that comes in
            waves. Parts of a unit may be done.
    """
    watched = sys.stderr.isatty()
    kind: type[tqdm[Any]] = tqdm if watched else _Lines
    bar = kind(
        total=total,
        desc=description,
        unit=f" {unit}",
        initial=done,
        mininterval=0.2 if watched else _EVERY,
        dynamic_ncols=watched,
        smoothing=0.0 if steady else 0.1,
        bar_format=_ROUNDED if steady else None,
        leave=True,
        disable=not processes.is_main(),
        miniters=None if watched else 1,
        file=None if watched else _Nowhere(),
    )
    with bar:
        yield bar


def counted(count: int | None, noun: str) -> str:
    """Such as ``1 model``, ``1,200 models``; ``? models`` where it is not known how many."""
    return f"{'?' if count is None else format(count, ',')} {noun}{'' if count == 1 else 's'}"


def time_text(seconds: float) -> str:
    """A duration for people, two digits at most."""
    if seconds < 1:
        return "0 s" if seconds < 0.05 else "< 1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:,.0f} days"


class _Nowhere:
    """Where tqdm writes what only a terminal can show."""

    def write(self, text: str) -> None:
        pass

    def flush(self) -> None:
        pass


class _Lines(tqdm):  # type: ignore[type-arg]
    """A bar for logs: whole lines, at most two a minute, and a last one where there was any."""

    said: float | None = None
    """When the last line was printed."""

    def display(self, *_: Any, **__: Any) -> None:
        """Called by tqdm whenever it would draw its bar anew."""
        began, now = getattr(self, "start_t", None), time.time()
        if self.disable or began is None or now - (self.said or began) < _EVERY:
            return
        self.said = now
        total, done = self.total or 0, self.n - self.initial
        left = f", about {time_text((total - self.n) * (now - began) / done)} left" if done > 0 and total else ""
        share = f" of {self._amount(total)}" if total else ""
        self._print(f"{self._amount(self.n)}{share}{self.unit}{left}{self._more()}")

    def close(self) -> None:
        """The last line, where the work was long enough for others."""
        if not self.disable and self.said is not None:
            spent = time.time() - self.start_t
            self._print(f"{self._amount(self.n)}{self.unit} in {time_text(spent)}{self._more()}")
        super().close()

    def _print(self, text: str) -> None:
        print(f"{self.desc}: {text}", file=sys.stderr, flush=True)

    def _amount(self, count: float) -> str:
        return f"{self.format_sizeof(count)} " if self.unit_scale else f"{count:,.0f}"

    def _more(self) -> str:
        return f" ({self.postfix})" if self.postfix else ""
