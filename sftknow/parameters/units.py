"""How a region is cut into units of work: pieces of tensors that threads take in global order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sftknow.parameters.pairs import CheckpointPair

PIECE = 1 << 20
"""Elements of a unit; the last one of a tensor may be shorter. Part of the definition of a region's hash."""

MEMORY = 512 * 10**6
"""Bytes that a process may take in all by default, the interpreter and its libraries included."""

SPAN = 2
"""Pieces that are counted together, where a tensor has as many."""

BLOCK = 1 << 18
"""Elements of a unit that are read at a time by default: both sides stay in the second-level cache."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of one tensor, or several that follow one another."""

    position: int
    """The tensor's place in the pair's global order."""
    piece: int
    """The number of its first piece within the tensor."""
    first: int
    """Its first element, counted within the tensor."""
    count: int
    """Elements."""


def units(pair: CheckpointPair, pieces: int = 1) -> Iterator[Unit]:
    """All units of at most so many pieces, in global order."""
    for position, tensor in enumerate(pair.tensors):
        for piece in range(0, -(-tensor.elements // PIECE), pieces):
            first = piece * PIECE
            yield Unit(position, piece, first, min(pieces * PIECE, tensor.elements - first))


def unit_count(pair: CheckpointPair, pieces: int = 1) -> int:
    """How many units of at most so many pieces there are."""
    return sum(-(-tensor.elements // (pieces * PIECE)) for tensor in pair.tensors)
