"""Strategies: the orders in which parameters are set back. Six ship; others can be registered.

A strategy is a function from a `Block` of parameters to their *keys*, uint32, shape (block.count,). The largest key is
set back first; of equal keys the parameter that comes first in the region. Levels are shares of that one order, so they
are nested, and what is selected is exact. Keys may depend on the block's values, on the place of its parameters in the
region and on the seed, and on nothing else: the same parameters are asked about several times, in blocks of other
sizes. docs/extending/strategy.md has a whole example.

Importing this module loads nothing heavy, since the command line offers the names.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sftknow.errors import CheckpointError
from sftknow.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sftknow.parameters.relative import Measure

    StoredBits = tuple[NDArray[Any], str]
    """Bits as a checkpoint has them, shape (count,), and their dtype by its safetensors name."""

Strategy = Callable[["Block"], "NDArray[np.uint32]"]

STRATEGIES: Registry[Strategy] = Registry("strategy", CheckpointError)

BY_CHANGE = ("top", "bottom")
"""The strategies whose keys are r's bits or their complement: all that they need is counted while r is."""


class Block:
    """Parameters that follow one another in the region. Values are read when they are asked for.

    Attributes:
        first: global index of the first one: tensors in natural order of their names, row-major within.
        count: how many there are.
        seed: of the restoration.
    """

    def __init__(
        self, first: int, count: int, seed: int, measure: Measure, read: Callable[[], tuple[StoredBits, StoredBits]]
    ) -> None:
        self.first = first
        self.count = count
        self.seed = seed
        self._measure = measure
        self._read = read

    @cached_property
    def _stored(self) -> tuple[StoredBits, StoredBits]:
        return self._read()

    @cached_property
    def _sides(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        from sftknow.checkpoints.reader import widen

        base, tuned = self._stored
        return widen(*base), widen(*tuned)

    @property
    def base(self) -> NDArray[np.float32]:
        """The pretrained values, shape (count,), exact. Not to be written to, as all values here."""
        return self._sides[0]

    @property
    def tuned(self) -> NDArray[np.float32]:
        """The fine-tuned values, shape (count,), exact."""
        return self._sides[1]

    @cached_property
    def change(self) -> NDArray[np.float32]:
        """r = |s − p| / (|p| + ε) in the plan's arithmetic, shape (count,); see `sftknow.parameters.relative`."""
        from sftknow.parameters.relative import relative_change

        return relative_change(*self.compared, self._measure)

    @cached_property
    def compared(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Both sides as they are compared: rounded to the coarser dtype where they are stored in two."""
        from sftknow.checkpoints.reader import widen

        base, tuned = self._measure.compared(*self._stored)
        return widen(*base), widen(*tuned)


def largest_first(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Keys that set the largest values back first; −0 and +0 are one value. For the smallest first give −values."""
    import numpy as np

    bits = (values + np.float32(0)).view(np.uint32)  # −0 + 0 is +0
    return np.where(bits >> np.uint32(31), ~bits, bits | np.uint32(0x8000_0000))


def check_strategy(strategy: str) -> None:
    """Raise CheckpointError for a name that is not registered."""
    if strategy not in STRATEGIES:
        raise CheckpointError(f"unknown strategy {strategy!r}; use one of {', '.join(STRATEGIES)}")


def keys_of(strategy: str, block: Block) -> NDArray[np.uint32]:
    """The keys of a block.

    Raises:
        CheckpointError: what a strategy returns are no keys.
    """
    keys = STRATEGIES.get(strategy)(block)
    if str(keys.dtype) != "uint32" or keys.shape != (block.count,):
        raise CheckpointError(
            f"the strategy {strategy} returned {keys.dtype} of shape {keys.shape}; it must return uint32 keys of shape "
            f"({block.count},)"
        )
    return keys


@STRATEGIES.register("top")
def largest_change(block: Block) -> NDArray[np.uint32]:
    """Largest r first: r is never negative, and such float32 values order as their bit patterns do."""
    import numpy as np

    return block.change.view(np.uint32)


@STRATEGIES.register("bottom")
def smallest_change(block: Block) -> NDArray[np.uint32]:
    """Smallest r first."""
    import numpy as np

    return ~block.change.view(np.uint32)


@STRATEGIES.register("random")
def random_order(block: Block) -> NDArray[np.uint32]:
    """A hash of seed and global index, for which no value is read."""
    from sftknow.parameters.selection import random_keys

    return random_keys(block.seed, block.first, block.count)


@STRATEGIES.register("absolute")
def largest_difference(block: Block) -> NDArray[np.uint32]:
    """Largest |s − p| first."""
    return largest_first(_difference(block))


@STRATEGIES.register("trim")
def smallest_difference(block: Block) -> NDArray[np.uint32]:
    """Smallest |s − p| first: what TIES-Merging trims (Yadav et al. 2023, arXiv:2306.01708)."""
    return largest_first(-_difference(block))


@STRATEGIES.register("smallest")
def smallest_value(block: Block) -> NDArray[np.uint32]:
    """Smallest |p| first, whatever became of it: what the relative change divides by."""
    import numpy as np

    return largest_first(-np.abs(block.compared[0]))


def _difference(block: Block) -> NDArray[np.float32]:
    import numpy as np

    base, tuned = block.compared
    difference: NDArray[np.float32] = np.abs(tuned - base)
    return difference
