"""A leaderboard: who stands where on a graded data set, and whose results were left out and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sftknow.records import Split


@dataclass(frozen=True, kw_only=True)
class SplitScore:
    """A model's accuracy on one split: the plain mean over its buckets. Shares between 0 and 1."""

    value: float
    stderr: float
    low: float
    """Lower end of its 95 % interval."""
    high: float
    buckets: Mapping[int, float]
    """Accuracy of each bucket; empty where only the mean was told, and `stderr` is then the largest there can be."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One ranked model."""

    repo_id: str
    branch: str
    commit: str
    told_by: str
    """Repository that holds the results: the model's own, or a run's results."""
    own: bool
    """Whether that repository belongs to the model's owner."""
    answers: bool
    """Whether its answers are published: the score is then worked out from them."""
    weights: bool
    """Whether the weights are those that were published with the results."""
    scores: Mapping[Split, SplitScore]
    rank: int
    """Place by the value, from 1."""
    best: int
    """1 and the number of models that are surely better; the rank is between this and `worst`."""
    worst: int
    """The number of models less those that are surely worse."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Results that were found and not ranked."""

    repo_id: str
    branch: str
    reason: str
    """In our own words: nothing of what was found stands in it as it is."""


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """A leaderboard of one graded data set."""

    dataset: str
    """``org/name``."""
    commit: str
    fingerprint: str
    graded_by: str
    split: Split
    """That the ranks are of."""
    counts: Mapping[Split, Mapping[int, int]]
    """Questions for each split and bucket."""
    standings: tuple[Standing, ...]
    """The first first."""
    left_out: tuple[LeftOut, ...]
    private: int
    """Models that are not public and so do not show, whoever made this page."""
    made: str
    """When, in UTC."""
