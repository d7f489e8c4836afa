"""The cuts of a strategy, from its keys alone: they are counted by halves, in two passes, and a third counts ties."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from sftknow.checkpoints.reader import CheckpointReader
from sftknow.parameters.options import Resources
from sftknow.parameters.pairs import CheckpointPair
from sftknow.parameters.passes import Chunk, chunks
from sftknow.parameters.rank_kernels import count_keys
from sftknow.parameters.relative import Measure
from sftknow.parameters.selection import BINS, cut_bin, make_cut, selected_elements
from sftknow.parameters.strategies import Block, keys_of
from sftknow.records import LevelCut
from sftknow.workers import share_jobs


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What stays the same through all passes over a pair."""

    pair: CheckpointPair
    measure: Measure
    strategy: str
    seed: int
    resources: Resources
    levels: int = 1
    """How many; what is kept of each tensor grows with them."""

    def keyed(self, reader: CheckpointReader, chunk: Chunk) -> Iterator[tuple[Block, NDArray[np.uint32]]]:
        """A chunk's parameters with their keys, block by block."""
        tensor = self.pair.tensors[chunk.position]
        end = chunk.first + chunk.count
        for first in range(chunk.first, end, self.resources.block):
            count = min(self.resources.block, end - first)

            def read(first: int = first, count: int = count) -> tuple[tuple[NDArray[np.uint32], str], ...]:
                return tuple((reader.read(entry, first, count), entry.dtype) for entry in (tensor.base, tensor.tuned))

            block = Block(tensor.first + first, count, self.seed, self.measure, read)  # type: ignore[arg-type]
            yield block, keys_of(self.strategy, block)


def cuts_by_keys(work: Workload, levels: Sequence[tuple[str, Fraction]]) -> list[LevelCut]:
    """The cut of every level: threshold, how many of its ties are selected, and where these end."""
    elements = work.pair.elements
    wanted = {level: selected_elements(elements, share) for level, share in levels}
    with CheckpointReader() as reader:
        coarse = _count(work, reader, [])
        places = {level: cut_bin(coarse, selected) for level, selected in wanted.items() if selected}
        bins = sorted({r_bin for r_bin, _ in places.values()})
        fine = _count(work, reader, bins).reshape(-1, BINS) if bins else np.zeros((0, BINS), dtype=np.int64)
        cuts = []
        for level, selected in wanted.items():
            if not selected:
                cuts.append(replace(make_cut(level, 0, None, 0, work.strategy), tie_end=0))
                continue
            key_bin, needed = places[level]
            low, ties = cut_bin(fine[bins.index(key_bin)], needed)
            cuts.append(make_cut(level, selected, key_bin << 16 | low, ties, work.strategy))
        return _with_tie_ends(work, reader, cuts)


def _count(work: Workload, reader: CheckpointReader, bins: Sequence[int]) -> NDArray[np.int64]:
    """Keys by upper half, shape (65,536,), or those in ``bins`` by lower half, shape (bins · 65,536,)."""
    interval_of = np.zeros(BINS, dtype=np.uint16)
    interval_of[list(bins)] = 2 * np.arange(len(bins)) + 1
    size = len(bins) * BINS or BINS

    class Counting:
        """One thread's counts."""

        def __init__(self) -> None:
            self.totals: NDArray[np.int64] = np.zeros(size, dtype=np.int64)

        def __call__(self, chunk: Chunk) -> int:
            for _, keys in work.keyed(reader, chunk):
                count_keys(keys, bool(bins), interval_of, self.totals)
            return chunk.count

    threads = max(1, min(work.resources.threads, work.resources.bytes // 4 // (8 * size)))
    total: NDArray[np.int64] = np.zeros(size, dtype=np.int64)
    for worker in share_jobs(chunks(work.pair), Counting, threads):
        total += worker.totals
    return total


def _with_tie_ends(work: Workload, reader: CheckpointReader, cuts: Sequence[LevelCut]) -> list[LevelCut]:
    keys = np.array(sorted({cut.threshold_bits for cut in cuts if cut.selected}), dtype=np.uint32)
    numbered = list(chunks(work.pair))
    tied: NDArray[np.int64] = np.zeros((len(numbered), keys.size), dtype=np.int64)  # by chunk and key

    def count(number: int) -> int:
        for _, found in work.keyed(reader, numbered[number]):
            tied[number] += [np.count_nonzero(found == key) for key in keys]
        return 0

    if keys.size:
        share_jobs(range(len(numbered)), lambda: count, work.resources.threads)
    ended = []
    for cut in cuts:
        if cut.selected:
            upto = np.cumsum(tied[:, keys.tolist().index(cut.threshold_bits)])
            number = int(np.searchsorted(upto, cut.ties))
            before = int(upto[number - 1]) if number else 0
            cut = replace(cut, tie_end=tie_end(work, reader, numbered[number], cut.threshold_bits, cut.ties - before))
        ended.append(cut)
    return ended


def tie_end(work: Workload, reader: CheckpointReader, chunk: Chunk, key: int, wanted: int) -> int:
    """One past the global index of a chunk's ``wanted``-th element with this key."""
    for block, found in work.keyed(reader, chunk):
        tied = np.flatnonzero(found == np.uint32(key))
        if tied.size >= wanted:
            return block.first + int(tied[wanted - 1]) + 1
        wanted -= tied.size
    raise AssertionError("the checkpoints changed while they were read")
