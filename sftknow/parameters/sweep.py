"""Writes several checkpoints in one pass over a fine-tuned one, each with other bytes in some tensors.

The output is cut into windows of at most four megabytes. A thread takes one, reads it from the fine-tuned checkpoint
and, where tensors are to change, from the base, has a `Painter` make the window of every output, and writes them all.
No window depends on another, so any number of threads may do this, and memory is window × outputs × threads whatever
the size of the model.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sftknow.checkpoints.direct_file import ALIGNMENT, DirectFile, SourceFiles, aligned_rows
from sftknow.checkpoints.layout import Layout, OutputShard
from sftknow.checkpoints.reader import FLOAT_BITS
from sftknow.errors import CheckpointError
from sftknow.parameters.pairs import TensorPair

_MEGABYTE = 10**6
_PROCESS = 200 * 10**6  # the interpreter, NumPy, Numba and its compiled kernels
_LARGEST_WINDOW = 1 << 22  # where a disk takes as much as it ever does
_SMALLEST_WINDOW = 1 << 16
_THREADS = 6  # two cores are busy with that many, since a thread mostly waits for the disk


class Painter(Protocol):
    """Makes one block of a tensor for every output. Called by many threads at once."""

    outputs: int
    """How many outputs there are."""

    def kinds(self, shard: OutputShard) -> Sequence[Hashable]:
        """For each output what its bytes of this shard depend on: outputs of equal kinds are probably the same bytes.

        They are compared; a wrong guess costs time and nothing else.
        """

    def paint(
        self,
        tensor: TensorPair,
        first: int,
        base: NDArray[Any],
        tuned: NDArray[Any],
        rows: NDArray[Any],
        start: int,
        counts: NDArray[np.int64],
    ) -> None:
        """Fill the block of every output.

        Args:
            tensor: the one that the block is of.
            first: its first element, within the tensor.
            base: stored bits, shape (count,).
            tuned: stored bits, shape (count,).
            rows: of the tuned dtype's bits, shape (outputs, at least start + count), contiguous.
            start: where in the rows the block goes.
            counts: what the painter counts, added to.
        """


@dataclass
class _ShardWork:
    """One shard of all outputs."""

    shard: OutputShard
    leaders: list[int]
    """By output: the output whose file is written for it, itself or an earlier one."""
    windows_left: int
    plain: bool
    """Whether nothing of it changes, so that all outputs have the same bytes."""
    files: dict[int, DirectFile] = field(default_factory=dict)
    astray: dict[int, list[int]] = field(default_factory=dict)
    """By output that follows another: windows in which their bytes differ after all."""
    opened: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


class _Buffers(threading.local):
    """What one thread works in."""

    window = 0
    rows: NDArray[np.uint8]
    tuned: NDArray[np.uint8]
    base: NDArray[np.uint8]
    scratch: NDArray[np.uint8]
    counts: NDArray[np.int64]


class Sweep:
    """One pass that writes every shard of every output.

    Args:
        layout: of every output.
        folders: where each output goes; what is there already is compared and gone on with.
        region: the tensors that the painter makes; all others are bit copies.
        painter: makes them.
        counts: shape of what the painter counts.
        memory: bytes that the whole process may take.
        links: whether outputs that have the same bytes in a shard share one file with several names.
        advance: is told of the megabytes done.
    """

    def __init__(
        self,
        layout: Layout,
        folders: Sequence[Path],
        region: Mapping[str, TensorPair],
        painter: Painter,
        *,
        counts: tuple[int, ...],
        memory: int,
        links: bool,
        advance: Callable[[int], object],
    ) -> None:
        self.layout = layout
        self.folders = folders
        self._region = region
        self._painter = painter
        self._advance = advance
        self._links = links
        self._window, self._threads = window_bytes(memory, len(folders))
        self._buffers = _Buffers()
        self._counts_shape = counts
        self._counts: list[NDArray[np.int64]] = []
        self._lock = threading.Lock()
        self._done = 0
        self._failure: BaseException | None = None
        self.written = 0
        """Bytes that had to be written, once `run` is done: fewer where an earlier start had come far."""

    def run(self) -> NDArray[np.int64]:
        """Write everything; return what the painter counted.

        Raises:
            CheckpointError: a file ends too early, or what the painter raises.
            OSError: a file cannot be read or written, a full disk among the reasons.
        """
        works = [self._work(shard) for shard in self.layout.shards]
        windows = self._windows(works)
        lock = threading.Lock()

        def labour() -> None:
            self._prepare()
            while self._failure is None:
                with lock:
                    work, first = next(windows, (None, 0))
                if work is None:
                    return
                try:
                    self._do(work, first)
                except BaseException as error:
                    with self._lock:
                        self._failure = self._failure or error
                    return

        with SourceFiles() as sources:
            self._sources = sources
            try:
                with ThreadPoolExecutor(self._threads) as pool:
                    labours = [pool.submit(labour) for _ in range(self._threads)]
                    try:
                        for done in labours:
                            done.result()
                    except BaseException as error:  # an interruption: the threads end before the files are closed
                        self._failure = self._failure or error
                        raise
            finally:
                for work in works:
                    for file in work.files.values():
                        file.close()
            if self._failure is not None:
                raise self._failure
            counts = sum(self._counts, np.zeros(self._counts_shape, dtype=np.int64))
            self._prepare()
            for work in works:
                self._share(work)
        return counts

    def _work(self, shard: OutputShard) -> _ShardWork:
        kinds = self._painter.kinds(shard)
        leaders = [kinds.index(kind) if self._links else i for i, kind in enumerate(kinds)]
        return _ShardWork(
            shard=shard,
            leaders=leaders,
            windows_left=-(-shard.size // self._window),
            plain=self._region.keys().isdisjoint(shard.tensors),
        )

    def _windows(self, works: list[_ShardWork]) -> Iterator[tuple[_ShardWork, int]]:
        for work in works:
            for first in range(0, work.shard.size, self._window):
                yield work, first

    def _prepare(self) -> None:
        """Give the calling thread its memory."""
        mine, window = self._buffers, self._window
        if mine.window == window:
            return
        mine.window = window
        mine.rows = aligned_rows(self._painter.outputs, window)
        # The base's elements may be twice as wide, and an element may be cut by the window's edges.
        mine.tuned, mine.scratch = aligned_rows(2, window)
        mine.base = aligned_rows(1, 2 * window + ALIGNMENT)[0]
        mine.counts = np.zeros(self._counts_shape, dtype=np.int64)
        with self._lock:
            self._counts.append(mine.counts)

    def _do(self, work: _ShardWork, first: int) -> None:
        last = min(first + self._window, work.shard.size)
        rows = self._buffers.rows[:1] if work.plain else self._buffers.rows
        self._fill(work.shard, first, last, rows, self._buffers.counts)
        self._open(work)
        padded = -(-(last - first) // ALIGNMENT) * ALIGNMENT
        turn = first // self._window
        outputs = sorted(work.files)
        for i in range(len(outputs)):  # threads start at different files, which lock for the length of a write
            output = outputs[(i + turn) % len(outputs)]
            work.files[output].write(first, rows[0 if work.plain else output, :padded], self._buffers.scratch)
        made = rows[:, : last - first]
        for output, leader in enumerate(work.leaders):
            if leader != output and not work.plain and not np.array_equal(made[output], made[leader]):
                with work.lock:
                    work.astray.setdefault(output, []).append(first)
        self._tell((last - first) * len(work.leaders))
        with work.lock:
            work.windows_left -= 1
            finished = not work.windows_left
        if finished:
            for file in work.files.values():
                file.finish()
                self.written += file.written

    def _tell(self, done: int) -> None:
        with self._lock:
            self._done, rest = divmod(self._done + done, _MEGABYTE)
            self._advance(self._done)
            self._done = rest

    def _open(self, work: _ShardWork) -> None:
        with work.lock:
            if work.opened:
                return
            for output, leader in enumerate(work.leaders):
                if leader != output:
                    (self.folders[output] / work.shard.name).unlink(missing_ok=True)
            for output in sorted(set(work.leaders)):
                work.files[output] = DirectFile(self.folders[output] / work.shard.name, work.shard.size)
            work.opened = True

    def _fill(
        self, shard: OutputShard, first: int, last: int, rows: NDArray[np.uint8], counts: NDArray[np.int64]
    ) -> None:
        """Make the window ``first … last − 1`` of every output in this thread's rows.

        Args:
            rows: these, or the first alone where all are the same.
        """
        for segment, start, end in shard.window(first, last):
            here = slice(start - first, end - first)
            if isinstance(segment.source, bytes):
                offset = segment.offset + start - segment.start
                literal = np.frombuffer(segment.source, dtype=np.uint8)
                rows[:, here] = literal[offset : offset + end - start]
                continue
            pair = self._region.get(segment.tensor or "")
            offset = segment.offset + start - segment.start
            self._read(segment.source, offset, self._buffers.tuned[here])
            if pair is None:
                rows[:, here] = self._buffers.tuned[here]
                continue
            self._paint(pair, start - segment.start, end - segment.start, here, counts)

    def _paint(self, pair: TensorPair, start: int, end: int, here: slice, counts: NDArray[np.int64]) -> None:
        """Make bytes ``start … end − 1`` of a tensor; ``here`` is their place in the window."""
        bits = FLOAT_BITS[pair.tuned.dtype]
        common = pair.elements * bits.itemsize
        rows, tuned = self._buffers.rows, self._buffers.tuned
        if end > common:  # rows that the base has not
            tail = slice(here.start + max(common - start, 0), here.stop)
            rows[:, tail] = tuned[tail]
            end, here = common, slice(here.start, tail.start)
            if start >= end:
                return
        if start % bits.itemsize or end % bits.itemsize or here.start % bits.itemsize:
            self._paint_cut(pair, start, end, here, counts)
            return
        first, count = start // bits.itemsize, (end - start) // bits.itemsize
        base = self._base(pair, first, count)
        place = here.start // bits.itemsize
        self._painter.paint(pair, first, base, tuned[here].view(bits), rows.view(bits), place, counts)

    def _paint_cut(self, pair: TensorPair, start: int, end: int, here: slice, counts: NDArray[np.int64]) -> None:
        """The same where the file has its elements at odd places, so that windows cut through them."""
        bits = FLOAT_BITS[pair.tuned.dtype]
        first, last = start // bits.itemsize, -(-end // bits.itemsize)
        tuned = np.empty(last - first, dtype=bits)
        self._read(pair.tuned.file, pair.tuned.start + first * bits.itemsize, tuned)
        base = np.array(self._base(pair, first, last - first))
        made = np.empty((self._painter.outputs, last - first), dtype=bits)
        # An element is counted in the window that it begins in.
        head = 1 if start % bits.itemsize else 0
        unheeded = np.zeros_like(counts)
        for part, counted in ((slice(0, head), unheeded), (slice(head, last - first), counts)):
            if part.start < part.stop:
                self._painter.paint(pair, first + part.start, base[part], tuned[part], made, part.start, counted)
        skipped = start - first * bits.itemsize
        for row, row_made in zip(self._buffers.rows, made, strict=True):
            row[here] = row_made.view(np.uint8)[skipped : skipped + end - start]

    def _base(self, pair: TensorPair, first: int, count: int) -> NDArray[Any]:
        bits = FLOAT_BITS[pair.base.dtype]
        target = self._buffers.base[: count * bits.itemsize]
        self._read(pair.base.file, pair.base.start + first * bits.itemsize, target)
        return target.view(bits)

    def _read(self, file: Path, offset: int, target: NDArray[Any]) -> None:
        try:
            self._sources.read_into(file, offset, target)
        except EOFError:
            raise CheckpointError(f"{file} became shorter while it was read; copy or download it again") from None

    def _share(self, work: _ShardWork) -> None:
        """Give the outputs that follow others their files."""
        shared: set[Path] = set()
        for output, leader in enumerate(work.leaders):
            if leader == output:
                continue
            source, target = self.folders[leader] / work.shard.name, self.folders[output] / work.shard.name
            target.unlink(missing_ok=True)
            if output not in work.astray and _linked(source, target):
                shared.add(source)
                continue
            shutil.copyfile(source, target)
            file = DirectFile(target, work.shard.size)
            unheeded = np.zeros(self._counts_shape, dtype=np.int64)
            for first in work.astray.get(output, []):
                last = min(first + self._window, work.shard.size)
                self._fill(work.shard, first, last, self._buffers.rows, unheeded)
                padded = -(-(last - first) // ALIGNMENT) * ALIGNMENT
                file.write(first, self._buffers.rows[output, :padded], self._buffers.scratch)
            file.finish()
        for source in shared:
            # Several models live in this file: whoever would write into one of them is stopped, and may copy it first.
            source.chmod(0o444)


def window_bytes(memory: int, outputs: int) -> tuple[int, int]:
    """(bytes of a window, threads) so that the whole process stays below ``memory`` bytes.

    Raises:
        CheckpointError: it is too little.
    """
    room = memory - _PROCESS
    # A window of every output; of base (twice as wide at most) and fine-tuned; a scratch one; ranks and rounding.
    per_byte = outputs + 6
    for threads in (_THREADS, 2, 1):
        window = min(_LARGEST_WINDOW, room // (threads * per_byte)) // ALIGNMENT * ALIGNMENT
        if window >= _SMALLEST_WINDOW:
            return window, threads
    needed = (_PROCESS + 2 * _SMALLEST_WINDOW * per_byte) / 10**6
    raise CheckpointError(f"{memory / 10**6:.0f} MB of memory are too little; give at least {needed:.0f} MB (--memory)")


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        return False  # a file system without hard links
    return True
