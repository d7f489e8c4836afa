"""Work on every unit of a region, by a few threads: stored bits are read, and a function gets them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sftknow.checkpoints.direct_file import SourceFiles
from sftknow.checkpoints.index import TensorEntry
from sftknow.checkpoints.reader import FLOAT_BITS
from sftknow.errors import CheckpointError
from sftknow.parameters.bars import watched
from sftknow.parameters.pairs import CheckpointPair
from sftknow.parameters.units import PIECE, Unit, units

_THREADS = 2
_AT_ONCE = 64
_QUIET = 300_000_000  # parameters that take about a second: below, a progress bar is only noise

Bits = Sequence[NDArray[Any]]


def for_each_unit(
    pair: CheckpointPair, sides: Sequence[str], work: Callable[[Unit, Bits], None], description: str
) -> None:
    """Call ``work`` with every unit and its bits, one array a side, from several threads, in any order.

    Args:
        sides: of ``base`` and ``tuned``.
        work: must not keep the arrays.

    Raises:
        CheckpointError: a file cannot be read or ends too early.
    """
    buffers: SimpleQueue[NDArray[np.uint8]] = SimpleQueue()
    for _ in range(_THREADS):
        buffers.put(np.empty((len(sides), 4 * PIECE), dtype=np.uint8))

    with SourceFiles() as sources, watched(pair.elements, description, quiet=_QUIET) as advance:

        def labour(unit: Unit) -> int:
            tensor = pair.tensors[unit.position]
            buffer = buffers.get()
            try:
                found = []
                for row, side in zip(buffer, sides, strict=True):
                    entry = tensor.base if side == "base" else tensor.tuned
                    bits = FLOAT_BITS[entry.dtype]
                    block = row[: unit.count * bits.itemsize].view(bits)
                    _read(sources, entry, unit.first * bits.itemsize, block)
                    found.append(block)
                work(unit, found)
            finally:
                buffers.put(buffer)
            return unit.count

        with ThreadPoolExecutor(_THREADS) as pool:
            for batch in _batches(units(pair)):
                for count in pool.map(labour, batch):
                    advance(count)


def _batches(work: Iterable[Unit]) -> Iterator[list[Unit]]:
    # A model of 70 B parameters has 70,000 units: they are handed out by and by.
    rest = iter(work)
    while batch := list(islice(rest, _AT_ONCE)):
        yield batch


def _read(sources: SourceFiles, entry: TensorEntry, offset: int, target: NDArray[Any]) -> None:
    try:
        sources.read_into(entry.file, entry.start + offset, target)
    except EOFError:
        raise CheckpointError(f"{entry.file} became shorter while it was read; copy or download it again") from None
    except OSError as error:
        raise CheckpointError(f"{entry.file} cannot be read: {error.strerror}") from None
