"""A pass over a region: settings, how the region is cut into chunks, and what all passes have in common.

A region is cut into *chunks*: pieces of one tensor, or a few that follow one another. Threads take them in global order
(`sftknow.workers`), each with buffers of its own, so that memory is bounded whatever the size of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sftknow.checkpoints.reader import FLOAT_BITS, CheckpointReader
from sftknow.parameters.options import Resources
from sftknow.parameters.pairs import CheckpointPair
from sftknow.progress import progress
from sftknow.workers import share_jobs

Bits = Sequence[NDArray[Any]]
"""Stored bits of one chunk, an array a side, each of shape (count,)."""

PIECE = 1 << 20
"""Elements of a piece; the last one of a tensor may be shorter. Part of the definition of a region's hash."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of one tensor, or several that follow one another."""

    position: int
    """The tensor's place in the pair's global order."""
    piece: int
    """The number of its first piece within the tensor."""
    first: int
    """Its first element, counted within the tensor."""
    count: int
    """Elements."""


def piece_count(elements: int) -> int:
    """How many pieces a tensor of that size has."""
    return -(-elements // PIECE)


def chunks(pair: CheckpointPair, pieces: int = 1) -> Iterator[Chunk]:
    """All chunks of at most so many pieces, in global order."""
    for position, tensor in enumerate(pair.tensors):
        for piece in range(0, piece_count(tensor.elements), pieces):
            first = piece * PIECE
            yield Chunk(position, piece, first, min(pieces * PIECE, tensor.elements - first))


def pieces(chunk: Chunk) -> Iterator[tuple[int, int, int]]:
    """A chunk's pieces: (number within the tensor, first element, one past the last)."""
    end = chunk.first + chunk.count
    for number, first in enumerate(range(chunk.first, end, PIECE), chunk.piece):
        yield number, first, min(first + PIECE, end)


@contextmanager
def shown(total: int, description: str, *, quiet: float, unit: str = "parameters") -> Iterator[Callable[[int], object]]:
    """A progress bar's ``update`` for more than ``quiet`` units of work, else a function that does nothing."""
    if total <= quiet:
        yield lambda _: None
        return
    with progress(total, description, unit=unit) as bar:
        yield bar.update


def for_each_chunk(
    pair: CheckpointPair,
    sides: Sequence[str],
    work: Callable[[Chunk, Bits], None],
    description: str,
    resources: Resources,
) -> None:
    """Call ``work`` with every chunk of one piece and its stored bits, from several threads, in any order.

    Args:
        sides: of ``base`` and ``tuned``.
        work: must not keep the arrays.

    Raises:
        CheckpointError: a file cannot be read or ends too early.
    """

    class Reading:
        """One thread's buffers."""

        def __init__(self) -> None:
            self.rows: NDArray[np.uint32] = np.empty((len(sides), PIECE), dtype=np.uint32)

        def __call__(self, chunk: Chunk) -> int:
            found = []
            for row, side in zip(self.rows, sides, strict=True):
                entry = getattr(pair.tensors[chunk.position], side)
                found.append(row.view(FLOAT_BITS[entry.dtype])[: chunk.count])
                reader.read_into(entry, chunk.first, found[-1])
            work(chunk, found)
            return chunk.count

    with CheckpointReader() as reader, shown(pair.elements, description, quiet=quiet_elements(resources)) as advance:
        share_jobs(chunks(pair), Reading, resources.threads, advance)


def quiet_elements(resources: Resources) -> float:
    """Parameters that are passed over without a progress bar."""
    return 300_000_000 * resources.quiet
