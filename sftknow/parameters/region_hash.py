"""The hash that ties a plan to the checkpoints it was made from.

It knows bytes, names, dtypes and shapes, and nothing of shards. It guards against the wrong checkpoint, not against a
forger: each piece of a tensor (`units.PIECE` elements) is hashed with XXH3-128, which runs as fast as memory, and
SHA-256 is taken over the names and the pieces' digests, in global order.
"""

from __future__ import annotations

from collections.abc import Sequence

from sftknow.artifacts.files import digest
from sftknow.parameters.pairs import TensorPair
from sftknow.parameters.units import PIECE


class RegionHash:
    """Collects the digests of a region's pieces, which may come in any order and from several threads."""

    def __init__(self, tensors: Sequence[TensorPair], side: str) -> None:
        """
        Args:
            tensors: of the region, in global order.
            side: ``base`` or ``tuned``.
        """
        self._tensors = tensors
        self._side = side
        self._digests: list[list[bytes]] = [[b""] * -(-tensor.elements // PIECE) for tensor in tensors]

    def add(self, position: int, piece: int, found: bytes) -> None:
        """Record the XXH3-128 of a piece's bytes."""
        self._digests[position][piece] = found

    def hexdigest(self) -> str:
        """The hash of the region. Raises ValueError where a piece is missing."""
        if not all(found for digests in self._digests for found in digests):
            raise ValueError("a piece of the region has not been hashed")
        rows = []
        for tensor, digests in zip(self._tensors, self._digests, strict=True):
            entry = tensor.base if self._side == "base" else tensor.tuned
            rows.append((entry.name, entry.dtype, tensor.shape, b"".join(digests).hex()))
        return digest(rows)
