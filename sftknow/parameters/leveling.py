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
from sftknow.parameters.rank_kernels import Cuts, rank_block, rank_keys
from sftknow.parameters.relative import NONFINITE_MESSAGE, TOO_LARGE_MESSAGE, Measure
from sftknow.parameters.relative_kernels import KINDS, NONFINITE, TOO_LARGE, Formula, new_scratch
from sftknow.parameters.selection import BINS, order_key
from sftknow.parameters.strategies import BY_CHANGE, Block, check_strategy, keys_of
from sftknow.records import LevelCut, RestorePlan

MOST_LEVELS = 250
_KEYED = 1 << 16  # elements whose keys are made at a time


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
        if any(cut.tie_end is None for cut in self.cuts):
            raise CheckpointError("the plan does not say where ties end: an earlier version made it; make it again")
        self._measure = Measure(epsilon=plan.epsilon, arithmetic=plan.arithmetic, compare_in=plan.compare_in)
        self._strategy = plan.strategy
        self._seed = plan.seed
        self._flip = np.uint32(order_key(0, plan.strategy))
        keys = [order_key(cut.threshold_bits, plan.strategy) for cut in self.cuts]
        # The largest key of a bin is not below a threshold in it, so the bin's first rank is where its walk starts.
        first_rank: NDArray[np.uint8] = np.zeros(BINS, dtype=np.uint8)
        for key in keys:
            first_rank[: key >> 16] += 1
        tie_ends = np.array([cut.tie_end for cut in self.cuts], dtype=np.int64)
        self._kernel_cuts = Cuts(first_rank, np.array(keys, dtype=np.uint32), tie_ends)
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
            CheckpointError: a NaN, an infinity, or a value too large for the plan's arithmetic, where the order is
                that of r.
        """
        if self._strategy not in BY_CHANGE:
            for start in range(0, out.size, _KEYED):
                part = slice(start, min(start + _KEYED, out.size))
                sides = (base[part], base_dtype), (tuned[part], tuned_dtype)
                block = Block(first + start, part.stop - start, self._seed, self._measure, lambda sides=sides: sides)  # type: ignore[misc]
                rank_keys(keys_of(self._strategy, block), first + start, self._kernel_cuts, out[part])
            return
        (base, base_dtype), (tuned, tuned_dtype) = self._measure.compared((base, base_dtype), (tuned, tuned_dtype))
        if not hasattr(self._local, "scratch"):
            self._local.scratch = new_scratch()
        found = rank_block(
            base,
            tuned,
            Formula(KINDS[base_dtype], KINDS[tuned_dtype], self._measure.stored_epsilon),
            None if base_dtype == tuned_dtype else True,
            self._measure.rounded,
            self._flip,
            first,
            self._kernel_cuts,
            self._local.scratch,
            out,
        )
        if found == NONFINITE:
            raise CheckpointError(NONFINITE_MESSAGE)
        if found == TOO_LARGE:
            raise CheckpointError(TOO_LARGE_MESSAGE)
