"""Ranks that say how sure they are: every pair of models is tested, and all tests are corrected together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sftknow.leaderboard.answers import Right, paired
from sftknow.leaderboard.standings import SplitScore
from sftknow.progress import progress
from sftknow.records import Split
from sftknow.stats import holm, stratified_mcnemar

ALPHA = 0.05
"""Probability that any model at all is called surely better than another and is not."""


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A model that takes part."""

    repo_id: str
    branch: str
    commit: str
    told_by: str
    own: bool
    weights: bool
    scores: Mapping[Split, SplitScore]
    right: Right | None
    """Its answers; None where they are not published."""


@dataclass(frozen=True, kw_only=True)
class Rank:
    """A place among others."""

    rank: int
    best: int
    worst: int


def rank(entrants: Sequence[Entrant], split: Split) -> list[Rank]:
    """The ranks of models on a split, in their order.

    Two models with published answers are compared question by question (McNemar's test, stratified by bucket,
    `sftknow.stats.stratified_mcnemar`), any others by the standard errors of their scores. All p-values are corrected
    together (Holm).

    Args:
        entrants: each with a score on the split.
        split: that they are ranked on.
    """
    values = [entrant.scores[split].value for entrant in entrants]
    pairs = list(itertools.combinations(range(len(entrants)), 2))
    p_values = []
    with progress(len(pairs), "comparing models", unit="pairs") as bar:
        for first, second in pairs:
            p_values.append(p_value(entrants[first], entrants[second], split))
            bar.update()
    better, worse = [0] * len(entrants), [0] * len(entrants)
    for (first, second), p in zip(pairs, holm(p_values), strict=True):
        if p < ALPHA and values[first] != values[second]:
            high, low = (first, second) if values[first] > values[second] else (second, first)
            better[low] += 1
            worse[high] += 1
    return [
        Rank(rank=1 + sum(other > value for other in values), best=1 + better[i], worst=len(values) - worse[i])
        for i, value in enumerate(values)
    ]


def p_value(a: Entrant, b: Entrant, split: Split) -> float:
    """Two-sided p-value of the hypothesis that two models answer a split's questions equally well."""
    if a.right is not None and b.right is not None and split in a.right and split in b.right:
        return stratified_mcnemar(paired(a.right, b.right, split))
    one, two = a.scores[split], b.scores[split]
    stderr = math.hypot(one.stderr, two.stderr)
    if stderr == 0:
        return 1.0 if one.value == two.value else 0.0
    return math.erfc(abs(one.value - two.value) / stderr / math.sqrt(2))
