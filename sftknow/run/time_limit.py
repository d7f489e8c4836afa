"""How long work may take over all its starts, and where its parts ended for want of time.

A second start takes what is on disk and ends where the first one ended; with more minutes it goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftknow.artifacts.files import read_json, write_json
from sftknow.errors import ModelError
from sftknow.grading.sampling import Sampler, SampleRequest
from sftknow.records import SampleTally, SamplingPolicy


class OutOfTimeError(ModelError):
    """The time is over amid something; what was finished before is kept."""


class TimeLimit:
    """The time of one piece of work.

    Args:
        file: where its state is kept for a later start.
        minutes: that it may take.

    Attributes:
        sizes: by part of the work, how much was taken on at once, in turn; a later start takes the same.
    """

    def __init__(self, file: Path, minutes: float) -> None:
        self.minutes, self._file, self._began = minutes, file, time.monotonic()
        kept: dict[str, Any] = read_json(file) if file.is_file() else {}
        self._before = float(kept.get("seconds", 0.0))
        self._reached: dict[str, int] = dict(kept.get("reached", {}))
        self._ends: dict[str, dict[str, int]] = dict(kept.get("ends", {}))
        self.sizes: dict[str, list[int]] = dict(kept.get("sizes", {}))

    @property
    def seconds(self) -> float:
        """Spent in this start and in earlier ones."""
        return self._before + time.monotonic() - self._began

    def left(self, share: float = 1.0) -> float:
        """Seconds until that share of the time is used; negative afterwards."""
        return 60 * self.minutes * share - self.seconds

    def keep(self) -> None:
        """Note everything for a later start."""
        state = {"seconds": self.seconds, "reached": self._reached, "ends": self._ends, "sizes": self.sizes}
        write_json(self._file, state)

    def reach(self, part: str, done: int) -> None:
        """So much of a part is on disk; a later start with whatever minutes takes that much."""
        self._reached[part] = max(done, self._reached.get(part, 0))
        self.keep()

    def ends(self, part: str, done: int, *, share: float = 1.0, needs: float = 0.0) -> bool:
        """Whether a part of the work ends here, as the time is over or too short for what would come next.

        Args:
            part: its name.
            done: how much of it is done.
            share: of the time that may be used by its end.
            needs: seconds that what comes next will take.
        """
        noted = self._ends.get(f"{self.minutes:g}", {}).get(part)
        if noted is not None:
            return done >= noted
        if done < self._reached.get(part, 0) or self.left(share) >= needs:
            return False
        self.end(part, done)
        return True

    def end(self, part: str, done: int) -> None:
        """A part ends here for want of time, in a later start with as many minutes, too."""
        self._ends.setdefault(f"{self.minutes:g}", {})[part] = done
        self.keep()


@dataclass(frozen=True)
class TimedSampler:
    """A sampler that is left when the time is over, amid its work where it can be."""

    inner: Sampler
    over: Callable[[], bool]
    words: str
    """Of the error."""

    @property
    def journals(self) -> bool:
        """See `sftknow.grading.rules.journals`."""
        return bool(getattr(self.inner, "journals", False))

    def sample(
        self,
        requests: Sequence[SampleRequest],
        policy: SamplingPolicy,
        *,
        keep_texts: bool = False,
        on_done: Callable[[float], None] | None = None,
        **more: Any,
    ) -> list[SampleTally]:
        """See `sftknow.grading.sampling.Sampler.sample`. Raises OutOfTimeError."""

        def told(count: float) -> None:
            if on_done is not None:
                on_done(count)
            if stops:
                self._look()

        stops = bool(getattr(self.inner, "stops", False))
        self._look()
        return self.inner.sample(requests, policy, keep_texts=keep_texts, on_done=told, **more)

    def _look(self) -> None:
        if self.over():
            raise OutOfTimeError(self.words)
