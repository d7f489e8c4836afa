"""What the prompts of a batch have in common at their beginnings, so that it is computed once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class Split(NamedTuple):
    """Prompts cut after ``length`` tokens, and which of them are equal up to there."""

    length: int
    """0 where sharing gains nothing."""
    group: Ints
    """Group of each prompt, shape [prompts]."""
    first_rows: Ints
    """A prompt of each group, shape [groups]."""


def shared_prefix(ids: Ints) -> Split:
    """The cut after which the fewest tokens have to be run.

    Args:
        ids: prompts of one length, shape [prompts, tokens], those with equal beginnings side by side.
    """
    prompts, tokens = ids.shape
    lengths = np.arange(tokens)  # at least one token is left over, whose logits are wanted
    groups = np.concatenate([[0], _differs(ids)[:, :-1].sum(axis=0)])
    cost = groups * lengths + prompts * (tokens - lengths)
    best = int(cost.argmin())
    # Two passes and a copy instead of one pass: not for a gain of a few tokens.
    if 10 * cost[best] > 9 * prompts * tokens:
        best = 0
    return split_at(ids, best)


def split_at(ids: Ints, length: int) -> Split:
    """The same prompts, or some of them, cut after so many tokens; 0 for no cut."""
    begins = _differs(ids)[:, length - 1] if length else np.arange(len(ids)) == 0
    return Split(length=length, group=np.cumsum(begins) - 1, first_rows=np.flatnonzero(begins))


def _differs(ids: Ints) -> npt.NDArray[np.bool_]:
    """True from the first token on in which a prompt differs from the one before it, shape [prompts, tokens]."""
    differs = np.ones(ids.shape, dtype=bool)
    differs[1:] = np.logical_or.accumulate(ids[1:] != ids[:-1], axis=1)
    return differs
