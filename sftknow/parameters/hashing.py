"""The hash that ties a plan to the checkpoints it was made from.

It knows bytes, names, dtypes and shapes, and nothing of shards. It guards against the wrong checkpoint, not against a
forger: each piece of a tensor (`passes.PIECE` elements) is hashed with XXH3-128, which runs as fast as memory, and
SHA-256 is taken over the names and the pieces' digests, in global order.
"""

from __future__ import annotations

from collections.abc import Sequence

import xxhash

from sftknow.artifacts.files import digest
from sftknow.errors import CheckpointError
from sftknow.parameters.options import Resources
from sftknow.parameters.pairs import CheckpointPair, TensorPair
from sftknow.parameters.passes import Bits, Chunk, for_each_chunk, piece_count
from sftknow.records import RestorePlan


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
        self._digests = [[b""] * piece_count(tensor.elements) for tensor in tensors]

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


def verify_pair(pair: CheckpointPair, plan: RestorePlan, resources: Resources) -> None:
    """Read the region of both sides and compare its hashes with the plan's.

    Raises:
        CheckpointError: one of them has other bytes, names, dtypes or shapes in the region.
    """
    for side in ("base", "tuned"):
        verify_hash(pair, plan, side, hash_side(pair, side, resources))


def verify_hash(pair: CheckpointPair, plan: RestorePlan, side: str, found: str) -> None:
    """Compare the hash of one side with the plan's; what `verify_pair` raises."""
    index, expected = (pair.base, plan.base_sha256) if side == "base" else (pair.tuned, plan.tuned_sha256)
    if found != expected:
        raise CheckpointError(
            f"{index.folder} is not the checkpoint that the plan was made from (other bytes in the region "
            f"{plan.region}); make the plan again"
        )


def hash_side(pair: CheckpointPair, side: str, resources: Resources) -> str:
    """The `RegionHash` of one side of a pair, ``base`` or ``tuned``."""
    found = RegionHash(pair.tensors, side)

    def add(chunk: Chunk, bits: Bits) -> None:
        found.add(chunk.position, chunk.piece, xxhash.xxh3_128(bits[0].data).digest())

    name = "base" if side == "base" else "fine-tuned"
    for_each_chunk(pair, [side], add, f"checking the {name} checkpoint", resources)
    return found.hexdigest()
