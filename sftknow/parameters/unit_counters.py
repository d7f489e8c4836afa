"""One thread's counters of r: what `survey` hands a block of stored bits to, and what a unit has come to.

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

from sftknow.parameters.pair_kernels import PAIRS, count_pairs, drain_pairs
from sftknow.parameters.relative import Measure
from sftknow.parameters.relative_kernels import KINDS, NONFINITE, STRETCH, TOO_LARGE, Scratch
from sftknow.parameters.selection import BINS
from sftknow.parameters.statistics import QuarterDecades
from sftknow.parameters.survey_kernels import merged, survey_block, unpack
from sftknow.parameters.units import PIECE, SPAN

_EDGE = np.uint16(0x8000)
_MANY_WORDS = 1 << 17  # among so many there may be many of the same: heavy ties would fill the disk
_INFINITIES = {"BF16": np.uint16(0x7F80)}
"""Of the dtypes that are counted by pairs."""


class BrokenError(Exception):
    """A NaN or an infinity was met."""


class TooLargeError(Exception):
    """A value was met that is infinite in the arithmetic bfloat16."""


class UnitCounters:
    """Counts units of at most ``room`` elements, one after another.

    Args:
        measure: what r is.
        bins: of r, counted by lower halves too, ascending.
        ranks: how many ranks there are that r is counted by; 1 where elements have none.
        room: elements of a unit at most.

    Attributes:
        histogram: of all units so far, (2 · rank + 1 where the base is 0, bin, [count, sum of lower halves]).
        above_edge: of all units so far, for `QuarterDecades`.
        zones: changed elements of this unit by zone.
        changed: of this unit by rank.
        sums: of r of this unit, by whether the base is 0.
    """

    def __init__(self, measure: Measure, bins: Sequence[int], ranks: int, room: int = SPAN * PIECE) -> None:
        self._epsilon = measure.stored_epsilon
        self._rounded = True if measure.arithmetic == "bfloat16" else None
        self._zone_of, self._special, self._edge_in = _lookups(bins)
        self._room = room
        self._scratch = Scratch()
        self._pairs: _Pairs | None = None
        self._pair_dtype = ""
        self._packed: NDArray[np.int64] | None = None
        self._beside_first: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._rows = 2 * ranks
        self.histogram: NDArray[np.int64] = np.zeros((self._rows, BINS, 2), dtype=np.int64)
        self.above_edge: NDArray[np.int64] = np.zeros(BINS, dtype=np.int64)
        self.zones: NDArray[np.int64] = np.zeros(2 * len(bins) + 1, dtype=np.int64)
        self.changed: NDArray[np.int64] = np.zeros(ranks, dtype=np.int64)
        self.sums: NDArray[np.float64] = np.zeros(2)
        self._words: NDArray[np.uint32] = np.zeros(room + 1 if bins else 1, dtype=np.uint32)

    def start(self) -> None:
        """Forget the last unit."""
        self.zones[:] = 0
        self.changed[:] = 0
        self.sums[:] = 0

    def count(
        self,
        base: NDArray[Any],
        base_dtype: str,
        tuned: NDArray[Any],
        tuned_dtype: str,
        ranks: NDArray[np.uint8] | None = None,
    ) -> None:
        """Count a block of a unit: stored bits, each shape (count,).

        Raises:
            BrokenError: a NaN or an infinity.
            TooLargeError: a value that is infinite in bfloat16, where that is the arithmetic.
        """
        if ranks is None and base_dtype == tuned_dtype and base_dtype in _INFINITIES:
            if self._pairs is None:
                self._pairs = _Pairs(self._room)
            self._pair_dtype = base_dtype
            mine = self._pairs
            infinity = _INFINITIES[base_dtype]
            found = count_pairs(base, tuned, infinity, mine.numbers, mine.pairs, mine.met, mine.far)
        else:
            found = self._count_one_by_one(base, base_dtype, tuned, tuned_dtype, ranks)
        _check(found)

    def _count_one_by_one(
        self,
        base: NDArray[Any],
        base_dtype: str,
        tuned: NDArray[Any],
        tuned_dtype: str,
        ranks: NDArray[np.uint8] | None,
    ) -> int:
        if self._packed is None:
            self._packed = np.zeros((self._rows, BINS), dtype=np.int64)
            self._beside_first = np.zeros(BINS, dtype=np.int64)
        scratch = self._scratch
        return survey_block(
            base,
            KINDS[base_dtype],
            tuned,
            KINDS[tuned_dtype],
            None if base_dtype == tuned_dtype else True,
            self._epsilon,
            self._rounded,
            ranks,
            scratch.places,
            scratch.base,
            scratch.tuned,
            scratch.bits,
            self._special,
            self._edge_in,
            self._packed,
            self._beside_first,
            self.above_edge,
            self._words,
        )

    def finish(self) -> None:
        """Bring the unit, of one dtype on each side, into ``histogram``, ``zones``, ``changed`` and ``sums``."""
        if self._pair_dtype:
            mine, scratch = self._pairs, self._scratch
            assert mine is not None
            found = drain_pairs(
                mine.pairs,
                mine.met,
                mine.far,
                KINDS[self._pair_dtype],
                self._epsilon,
                self._rounded,
                scratch.base,
                scratch.tuned,
                scratch.bits,
                mine.numbers,
                self._zone_of,
                self._special,
                self._edge_in,
                self.histogram,
                self.zones,
                self.changed,
                self.sums,
                self.above_edge,
                self._words,
            )
            self._pair_dtype = ""
            _check(found)
        elif self._packed is not None:
            unpack(self._packed, self._beside_first, self._zone_of, self.histogram, self.zones, self.changed, self.sums)

    def by_lower_halves(self) -> NDArray[np.uint32]:
        """Words (see `survey_kernels`) of the unit's elements in ``bins``, which are forgotten."""
        found = self._words[: int(self._words[-1])]
        self._words[-1] = 0
        return merged(found) if found.size > _MANY_WORDS else found.copy()


class _Pairs:
    """What `count_pairs` works in."""

    def __init__(self, room: int) -> None:
        self.numbers: NDArray[np.uint32] = np.empty(STRETCH + 16, dtype=np.uint32)
        # Not from NumPy, which asks for huge pages: most of the table is never touched.
        self.pairs: NDArray[np.uint32] = np.frombuffer(mmap.mmap(-1, 4 * PAIRS), dtype=np.uint32)
        self.met: NDArray[np.uint32] = np.zeros(room + 1, dtype=np.uint32)
        self.far: NDArray[np.uint32] = np.zeros(room + 1, dtype=np.uint32)


def counter_bytes(ranks: int) -> int:
    """Memory of one thread's counters."""
    return (2 * ranks * 24 + 8) * BINS + 4 * PAIRS + 3 * 4 * SPAN * PIECE + (4 << 20)


def _check(found: int) -> None:
    if found == NONFINITE:
        raise BrokenError
    if found == TOO_LARGE:
        raise TooLargeError


def _lookups(bins: Sequence[int]) -> tuple[NDArray[np.uint16], NDArray[np.uint16], NDArray[np.uint32]]:
    """By bin: its zone, and ``special`` and ``edge_in`` of `survey_kernels.survey_block`."""
    zone_of = (2 * np.searchsorted(np.asarray(bins, dtype=np.int64), np.arange(BINS))).astype(np.uint16)
    zone_of[list(bins)] += 1
    special = np.zeros(BINS, dtype=np.uint16)
    special[list(bins)] = 1 + np.arange(len(bins))
    edge_in = QuarterDecades().edge_in
    special[edge_in != 0xFFFF_FFFF] |= _EDGE
    return zone_of, special, edge_in
