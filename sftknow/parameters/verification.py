"""Are these the checkpoints that a plan was made from?"""

from __future__ import annotations

import xxhash

from sftknow.errors import CheckpointError
from sftknow.parameters.pairs import CheckpointPair
from sftknow.parameters.region_hash import RegionHash
from sftknow.parameters.unit_work import Bits, for_each_unit
from sftknow.parameters.units import Unit
from sftknow.records import RestorePlan


def verify_pair(pair: CheckpointPair, plan: RestorePlan) -> None:
    """Read the region of both sides and compare its hashes with the plan's.

    Raises:
        CheckpointError: one of them has other bytes, names, dtypes or shapes in the region.
    """
    for side in ("base", "tuned"):
        verify_hash(pair, plan, side, hash_side(pair, side))


def verify_hash(pair: CheckpointPair, plan: RestorePlan, side: str, found: str) -> None:
    """Compare the hash of one side with the plan's; what `verify_pair` raises."""
    index, expected = (pair.base, plan.base_sha256) if side == "base" else (pair.tuned, plan.tuned_sha256)
    if found != expected:
        raise CheckpointError(
            f"{index.folder} is not the checkpoint that the plan was made from (other bytes in the region "
            f"{plan.region}); make the plan again"
        )


def hash_side(pair: CheckpointPair, side: str) -> str:
    """The `RegionHash` of one side of a pair, ``base`` or ``tuned``."""
    found = RegionHash(pair.tensors, side)

    def add(unit: Unit, bits: Bits) -> None:
        found.add(unit.position, unit.piece, xxhash.xxh3_128(bits[0].data).digest())

    for_each_unit(pair, [side], add, f"checking the {'base' if side == 'base' else 'fine-tuned'} checkpoint")
    return found.hexdigest()
