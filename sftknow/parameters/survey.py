"""The pass over both checkpoints: hashes, checks, and exact counts of r, by several threads in bounded memory.

r is counted by the upper 16 bits of its float32 pattern; values of a few of these 65,536 *bins* are counted by their
lower 16 bits too, unit by unit, and spooled to a temporary file. `ranking` names the bins that the cuts will fall in,
from a sample; where it was right, one pass is all that is needed, and where it was wrong the second pass knows them.

*Zones* number the bins by them: with f such bins, ascending, zone 2j + 1 is the j-th, zone 2j what lies right below.
"""

from __future__ import annotations

import math
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import IO, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from sftknow.checkpoints.reader import FLOAT_BITS, CheckpointReader, nonfinite
from sftknow.errors import CheckpointError
from sftknow.machine import available_processors
from sftknow.parameters.bars import watched
from sftknow.parameters.leveling import LevelSelector
from sftknow.parameters.pairs import CheckpointPair, TensorPair, blocks
from sftknow.parameters.region_hash import RegionHash
from sftknow.parameters.relative import TOO_LARGE_MESSAGE, Measure
from sftknow.parameters.selection import BINS
from sftknow.parameters.survey_kernels import add_words
from sftknow.parameters.unit_counters import BrokenError, TooLargeError, UnitCounters, counter_bytes
from sftknow.parameters.units import BLOCK, MEMORY, PIECE, SPAN, Unit, unit_count, units

_OVERHEAD = 256 << 20  # the interpreter with NumPy, numba and pyarrow
_QUIET = 300_000_000  # elements that take about a second: below, a progress bar is only noise
_SPOOL_BYTES = 1 << 24  # kept in memory up to here, in a temporary file beyond
_SAMPLED_AT_ONCE, _MOST_STRETCHES = 8192, 4096


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What stays the same through all passes over a pair."""

    pair: CheckpointPair
    measure: Measure
    memory: int = MEMORY
    block: int = BLOCK
    """Elements read at a time; no result depends on it."""


@dataclass
class Survey:
    """What a pass has counted."""

    bins: list[int]
    """Bins counted by lower halves, ascending."""
    histogram: NDArray[np.int64]
    """Changed elements: (2 · rank + 1 where the base is 0, bin, [count, sum of lower halves])."""
    above_edge: NDArray[np.int64]
    """For `QuarterDecades`."""
    zones: NDArray[np.int64]
    """Changed elements by (tensor, zone)."""
    changed: NDArray[np.int32]
    """Changed elements by unit."""
    sums: NDArray[np.float64]
    """Sum of r by (unit, whether the base is 0)."""
    ranks: NDArray[np.int64]
    """By (tensor, rank, [elements, changed elements]); only of `random`."""
    hashes: tuple[RegionHash, RegionHash] | None
    spool: IO[bytes]
    """Words (see `survey_kernels`), one record a unit."""
    records: NDArray[np.int64]
    """By unit: where its record starts, and its words."""
    fine: NDArray[Any]
    """Changed elements in ``bins``: (whether the base is 0, place of the bin, lower half), flat; uint32 or int64."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, position: int, zones: NDArray[np.int64], ranks: NDArray[np.int64]) -> None:
        """Add a unit's counts to its tensor's."""
        with self._lock:
            self.zones[position] += zones
            if self.ranks.size:
                self.ranks[position] += ranks

    def close(self) -> None:
        """Forget what was spooled."""
        self.spool.close()

    def keep(self, unit: int, words: NDArray[np.uint32]) -> None:
        """Spool a unit's record and add it up."""
        if not words.size:
            return
        with self._lock:
            self.records[unit] = self.spool.tell(), words.size
            self.spool.write(words.data)
            add_words(words, self.fine.size // 2, self.fine)

    def words(self, unit: int) -> NDArray[np.uint32]:
        """A unit's record."""
        start, count = self.records[unit].tolist()
        with self._lock:
            self.spool.seek(start)
            return np.frombuffer(self.spool.read(4 * count), dtype=np.uint32)


class _Worker:
    """One thread's readers, buffers and counters."""

    def __init__(self, work: Workload, bins: Sequence[int], selector: LevelSelector | None = None) -> None:
        self._pair = work.pair
        self._block = work.block
        self._selector = selector
        self._readers = CheckpointReader(work.pair.base), CheckpointReader(work.pair.tuned)
        self._buffers = np.empty(work.block, dtype=np.uint32), np.empty(work.block, dtype=np.uint32)
        self._ranks: NDArray[np.uint8] = np.empty(0 if selector is None else work.block, dtype=np.uint8)
        self.counters = UnitCounters(work.measure, bins, _rank_count(selector), SPAN * PIECE)

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self._readers:
            reader.__exit__()

    def do(self, number: int, unit: Unit, survey: Survey) -> None:
        """Count one unit."""
        tensor, counters = self._pair.tensors[unit.position], self.counters
        counters.start()
        elements = np.zeros(counters.changed.size, dtype=np.int64)
        last = unit.first + unit.count
        for piece, first in enumerate(range(unit.first, last, PIECE), unit.piece):
            hashers = (xxhash.xxh3_128(), xxhash.xxh3_128()) if survey.hashes else ()
            for start in range(first, min(first + PIECE, last), self._block):
                count = min(self._block, first + PIECE - start, last - start)
                ranks = None
                if self._selector:
                    ranks = self._ranks[:count]
                    self._selector.random_ranks(tensor.first + start, ranks)
                    elements += np.bincount(ranks, minlength=elements.size)
                blocks = self.count(tensor, start, count, ranks)
                for hasher, bits in zip(hashers, blocks, strict=False):
                    hasher.update(bits.data)
            for found, hasher in zip(survey.hashes or (), hashers, strict=True):
                found.add(unit.position, piece, hasher.digest())
        counters.finish()
        survey.changed[number] = counters.changed.sum()
        survey.sums[number] = counters.sums
        survey.keep(number, counters.by_lower_halves())
        survey.add(unit.position, counters.zones, np.stack([elements, counters.changed], axis=1))

    def count(
        self, tensor: TensorPair, first: int, count: int, ranks: NDArray[np.uint8] | None = None
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Read a part of a tensor and count it; returns the stored bits, which the next call overwrites.

        Raises:
            BrokenError: a NaN or an infinity.
            CheckpointError: a file that cannot be read, a value too large for the arithmetic.
        """
        base, tuned = self.read(0, tensor, first, count), self.read(1, tensor, first, count)
        try:
            self.counters.count(base, tensor.base.dtype, tuned, tensor.tuned.dtype, ranks)
        except TooLargeError:
            raise CheckpointError(f"{tensor.name}: {TOO_LARGE_MESSAGE}") from None
        return base, tuned

    def read(self, side: int, tensor: TensorPair, first: int, count: int) -> NDArray[Any]:
        entry = (tensor.base, tensor.tuned)[side]
        bits = self._buffers[side].view(FLOAT_BITS[entry.dtype])[:count]
        self._readers[side].read_into(entry, first, bits)
        return bits


def survey_region(
    work: Workload, bins: Sequence[int], selector: LevelSelector | None = None, *, hashed: bool, description: str
) -> Survey:
    """Pass once over the region.

    Args:
        work: the pair and how to treat it.
        bins: to be counted by lower halves.
        selector: of ``random``; r is then counted for each rank.
        hashed: whether to hash the region's bytes.
        description: for the progress bar.

    Raises:
        CheckpointError: a NaN or infinity, a file that cannot be read, more levels than the memory takes.
    """
    pair = work.pair
    threads = _threads(work, len(bins), _rank_count(selector))
    survey = _empty_survey(pair, bins, selector, hashed=hashed)
    queue = enumerate(units(pair, SPAN))
    next_unit, stop = threading.Lock(), threading.Event()
    broken: list[int] = []
    with ExitStack() as undo, watched(pair.elements, description, quiet=_QUIET) as advance:
        undo.callback(survey.close)

        def run() -> UnitCounters:
            with _Worker(work, survey.bins, selector) as worker:
                while not stop.is_set():
                    with next_unit:
                        number, unit = next(queue, (0, None))
                    if unit is None:
                        break
                    try:
                        worker.do(number, unit, survey)
                    except BrokenError:
                        broken.append(unit.position)
                        stop.set()
                    except BaseException:
                        stop.set()
                        raise
                    with next_unit:
                        advance(unit.count)
                return worker.counters

        with ThreadPoolExecutor(threads) as pool:
            futures = [pool.submit(run) for _ in range(threads)]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                stop.set()  # Ctrl-C must not wait for the whole region
            for future in futures:
                counters = future.result()
                survey.histogram += counters.histogram
                survey.above_edge += counters.above_edge
                del counters
        if broken:
            raise CheckpointError(_broken_message(work, pair.tensors[min(broken)]))
        undo.pop_all()
    return survey


def _rank_count(selector: LevelSelector | None) -> int:
    return 1 if selector is None else len(selector.cuts) + 1


def _empty_survey(pair: CheckpointPair, bins: Sequence[int], selector: LevelSelector | None, *, hashed: bool) -> Survey:
    tensors, ranks = len(pair.tensors), _rank_count(selector)
    return Survey(
        bins=sorted(bins),
        histogram=np.zeros((2 * ranks, BINS, 2), dtype=np.int64),
        above_edge=np.zeros(BINS, dtype=np.int64),
        zones=np.zeros((tensors, 2 * len(bins) + 1), dtype=np.int64),
        changed=np.zeros(unit_count(pair, SPAN), dtype=np.int32),
        sums=np.zeros((unit_count(pair, SPAN), 2)),
        ranks=np.zeros((tensors if selector else 0, ranks, 2), dtype=np.int64),
        hashes=(RegionHash(pair.tensors, "base"), RegionHash(pair.tensors, "tuned")) if hashed else None,
        spool=tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES),
        records=np.zeros((unit_count(pair, SPAN), 2), dtype=np.int64),
        fine=np.zeros(2 * len(bins) * BINS, dtype=_count_dtype(pair)),
    )


def read_unit(work: Workload, unit: Unit) -> Iterator[tuple[int, NDArray[Any], NDArray[Any]]]:
    """A unit's stored bits: (first element within the tensor, base, fine-tuned); overwritten by the next."""
    tensor = work.pair.tensors[unit.position]
    size = min(work.block, unit.count)
    base = np.empty(size, dtype=FLOAT_BITS[tensor.base.dtype])
    tuned = np.empty(size, dtype=FLOAT_BITS[tensor.tuned.dtype])
    with CheckpointReader(work.pair.base) as base_reader, CheckpointReader(work.pair.tuned) as tuned_reader:
        for first in range(unit.first, unit.first + unit.count, size):
            count = min(size, unit.first + unit.count - first)
            base_reader.read_into(tensor.base, first, base[:count])
            tuned_reader.read_into(tensor.tuned, first, tuned[:count])
            yield first, base[:count], tuned[:count]


def sample(work: Workload) -> tuple[NDArray[np.int64], int]:
    """Count r by bins, unchanged elements among them, over stretches strewn over the region.

    Returns:
        Counts, shape (65,536,), and the elements sampled; 0 where a sampled value is NaN or infinite, which the pass
        over the region will name.
    """
    pair = work.pair
    stretches = min(max(pair.elements // (192 * _SAMPLED_AT_ONCE), 128), _MOST_STRETCHES)
    places = np.sort(np.random.default_rng(0).integers(0, pair.elements, stretches))
    owners = np.searchsorted([tensor.first for tensor in pair.tensors], places, side="right") - 1
    sampled = in_unit = 0
    dtypes = ("", "")
    with _Worker(replace(work, block=_SAMPLED_AT_ONCE), []) as worker:
        for place, owner in zip(places.tolist(), owners.tolist(), strict=True):
            tensor = pair.tensors[owner]
            first = place - tensor.first
            count = min(_SAMPLED_AT_ONCE, tensor.elements - first)
            if (tensor.base.dtype, tensor.tuned.dtype) != dtypes or in_unit + count > PIECE:
                worker.counters.finish()
                dtypes, in_unit = (tensor.base.dtype, tensor.tuned.dtype), 0
            try:
                worker.count(tensor, first, count)
            except (BrokenError, CheckpointError):
                return worker.counters.histogram[0, :, 0], 0
            sampled += count
            in_unit += count
        worker.counters.finish()
        counts = worker.counters.histogram[:, :, 0].sum(axis=0)
    counts[0] += sampled - int(counts.sum())
    return counts, sampled


def most_bins(work: Workload) -> int:
    """How many bins one thread could count by lower halves within the memory."""
    return max(1, (_room(work, 1) - _thread_bytes(work, 1)) // _bin_bytes(work.pair))


def _thread_bytes(work: Workload, ranks: int) -> int:
    return counter_bytes(ranks) + 8 * work.block + (8 << 20)


def _bin_bytes(pair: CheckpointPair) -> int:
    return 2 * BINS * _count_dtype(pair).itemsize


def _count_dtype(pair: CheckpointPair) -> np.dtype[Any]:
    """Of `Survey.fine`, which is what many levels need most memory for."""
    return np.dtype(np.uint32 if pair.elements < 1 << 32 else np.int64)


def _room(work: Workload, ranks: int) -> int:
    """Bytes for threads and bins."""
    return work.memory - _OVERHEAD - _SPOOL_BYTES - 2 * ranks * BINS * 16


def _threads(work: Workload, counted: int, ranks: int) -> int:
    """As many threads as there are processors, or fewer where their counters would not fit into the memory."""
    by_thread = _thread_bytes(work, ranks)
    room = _room(work, ranks) - counted * _bin_bytes(work.pair)
    if room < by_thread:
        needed = math.ceil((work.memory - room + by_thread) / 10**6)
        raise CheckpointError(
            f"{work.memory / 10**6:.0f} MB of memory are too few; give {needed} MB (--memory), or ask for fewer levels"
        )
    return max(1, min(available_processors(), room // by_thread, unit_count(work.pair, SPAN)))


def _broken_message(work: Workload, tensor: TensorPair) -> str:
    broken = np.zeros((2, 2), dtype=np.int64)
    with CheckpointReader(work.pair.base) as base_reader, CheckpointReader(work.pair.tuned) as tuned_reader:
        for _, base, tuned in blocks(tensor, base_reader, tuned_reader, work.block):
            broken += [nonfinite(base, tensor.base.dtype), nonfinite(tuned, tensor.tuned.dtype)]
    sides = [
        f"{nan} NaN and {infinite} infinite values in {index.folder}"
        for index, (nan, infinite) in zip((work.pair.base, work.pair.tuned), broken.tolist(), strict=True)
        if nan or infinite
    ]
    return (
        f"{tensor.name} has {' and '.join(sides)}: such values have no relative change; use checkpoints without them, "
        "or a region without this tensor"
    )
