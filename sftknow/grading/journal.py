"""What a shard's statements gave so far, in a file beside it: a kill costs a minute, however long a shard takes.

A line a statement, added every minute. The file goes when the shard is written, whose bytes are those of a shard that
was never stopped: a statement's samples do not depend on which others are continued beside it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sftknow.artifacts.journal import KeyedLines
from sftknow.grading.sampling import SampleRequest
from sftknow.records import SampleTally, SamplingPolicy

EVERY = 60.0
"""Seconds between two savings."""


class Journal:
    """Tallies of some requests by their place among them.

    Args:
        path: of the file, there or not.
        key: of the work; what another work wrote is passed over.
        requests: those whose tallies it holds.
        policy: how they are sampled.
        keep_texts: whether the continuations are among the tallies.
        every: seconds between two savings.
    """

    def __init__(
        self,
        path: Path,
        key: str,
        requests: Sequence[SampleRequest],
        policy: SamplingPolicy,
        *,
        keep_texts: bool,
        every: float = EVERY,
    ) -> None:
        self.path, self.every = path, every
        self._requests, self._policy, self._keep_texts = requests, policy, keep_texts
        self._entries: list[list[Any]] = []
        self._saved = time.monotonic()
        self.known: dict[int, SampleTally] = {}
        """What earlier starts found."""
        self._lines = KeyedLines(path, {"key": key, "texts": keep_texts}, self._take)

    def add(self, place: int, tally: SampleTally) -> None:
        """Note what a request gave; on disk within a minute."""
        self._entries.append([place, tally.hits, tally.texts])
        if time.monotonic() - self._saved >= self.every:
            self.save()

    def save(self) -> None:
        """Write what was noted since the last time."""
        if self._entries:
            self._lines.append(self._entries)
            self._entries.clear()
        self._saved = time.monotonic()

    def remove(self) -> None:
        """The shard is written."""
        self._entries.clear()
        self.path.unlink(missing_ok=True)

    def _take(self, entry: Any) -> None:
        place, hits, texts = entry
        self.known[place] = self._tally(place, hits, texts)

    def _tally(self, place: int, hits: int, texts: list[str] | None) -> SampleTally:
        request, tries = self._requests[place], self._policy.samples
        if place < 0 or not 0 <= hits <= tries or (texts is None) == self._keep_texts:
            raise ValueError(place)
        if texts is not None and (len(texts) != tries or not all(isinstance(text, str) for text in texts)):
            raise ValueError(place)
        return SampleTally(
            fact_id=request.fact_id,
            template=request.template,
            tries=tries,
            hits=hits,
            texts=None if texts is None else tuple(texts),
        )
