"""One thread's counters of r: what `survey` hands a block of stored bits to, and what a chunk has come to.

bfloat16 on both sides is counted by pairs of values (`pair_kernels`), which takes half the time; all others, and where
elements have ranks, one by one (`survey_kernels`). Both ways give the same counts. float16 would fit the pairs too, but
with its finer steps fine-tuning makes so many different ones that it would take longer.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sftknow.parameters.pair_kernels import PAIRS, Pairs, count_pairs, drain_pairs
from sftknow.parameters.passes import PIECE
from sftknow.parameters.relative import Measure, NonfiniteError, TooLargeError
from sftknow.parameters.relative_kernels import KINDS, NONFINITE, STRETCH, TOO_LARGE, Formula, new_scratch
from sftknow.parameters.selection import BINS
from sftknow.parameters.statistics import QuarterDecades
from sftknow.parameters.survey_kernels import EDGE, Counters, merged, survey_block, unpack

ROOM = 2 * PIECE
"""Elements of a chunk at most."""

_MANY_ENTRIES = 1 << 17  # among so many there may be many of the same: heavy ties would fill the disk
_INFINITIES = {"BF16": np.uint16(0x7F80)}
"""Of the dtypes that are counted by pairs."""


class ChunkCounters:
    """Counts chunks of at most `ROOM` elements, one after another: `start`, `count` its blocks, `finish`.

    Args:
        measure: what r is.
        bins: of r, counted by lower halves too, ascending.
        ranks: how many ranks there are that r is counted by; 1 where elements have none.

    Attributes:
        found: what was counted, of the chunk once it is finished, and of all so far.
    """

    def __init__(self, measure: Measure, bins: Sequence[int], ranks: int) -> None:
        self._epsilon = measure.stored_epsilon
        self._rounded = measure.rounded
        self._scratch = new_scratch()
        self._pairs: Pairs | None = None
        self._paired = ""  # the dtype of the chunk, where it is counted by pairs
        self.found = _new_counters(bins, ranks)

    def start(self) -> None:
        """Forget the last chunk."""
        for counts in (self.found.intervals, self.found.changed, self.found.sums):
            counts[:] = 0

    def count(
        self,
        base: NDArray[Any],
        base_dtype: str,
        tuned: NDArray[Any],
        tuned_dtype: str,
        ranks: NDArray[np.uint8] | None = None,
    ) -> None:
        """Count a block of a chunk: stored bits, each shape (count,).

        Raises:
            NonfiniteError: a NaN or an infinity.
            TooLargeError: a value that is infinite in bfloat16, where that is the arithmetic.
        """
        if ranks is None and base_dtype == tuned_dtype and base_dtype in _INFINITIES:
            if self._pairs is None:
                self._pairs = _new_pairs()
            self._paired = base_dtype
            _check(count_pairs(base, tuned, _INFINITIES[base_dtype], self._pairs))
            return
        formula = Formula(KINDS[base_dtype], KINDS[tuned_dtype], self._epsilon)
        mixed = None if base_dtype == tuned_dtype else True
        _check(survey_block(base, tuned, formula, mixed, self._rounded, ranks, self._scratch, self.found))

    def finish(self) -> None:
        """Bring the chunk, of one dtype on each side, into ``found``."""
        if self._pairs and self._paired:
            kind, self._paired = KINDS[self._paired], ""
            _check(drain_pairs(self._pairs, kind, self._epsilon, self._rounded, self._scratch, self.found))
        else:
            unpack(self.found)

    def take_entries(self) -> NDArray[np.uint64]:
        """The chunk's elements in ``bins`` (see `survey_kernels`), which are forgotten."""
        entries = self.found.entries[: int(self.found.entries[-1])]
        self.found.entries[-1] = 0
        return merged(entries) if entries.size > _MANY_ENTRIES else entries.copy()


def counter_bytes(ranks: int) -> int:
    """Memory of one thread's counters. Elements that have ranks are not counted by pairs nor by lower halves."""
    closely = 4 * PAIRS + (2 * 4 + 8) * ROOM if ranks == 1 else 0
    return (2 * ranks * 24 + 16) * BINS + closely + (4 << 20)


def _check(found: int) -> None:
    if found == NONFINITE:
        raise NonfiniteError
    if found == TOO_LARGE:
        raise TooLargeError


def _new_pairs() -> Pairs:
    return Pairs(
        numbers=np.empty(STRETCH + 16, dtype=np.uint32),
        # Not from NumPy, which asks for huge pages: most of the table is never touched.
        pairs=np.frombuffer(mmap.mmap(-1, 4 * PAIRS), dtype=np.uint32),
        met=np.zeros(ROOM + 1, dtype=np.uint32),
        far=np.zeros(ROOM + 1, dtype=np.uint32),
    )


def _new_counters(bins: Sequence[int], ranks: int) -> Counters:
    interval_of = (2 * np.searchsorted(np.asarray(bins, dtype=np.int64), np.arange(BINS))).astype(np.uint16)
    interval_of[list(bins)] += 1
    marks = np.zeros(BINS, dtype=np.uint16)
    marks[list(bins)] = 1 + np.arange(len(bins))
    edge_in = QuarterDecades().edge_in
    marks[edge_in != 0xFFFF_FFFF] |= EDGE
    return Counters(
        interval_of=interval_of,
        marks=marks,
        edge_in=edge_in,
        packed=np.zeros((2 * ranks, BINS), dtype=np.int64),
        second=np.zeros(BINS, dtype=np.int64),
        histogram=np.zeros((2 * ranks, BINS, 2), dtype=np.int64),
        above_edge=np.zeros(BINS, dtype=np.int64),
        intervals=np.zeros(2 * len(bins) + 1, dtype=np.int64),
        changed=np.zeros(ranks, dtype=np.int64),
        sums=np.zeros(2),
        entries=np.zeros(ROOM + 1 if bins else 1, dtype=np.uint64),
    )
