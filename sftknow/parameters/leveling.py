"""Which level selects an element: a plan's cuts, applied to blocks in any order and from any thread.

The *rank* of an element is the place, among the cuts in ascending order of size, of the first cut that selects it;
levels are nested, so all later ones select it too. Of the elements whose key equals a cut's threshold those with a
global index below its ``tie_end`` are selected, which takes no counting.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sftknow.errors import CheckpointError
from sftknow.parameters.rank_kernels import random_ranks, rank_block
from sftknow.parameters.relative import TOO_LARGE_MESSAGE, Measure
from sftknow.parameters.relative_kernels import KINDS, NONFINITE, TOO_LARGE, Scratch
from sftknow.parameters.selection import BINS, check_strategy, mixed_seed, order_key
from sftknow.records import LevelCut, RestorePlan

MOST_LEVELS = 250


class LevelSelector:
    """Ranks of elements by a plan.

    Attributes:
        cuts: in ascending order of the elements they select; a rank is a place here, ``len(cuts)`` stands for none.
    """

    def __init__(self, plan: RestorePlan, cuts: Sequence[LevelCut] | None = None) -> None:
        """
        Args:
            plan: from `analyse`.
            cuts: some of the plan's cuts; all by default.

        Raises:
            CheckpointError: a setting of the plan cannot be read, or it was made by a version that did not record
                where ties end.
        """
        check_strategy(plan.strategy)
        self.cuts = tuple(sorted(plan.cuts if cuts is None else cuts, key=lambda cut: cut.selected))
        if len(self.cuts) > MOST_LEVELS:
            raise CheckpointError(f"{len(self.cuts)} levels are too many at once; give at most {MOST_LEVELS}")
        self._measure = Measure(epsilon=plan.epsilon, arithmetic=plan.arithmetic)
        self._strategy = plan.strategy
        self._seed = mixed_seed(plan.seed)
        self._flip = np.uint32(order_key(0, plan.strategy))
        keys, tie_ends = [], []
        for cut in self.cuts:
            if cut.tie_end is None:
                raise CheckpointError("the plan does not say where ties end: an earlier version made it; make it again")
            keys.append(order_key(cut.threshold_bits, plan.strategy))
            tie_ends.append(cut.tie_end)
        self._thresholds: NDArray[np.uint32] = np.array(keys, dtype=np.uint32)
        self._tie_ends: NDArray[np.int64] = np.array(tie_ends, dtype=np.int64)
        # The largest key of a bin is not below a threshold in it, so the bin's first rank is where its walk starts.
        self._first_rank: NDArray[np.uint8] = np.zeros(BINS, dtype=np.uint8)
        for key in keys:
            self._first_rank[: key >> 16] += 1
        self._local = threading.local()

    def ranks(
        self,
        base: NDArray[Any],
        base_dtype: str,
        tuned: NDArray[Any],
        tuned_dtype: str,
        first: int,
        out: NDArray[np.uint8],
    ) -> None:
        """Write the ranks of a block's elements.

        Args:
            base, tuned: stored bits, each shape (count,), in the dtypes named.
            first: global index of the block's first element.
            out: shape (count,).

        Raises:
            CheckpointError: a NaN, an infinity, or a value too large for the plan's arithmetic.
        """
        if self._strategy == "random":
            self.random_ranks(first, out)
            return
        scratch = self._scratch()
        found = rank_block(
            base,
            KINDS[base_dtype],
            tuned,
            KINDS[tuned_dtype],
            None if base_dtype == tuned_dtype else True,
            self._measure.stored_epsilon,
            True if self._measure.arithmetic == "bfloat16" else None,
            self._flip,
            first,
            self._first_rank,
            self._thresholds,
            self._tie_ends,
            scratch.places,
            scratch.base,
            scratch.tuned,
            scratch.bits,
            out,
        )
        if found == NONFINITE:
            raise CheckpointError(
                "a value is NaN or infinite: the checkpoints are not those that the plan was made from"
            )
        if found == TOO_LARGE:
            raise CheckpointError(TOO_LARGE_MESSAGE)

    def random_ranks(self, first: int, out: NDArray[np.uint8]) -> None:
        """`ranks` of the strategy ``random``, which needs no values."""
        random_ranks(self._seed, first, self._first_rank, self._thresholds, self._tie_ends, out)

    def _scratch(self) -> Scratch:
        if not hasattr(self._local, "scratch"):
            self._local.scratch = Scratch()
        found: Scratch = self._local.scratch
        return found
