"""Means over seeds and differences with their uncertainty: the arithmetic of the report.

Accuracies and their errors are shares between 0 and 1 here; they become percent where they are shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sftknow.report.by_fact import Shared, shared_outcomes
from sftknow.report.contents import Model, Training

SURE = 2.0
"""Standard errors beyond which a difference is called one."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value and how sure it is."""

    value: float
    error: float
    """Standard deviation over seeds where there are several, else the standard error over questions."""
    over_seeds: bool
    runs: int
    count: int
    """Questions behind the value (of one run)."""

    @property
    def between(self) -> list[tuple[float, int]]:
        """Variance of the mean over several seeds with its degrees of freedom, as `pooled` takes it."""
        return [(self.error**2 / self.runs, self.runs - 1)] if self.over_seeds else []


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How two models, or two groups of models, differ in the mean over buckets."""

    value: float
    stderr: float
    freedom: float = math.inf
    """Degrees of freedom of the standard error: few where seeds are few and their spread decides."""
    gained: int | None
    """Questions right only in the first; None where the questions are not there or there are several runs."""
    lost: int | None

    @property
    def sure(self) -> bool:
        """More than two standard errors from zero."""
        return abs(self.value) > SURE * self.stderr


def over_runs(values: Sequence[float], error: float, count: int) -> Estimate:
    """Mean over runs (seeds) with their spread.

    Args:
        values: one a run.
        error: standard error of the first, which stands where it is the only one.
        count: questions or facts behind a value.
    """
    several = len(values) > 1
    error = float(np.std(values, ddof=1)) if several else error
    return Estimate(value=float(np.mean(values)), error=error, over_seeds=several, runs=len(values), count=count)


def estimate(models: Sequence[Model], split: str, bucket: int | None = None, metric: str = "acc") -> Estimate | None:
    """Mean over runs (seeds) of one score; None where none of them has it.

    Args:
        models: one a run.
        split: whose questions.
        bucket: one bucket; None for the plain mean over them.
        metric: ``acc``, ``acc_word`` or ``exact_match``.
    """
    found = [s for m in models if (s := m.score(split, bucket, metric)) is not None and math.isfinite(s.value)]
    return over_runs([s.value for s in found], found[0].stderr, found[0].count) if found else None


def ranked(trainings: Iterable[Training], split: str) -> list[tuple[Training, float]]:
    """Trainings with their mean accuracy on a split, the best first, equals in the order given."""
    found = [(t, e.value) for t in trainings if (e := estimate(t.models, split))]
    return sorted(found, key=lambda pair: -pair[1])


def compare(
    first: Sequence[Model], second: Sequence[Model], split: str, bucket: int | None = None, *, same_runs: bool = False
) -> Difference | None:
    """First minus second in accuracy: the mean over buckets, or one bucket.

    The standard error is that of paired questions (each question's outcome averaged over runs), or of independent
    samples where questions were not kept; the variance between runs is added to it. Between-run variance is partly
    in the paired term already, so the error is rather too large than too small.

    Args:
        first: models of one kind, one a run (a training draw).
        second: of the other kind.
        split: whose questions.
        bucket: one bucket; None for the plain mean over them.
        same_runs: the models of both stand run by run, as a restored model beside the same model unrestored: what
            varies between runs is then the difference.
    """
    a, b = estimate(first, split, bucket), estimate(second, split, bucket)
    if a is None or b is None:
        return None
    between = [*a.between, *b.between]
    if same_runs and len(first) > 1:
        scores = [(one.score(split, bucket), two.score(split, bucket)) for one, two in zip(first, second, strict=True)]
        steps = [one.value - two.value if one and two else math.nan for one, two in scores]
        between = [(float(np.var(steps, ddof=1)) / len(steps), len(steps) - 1)]
    shared = shared_outcomes([m.questions for m in first], [m.questions for m in second], split)
    gained = lost = within = None
    if shared is not None:
        pairs = shared.only(bucket)
        within = _paired_variance(pairs)
        if len(first) == len(second) == 1:
            gained, lost = pairs.gained, pairs.lost
    if within is None:
        within = sum(s.stderr**2 for side in (first, second) if (s := side[0].score(split, bucket)) is not None)
    return pooled(a.value - b.value, between, within, gained=gained, lost=lost)


def pooled(
    value: float,
    between: Sequence[tuple[float, int]],
    within: float,
    *,
    gained: int | None = None,
    lost: int | None = None,
) -> Difference:
    """A difference with the error that its parts have together (Welch and Satterthwaite).

    Args:
        value: the difference.
        between: variances of means over runs with their degrees of freedom: runs are few.
        within: variance over questions or facts, which are many.
        gained: as `Difference`.
        lost: as `Difference`.
    """
    variance = sum(v for v, _ in between) + within
    spread = sum(v**2 / freedom for v, freedom in between)
    freedom = variance**2 / spread if spread else math.inf
    return Difference(value=value, stderr=math.sqrt(variance), freedom=freedom, gained=gained, lost=lost)


def _paired_variance(shared: Shared) -> float | None:
    """Variance of the plain mean over buckets of the mean differences; None where a bucket has under two questions."""
    kinds = np.unique(shared.buckets)
    differences = [(shared.first - shared.second)[shared.buckets == kind] for kind in kinds]
    if not differences or any(values.size < 2 for values in differences):
        return None
    return float(sum(np.var(values, ddof=1) / values.size for values in differences)) / len(differences) ** 2
