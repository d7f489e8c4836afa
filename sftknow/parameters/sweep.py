"""Writes several checkpoints in one pass over a fine-tuned one, each with other bytes in some tensors.

The output is cut into windows of at most four megabytes. A thread takes one, reads it from the fine-tuned checkpoint
and, where tensors are to change, from the base, has a `Painter` make the window of every output, and writes them all.
No window depends on another, so any number of threads may do this, and memory is window × outputs × threads whatever
the size of the model.

Of outputs that will probably have the same bytes in a shard, the first one, the *leader*, is written; the others are
compared with it and get the same file, or a copy in which the windows that differ are written anew.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sftknow.checkpoints.direct_file import ALIGNMENT, DirectFile, aligned_rows
from sftknow.checkpoints.layout import Layout, OutputShard
from sftknow.checkpoints.reader import FLOAT_BITS, CheckpointReader
from sftknow.errors import CheckpointError
from sftknow.machine import give_back_memory
from sftknow.parameters.options import Resources
from sftknow.parameters.pairs import TensorPair
from sftknow.workers import share_jobs

_MEGABYTE = 10**6
_PROCESS = 306 * 10**6  # measured: the interpreter, NumPy, Numba and its compiled kernels, the Hub's client
_TENSOR_BYTES = 6000  # in headers, pair and layout, measured
_SMALLEST_WINDOW = 1 << 16
_GOOD_WINDOW = 1 << 18  # rather fewer threads than smaller windows
_WRITERS = 3  # threads for each one that computes, since a thread mostly waits for the disk


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
    differing: dict[int, list[int]] = field(default_factory=dict)
    """By output that follows another: windows in which their bytes differ after all."""
    opened: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


class Sweep:
    """One pass that writes every shard of every output.

    Args:
        layout: of every output.
        folders: where each output goes; what is there already is compared and kept where it is right.
        region: the tensors that the painter makes; all others are bit copies.
        painter: makes them.
        counts: shape of what the painter counts.
        resources: threads, memory and the largest window.
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
        resources: Resources,
        links: bool,
        advance: Callable[[int], object],
    ) -> None:
        self.layout = layout
        self.folders = folders
        self.region = region
        self.painter = painter
        self.counts_shape = counts
        self.reader = CheckpointReader()
        tensors = sum(len(shard.tensors) for shard in layout.shards)
        self.window, self._threads = window_and_threads(resources, len(folders), tensors)
        self._advance = advance
        self._links = links
        self._bytes_done = 0

    def run(self) -> NDArray[np.int64]:
        """Write everything; return what the painter counted.

        Raises:
            CheckpointError: a file ends too early, or what the painter raises.
            OSError: a file cannot be read or written, a full disk among the reasons.
        """
        give_back_memory()  # the windows are as large as the memory allows without what ranking had
        works = [self._work(shard) for shard in self.layout.shards]
        windows = ((work, first) for work in works for first in range(0, work.shard.size, self.window))
        try:
            with self.reader:
                workers = share_jobs(windows, lambda: _Writer(self), self._threads, self._told)
                for work in works:
                    self._share(work, workers[0])
        finally:
            for work in works:
                for file in work.files.values():
                    file.close()
        return sum((worker.counts for worker in workers), np.zeros(self.counts_shape, dtype=np.int64))

    def _work(self, shard: OutputShard) -> _ShardWork:
        kinds = self.painter.kinds(shard)
        leaders = [kinds.index(kind) if self._links else i for i, kind in enumerate(kinds)]
        return _ShardWork(
            shard=shard,
            leaders=leaders,
            windows_left=-(-shard.size // self.window),
            plain=self.region.keys().isdisjoint(shard.tensors),
        )

    def _told(self, done: int) -> None:
        megabytes, self._bytes_done = divmod(self._bytes_done + done, _MEGABYTE)
        self._advance(megabytes)

    def _share(self, work: _ShardWork, writer: _Writer) -> None:
        """Give the outputs that follow others their files."""
        shared: set[Path] = set()
        for output, leader in enumerate(work.leaders):
            if leader == output:
                continue
            source, target = self.folders[leader] / work.shard.name, self.folders[output] / work.shard.name
            target.unlink(missing_ok=True)
            if output not in work.differing and _linked(source, target):
                shared.add(source)
                continue
            shutil.copyfile(source, target)
            file = DirectFile(target, work.shard.size)
            for first in work.differing.get(output, []):
                writer.rewrite(work, first, output, file)
            file.finish()
        for source in shared:
            # Several models live in this file: whoever would write into one of them is stopped, and may copy it first.
            source.chmod(0o444)


class _Writer:
    """Makes and writes windows; one thread's buffers and counts."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._window = window = sweep.window
        self._rows = aligned_rows(sweep.painter.outputs, window)
        # The base's elements may be twice as wide, and an element may be cut by the window's edges.
        self._tuned, self._scratch = aligned_rows(2, window)
        self._base = aligned_rows(1, 2 * window + ALIGNMENT)[0]
        self.counts: NDArray[np.int64] = np.zeros(sweep.counts_shape, dtype=np.int64)

    def __call__(self, job: tuple[_ShardWork, int]) -> int:
        """Make one window of every output and write it; returns the bytes."""
        work, first = job
        last = min(first + self._window, work.shard.size)
        rows = self._rows[:1] if work.plain else self._rows
        self._fill(work.shard, first, last, rows, self.counts)
        self._open(work)
        turn = first // self._window
        outputs = sorted(work.files)
        for i in range(len(outputs)):  # threads start at different files, which lock for the length of a write
            output = outputs[(i + turn) % len(outputs)]
            self._put(work.files[output], first, last, rows[0 if work.plain else output])
        made = rows[:, : last - first]
        for output, leader in enumerate(work.leaders):
            if leader != output and not work.plain and not np.array_equal(made[output], made[leader]):
                with work.lock:
                    work.differing.setdefault(output, []).append(first)
        with work.lock:
            work.windows_left -= 1
            finished = not work.windows_left
        if finished:
            for file in work.files.values():
                file.finish()
        return (last - first) * len(work.leaders)

    def rewrite(self, work: _ShardWork, first: int, output: int, file: DirectFile) -> None:
        """Write one window of one output once more, uncounted."""
        last = min(first + self._window, work.shard.size)
        self._fill(work.shard, first, last, self._rows, np.zeros_like(self.counts))
        self._put(file, first, last, self._rows[output])

    def _put(self, file: DirectFile, first: int, last: int, row: NDArray[np.uint8]) -> None:
        padded = -(-(last - first) // ALIGNMENT) * ALIGNMENT
        file.write(first, row[:padded], self._scratch)

    def _open(self, work: _ShardWork) -> None:
        folders, name = self._sweep.folders, work.shard.name
        with work.lock:
            if work.opened:
                return
            for output, leader in enumerate(work.leaders):
                if leader != output:
                    (folders[output] / name).unlink(missing_ok=True)
            for output in sorted(set(work.leaders)):
                work.files[output] = DirectFile(folders[output] / name, work.shard.size)
            work.opened = True

    def _fill(
        self, shard: OutputShard, first: int, last: int, rows: NDArray[np.uint8], counts: NDArray[np.int64]
    ) -> None:
        """Make the window ``first … last − 1`` of every output.

        Args:
            rows: this thread's, or the first alone where all are the same.
        """
        for segment, start, end in shard.window(first, last):
            here = slice(start - first, end - first)
            offset = segment.offset + start - segment.start
            if isinstance(segment.source, bytes):
                rows[:, here] = np.frombuffer(segment.source, dtype=np.uint8)[offset : offset + end - start]
                continue
            pair = self._sweep.region.get(segment.tensor or "")
            if segment.made is not None:
                segment.made(start - segment.start, self._tuned[here])
            else:
                self._read(segment.source, offset, self._tuned[here])
            if pair is None:
                rows[:, here] = self._tuned[here]
            else:
                self._paint(pair, start - segment.start, end - segment.start, here, counts)

    def _paint(self, pair: TensorPair, start: int, end: int, here: slice, counts: NDArray[np.int64]) -> None:
        """Make bytes ``start … end − 1`` of a tensor; ``here`` is their place in the window."""
        bits = FLOAT_BITS[pair.tuned.dtype]
        common = pair.elements * bits.itemsize
        if end > common:  # rows that the base has not
            tail = slice(here.start + max(common - start, 0), here.stop)
            self._rows[:, tail] = self._tuned[tail]
            end, here = common, slice(here.start, tail.start)
            if start >= end:
                return
        if start % bits.itemsize or end % bits.itemsize or here.start % bits.itemsize:
            self._paint_cut(pair, start, end, here, counts)
            return
        first, count = start // bits.itemsize, (end - start) // bits.itemsize
        base, tuned, place = self._read_base(pair, first, count), self._tuned[here].view(bits), here.start
        self._sweep.painter.paint(pair, first, base, tuned, self._rows.view(bits), place // bits.itemsize, counts)

    def _paint_cut(self, pair: TensorPair, start: int, end: int, here: slice, counts: NDArray[np.int64]) -> None:
        """The same where the file has its elements at odd places, so that windows cut through them."""
        bits = FLOAT_BITS[pair.tuned.dtype]
        first, last = start // bits.itemsize, -(-end // bits.itemsize)
        tuned = np.empty(last - first, dtype=bits)
        self._sweep.reader.read_into(pair.tuned, first, tuned)
        base = np.array(self._read_base(pair, first, last - first))
        made = np.empty((len(self._rows), last - first), dtype=bits)
        # An element is counted in the window that it begins in.
        head = 1 if start % bits.itemsize else 0
        for part, counted in ((slice(0, head), np.zeros_like(counts)), (slice(head, last - first), counts)):
            if part.start < part.stop:
                self._sweep.painter.paint(pair, first + part.start, base[part], tuned[part], made, part.start, counted)
        skipped = start - first * bits.itemsize
        for row, row_made in zip(self._rows, made, strict=True):
            row[here] = row_made.view(np.uint8)[skipped : skipped + end - start]

    def _read_base(self, pair: TensorPair, first: int, count: int) -> NDArray[Any]:
        bits = FLOAT_BITS[pair.base.dtype]
        target: NDArray[Any] = self._base[: count * bits.itemsize].view(bits)
        self._sweep.reader.read_into(pair.base, first, target)
        return target

    def _read(self, file: Path, offset: int, target: NDArray[Any]) -> None:
        try:
            self._sweep.reader.read_bytes(file, offset, target)
        except EOFError:
            raise CheckpointError(f"{file} became shorter while it was read; copy or download it again") from None


def window_and_threads(resources: Resources, outputs: int, tensors: int = 0) -> tuple[int, int]:
    """(bytes of a window, threads) so that the whole process stays below the memory that there is.

    Raises:
        CheckpointError: it is too little.
    """
    fixed = _PROCESS + tensors * _TENSOR_BYTES
    room = resources.bytes - fixed
    # A window of every output; of base (twice as wide at most) and fine-tuned; a scratch one; ranks, rounding, and what
    # the allocator keeps between them (measured: three windows).
    per_byte = outputs + 9
    threads = max(1, min(_WRITERS * resources.threads, room // (_GOOD_WINDOW * per_byte)))
    window = min(max(resources.window, ALIGNMENT), room // (threads * per_byte)) // ALIGNMENT * ALIGNMENT
    if window < min(_SMALLEST_WINDOW, resources.window):
        needed = (fixed + 2 * _SMALLEST_WINDOW * per_byte) / 10**6
        raise CheckpointError(
            f"{resources.bytes / 10**6:.0f} MB of memory are too little; give at least {needed:.0f} MB (--memory)"
        )
    return window, threads


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        return False  # a file system without hard links
    return True
