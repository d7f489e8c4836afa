"""How a region is cut into units of work: pieces of tensors that threads take in global order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sftknow.parameters.pairs import CheckpointPair

PIECE = 1 << 20
"""Elements of a unit; the last one of a tensor may be shorter. Part of the definition of a region's hash."""

BLOCK = 1 << 18
"""Elements of a unit that are read at a time by default: both sides stay in the second-level cache."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of one tensor."""

    position: int
    """The tensor's place in the pair's global order."""
    piece: int
    """The unit's number within the tensor."""
    first: int
    """Its first element, counted within the tensor."""
    count: int
    """Elements."""


def units(pair: CheckpointPair) -> Iterator[Unit]:
    """All units in global order."""
    for position, tensor in enumerate(pair.tensors):
        for piece, first in enumerate(range(0, tensor.elements, PIECE)):
            yield Unit(position, piece, first, min(PIECE, tensor.elements - first))


def unit_count(pair: CheckpointPair) -> int:
    """How many units there are."""
    return sum(-(-tensor.elements // PIECE) for tensor in pair.tensors)
