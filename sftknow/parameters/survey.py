"""The pass over both checkpoints: hashes, checks, and exact counts of r, by several threads in bounded memory.

r is counted by the upper 16 bits of its float32 pattern; values of a few of these 65,536 *bins* are counted by their
lower 16 bits too, chunk by chunk, and spooled to a temporary file. `ranking` names the bins that the cuts will fall in,
from a sample; where it was right, one pass is all that is needed, and where it was wrong the second pass knows them.

*Intervals* number the bins by them: with f such bins, ascending, interval 2j + 1 is the j-th bin, interval 2j what lies
right below it.
"""

from __future__ import annotations

import math
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from sftknow.checkpoints.reader import FLOAT_BITS, CheckpointReader, nonfinite
from sftknow.errors import CheckpointError
from sftknow.parameters.chunk_counters import ROOM, ChunkCounters, counter_bytes
from sftknow.parameters.hashing import RegionHash
from sftknow.parameters.key_order import Workload
from sftknow.parameters.leveling import LevelSelector
from sftknow.parameters.pairs import CheckpointPair, TensorPair
from sftknow.parameters.passes import PIECE, Chunk, chunks, pieces, quiet_elements, shown
from sftknow.parameters.relative import (
    TOO_LARGE_MESSAGE,
    NonfiniteError,
    TooLargeError,
    changed_in_each,
    in_one_dtype,
)
from sftknow.parameters.selection import BINS
from sftknow.parameters.survey_kernels import add_entries
from sftknow.workers import share_jobs

PIECES = ROOM // PIECE
"""Pieces that are counted together, where a tensor has as many."""

_OVERHEAD = 256 << 20  # the interpreter with NumPy, numba, pyarrow and the Hub's client
# What each tensor takes, measured: in the headers of both sides and the pair; for each level what is selected of it, as
# arrays and in the analysis; for each bin its interval.
_TENSOR_BYTES, _LEVEL_BYTES, _BIN_BYTES = 3200, 48, 16
_SPOOL_BYTES = 1 << 24  # kept in memory up to here, in a temporary file beyond
_MOST_SAMPLES = 4096


class Survey:
    """What a pass has counted.

    Args:
        pair: that is passed over.
        bins: to be counted by lower halves.
        selector: whose ranks r is counted by; None for no ranks.
        hashed: whether to hash the region's bytes.

    Attributes:
        chunks: of the region, in global order.
        bins: ascending.
        histogram: changed elements, (2 · rank + 1 where the base is 0, bin, [count, sum of lower halves]).
        above_edge: for `QuarterDecades`.
        intervals: changed elements by (tensor, interval).
        changed: changed elements by chunk.
        sums: sum of r by (chunk, whether the base is 0).
        ranks: by (tensor, rank, [elements, changed elements]).
        hashes: of base and fine-tuned; None where they were not asked for.
        records: by chunk: where its entries (see `survey_kernels`) start in the spool, and how many there are.
        mixed_changes: of elements stored in two dtypes: changed in the coarser dtype, changed as stored.
        fine: changed elements in ``bins``: (whether the base is 0, place of the bin, lower half), flat.
    """

    def __init__(self, pair: CheckpointPair, bins: Sequence[int], selector: LevelSelector | None, hashed: bool) -> None:
        self.chunks = list(chunks(pair, PIECES))
        self.bins = sorted(bins)
        ranks, tensors, parts = rank_count(selector), len(pair.tensors), len(self.chunks)
        self.histogram: NDArray[np.int64] = np.zeros((2 * ranks, BINS, 2), dtype=np.int64)
        self.above_edge: NDArray[np.int64] = np.zeros(BINS, dtype=np.int64)
        self.intervals: NDArray[np.int64] = np.zeros((tensors, 2 * len(bins) + 1), dtype=np.int64)
        self.changed: NDArray[np.int32] = np.zeros(parts, dtype=np.int32)
        self.sums: NDArray[np.float64] = np.zeros((parts, 2))
        self.ranks: NDArray[np.int64] = np.zeros((tensors, ranks, 2), dtype=np.int64)
        self.hashes = (RegionHash(pair.tensors, "base"), RegionHash(pair.tensors, "tuned")) if hashed else None
        self.records: NDArray[np.int64] = np.zeros((parts, 2), dtype=np.int64)
        self.fine: NDArray[Any] = np.zeros(2 * len(bins) * BINS, dtype=count_dtype(pair))
        self.mixed_changes: NDArray[np.int64] = np.zeros(2, dtype=np.int64)
        self._spool = tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)  # noqa: SIM115
        self._lock = threading.Lock()

    def add(self, number: int, counters: ChunkCounters, elements: NDArray[np.int64]) -> None:
        """Add what a chunk has come to; ``elements`` by rank."""
        found, entries, position = counters.found, counters.take_entries(), self.chunks[number].position
        self.changed[number] = found.changed.sum()
        self.sums[number] = found.sums
        with self._lock:
            self.intervals[position] += found.intervals
            self.ranks[position] += np.stack([elements, found.changed], axis=1)
            if entries.size:
                self.records[number] = self._spool.tell(), entries.size
                self._spool.write(entries.data)
                add_entries(entries, self.fine.size // 2, self.fine)

    def entries(self, number: int) -> NDArray[np.uint64]:
        """A chunk's elements in ``bins``."""
        start, count = self.records[number].tolist()
        with self._lock:
            self._spool.seek(start)
            return np.frombuffer(self._spool.read(8 * count), dtype=np.uint64)

    def close(self) -> None:
        """Forget what was spooled."""
        self._spool.close()


class _Surveyor:
    """One thread's buffers and counters."""

    def __init__(
        self, work: Workload, reader: CheckpointReader, survey: Survey | None, selector: LevelSelector | None
    ) -> None:
        self._work = work
        self._reader = reader
        self._survey = survey
        self._selector = selector
        self._buffers: NDArray[np.uint32] = np.empty((2, work.resources.block), dtype=np.uint32)
        self._ranks: NDArray[np.uint8] = np.empty(0 if selector is None else work.resources.block, dtype=np.uint8)
        self.mixed_changes: NDArray[np.int64] = np.zeros(2, dtype=np.int64)
        """Of values whose dtypes differ: changed in the coarser dtype, changed as stored."""
        self.counters = ChunkCounters(work.measure, survey.bins if survey else [], rank_count(selector))

    def __call__(self, job: tuple[int, Chunk]) -> int:
        """Count one chunk."""
        number, chunk = job
        survey, counters, block = self._survey, self.counters, self._work.resources.block
        assert survey is not None
        tensor = self._work.pair.tensors[chunk.position]
        counters.start()
        elements = np.zeros(counters.found.changed.size, dtype=np.int64)
        for piece, first, end in pieces(chunk):
            hashers = (xxhash.xxh3_128(), xxhash.xxh3_128()) if survey.hashes else ()
            for start in range(first, end, block):
                bits = self.count(tensor, start, min(block, end - start), elements)
                for hasher, side in zip(hashers, bits, strict=False):
                    hasher.update(side.data)
            for found, hasher in zip(survey.hashes or (), hashers, strict=True):
                found.add(chunk.position, piece, hasher.digest())
        counters.finish()
        survey.add(number, counters, elements)
        return chunk.count

    def count(
        self, tensor: TensorPair, first: int, count: int, elements: NDArray[np.int64] | None = None
    ) -> list[NDArray[Any]]:
        """Read a part of a tensor and count it; returns the stored bits, which the next call overwrites.

        Raises:
            CheckpointError: a NaN or an infinity, a file that cannot be read, a value too large for the arithmetic.
        """
        base, tuned = sides = [
            row.view(FLOAT_BITS[entry.dtype])[:count]
            for row, entry in zip(self._buffers, (tensor.base, tensor.tuned), strict=True)
        ]
        self._reader.read_into(tensor.base, first, base)
        self._reader.read_into(tensor.tuned, first, tuned)
        dtypes = tensor.base.dtype, tensor.tuned.dtype
        ranks = None
        try:
            if self._selector and elements is not None:
                ranks = self._ranks[:count]
                self._selector.ranks(base, dtypes[0], tuned, dtypes[1], tensor.first + first, ranks)
                elements += np.bincount(ranks, minlength=elements.size)
            stored = (base, dtypes[0]), (tuned, dtypes[1])
            if dtypes[0] == dtypes[1]:
                self.counters.count(base, dtypes[0], tuned, dtypes[1], ranks)
            else:
                before, after = in_one_dtype(*stored) if self._work.measure.compare_in == "coarser" else stored
                self.counters.count(before[0], before[1], after[0], after[1], ranks)
                self.mixed_changes += changed_in_each(*stored)
        except NonfiniteError:
            raise CheckpointError(_nonfinite_message(self._work, tensor)) from None
        except TooLargeError:
            raise CheckpointError(f"{tensor.name}: {TOO_LARGE_MESSAGE}") from None
        return sides


def survey_region(
    work: Workload, bins: Sequence[int], selector: LevelSelector | None = None, *, hashed: bool, description: str
) -> Survey:
    """Pass once over the region.

    Args:
        work: the pair and how to treat it.
        bins: to be counted by lower halves.
        selector: r is then counted by ranks, and not by lower halves.
        hashed: whether to hash the region's bytes.
        description: for the progress bar.

    Raises:
        CheckpointError: a NaN or infinity, a file that cannot be read, more levels than the memory takes.
    """
    threads = _threads(work, len(bins), rank_count(selector))
    survey = Survey(work.pair, bins, selector, hashed)
    threads = max(1, min(threads, len(survey.chunks)))
    quiet = quiet_elements(work.resources)
    try:
        with CheckpointReader() as reader, shown(work.pair.elements, description, quiet=quiet) as advance:
            workers = share_jobs(
                enumerate(survey.chunks), lambda: _Surveyor(work, reader, survey, selector), threads, advance
            )
    except BaseException:
        survey.close()
        raise
    for worker in workers:
        survey.histogram += worker.counters.found.histogram
        survey.above_edge += worker.counters.found.above_edge
        survey.mixed_changes += worker.mixed_changes
    return survey


def rank_count(selector: LevelSelector | None) -> int:
    """How many ranks r is counted by."""
    return 1 if selector is None else len(selector.cuts) + 1


def sample(work: Workload) -> tuple[NDArray[np.int64], int]:
    """Count r by bins, unchanged elements among them, over stretches strewn over the region.

    Returns:
        Counts, shape (65,536,), and the elements sampled; 0 where a sampled value is NaN or infinite, which the pass
        over the region will name.
    """
    pair, size = work.pair, work.resources.sample
    stretches = min(max(pair.elements // (192 * size), 128), _MOST_SAMPLES)
    places = np.sort(np.random.default_rng(0).integers(0, pair.elements, stretches))
    owners = np.searchsorted([tensor.first for tensor in pair.tensors], places, side="right") - 1
    sampled = in_chunk = 0
    dtypes = ("", "")
    work = replace(work, resources=replace(work.resources, block=size))
    with CheckpointReader() as reader:
        surveyor = _Surveyor(work, reader, None, None)
        for place, owner in zip(places.tolist(), owners.tolist(), strict=True):
            tensor = pair.tensors[owner]
            first = place - tensor.first
            count = min(size, tensor.elements - first)
            if (tensor.base.dtype, tensor.tuned.dtype) != dtypes or in_chunk + count > ROOM:
                surveyor.counters.finish()
                dtypes, in_chunk = (tensor.base.dtype, tensor.tuned.dtype), 0
            try:
                surveyor.count(tensor, first, count)
            except CheckpointError:
                return surveyor.counters.found.histogram[0, :, 0], 0
            sampled += count
            in_chunk += count
        surveyor.counters.finish()
    counts = surveyor.counters.found.histogram[:, :, 0].sum(axis=0)
    counts[0] += sampled - int(counts.sum())
    return counts, sampled


def most_bins(work: Workload) -> int:
    """How many bins one thread could count by lower halves within the memory."""
    return max(1, (_room(work, 1) - _thread_bytes(work, 1)) // _bin_bytes(work.pair))


def _thread_bytes(work: Workload, ranks: int) -> int:
    return counter_bytes(ranks) + 8 * work.resources.block + (8 << 20)


def _bin_bytes(pair: CheckpointPair) -> int:
    return 2 * BINS * count_dtype(pair).itemsize + _BIN_BYTES * len(pair.tensors)


def count_dtype(pair: CheckpointPair) -> np.dtype[Any]:
    """Of `Survey.fine`, which is what many levels need most memory for."""
    return np.dtype(np.uint32 if pair.elements < 1 << 32 else np.int64)


def _room(work: Workload, ranks: int) -> int:
    """Bytes for threads and bins."""
    tensors = len(work.pair.tuned.tensors) * (_TENSOR_BYTES + work.levels * _LEVEL_BYTES)
    return work.resources.bytes - _OVERHEAD - _SPOOL_BYTES - 2 * ranks * BINS * 16 - tensors


def _threads(work: Workload, counted: int, ranks: int) -> int:
    """As many threads as were asked for, or fewer where their counters would not fit into the memory."""
    by_thread = _thread_bytes(work, ranks)
    room = _room(work, ranks) - counted * _bin_bytes(work.pair)
    if room < by_thread:
        memory = work.resources.bytes
        # In the end each level may have a bin of its own.
        bins = max(work.levels + 1 - counted, 0) if ranks == 1 else 0
        needed = math.ceil((memory - room + by_thread + bins * _bin_bytes(work.pair)) / 10**6)
        raise CheckpointError(
            f"{memory / 10**6:.0f} MB of memory are too few; give {needed} MB (--memory), or ask for fewer levels"
        )
    return min(work.resources.threads, room // by_thread)


def _nonfinite_message(work: Workload, tensor: TensorPair) -> str:
    broken = []
    with CheckpointReader() as reader:
        for index, entry in ((work.pair.base, tensor.base), (work.pair.tuned, tensor.tuned)):
            counts = np.zeros(2, dtype=np.int64)
            for first in range(0, tensor.elements, work.resources.block):
                count = min(work.resources.block, tensor.elements - first)
                counts += nonfinite(reader.read(entry, first, count), entry.dtype)
            if counts.any():
                broken.append(f"{counts[0]} NaN and {counts[1]} infinite values in {index.folder}")
    return (
        f"{tensor.name} has {' and '.join(broken)}: such values have no relative change; use checkpoints without them, "
        "or a region without this tensor"
    )
