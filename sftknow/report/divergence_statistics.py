"""How far trainings moved the first token: means over seeds, differences, and how that goes with accuracy.

A training is a kind of data and a size; its seeds are taken together. Divergences are KL(tuned ‖ base) in nats over the
ten likeliest tokens (paper, 4.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sftknow.records import BUCKETS, TokenDivergence
from sftknow.report.aggregate import (
    Difference,
    Estimate,
    Group,
    RankCorrelation,
    estimate,
    group_models,
    groups,
    leaf_task,
    metric,
    pooled,
    spearman,
)
from sftknow.report.contents import Floats, Report

_HALF_WIDTH = 1.959964
"""Standard errors from the middle to the end of a 95 % interval."""
KNOWN = leaf_task("test", BUCKETS[-1])
"""Accuracy on the test facts that the base knew best."""


def divergence_estimate(report: Report, group: Group) -> Estimate | None:
    """Mean divergence of a training: behind ±, the spread over its seeds, or the bootstrap error where it has one."""
    found = _measured(report, group)
    if not found:
        return None
    values = [d.mean for d in found]
    several = len(values) > 1
    error = float(np.std(values, ddof=1)) if several else _error(found[0])
    return Estimate(
        value=float(np.mean(values)), error=error, over_seeds=several, runs=len(values), count=found[0].count
    )


def _measured(report: Report, group: Group) -> list[TokenDivergence]:
    return [report.divergences[c.name] for c in group.cells if c.name in report.divergences]


def _error(found: TokenDivergence) -> float:
    return (found.high - found.low) / (2 * _HALF_WIDTH)


def compare_divergence(report: Report, first: Group, second: Group) -> Difference | None:
    """First minus second in mean divergence (nats), with the error of paired facts and of seeds.

    Each fact's divergence is averaged over seeds and paired; the variance between seeds is added to it. Where single
    facts were not kept the two are taken as independent, which makes the error too large.
    """
    a, b = divergence_estimate(report, first), divergence_estimate(report, second)
    if a is None or b is None:
        return None
    between = [(e.error**2 / e.runs, e.runs - 1) for e in (a, b) if e.over_seeds]
    within = _paired_variance(report, first, second)
    if within is None:
        within = sum(float(np.mean([_error(d) ** 2 for d in _measured(report, group)])) for group in (first, second))
    return pooled(a.value - b.value, between, within)


def _paired_variance(report: Report, first: Group, second: Group) -> float | None:
    """Variance of the mean difference over facts that all models of both have; None where facts were not kept."""
    kept = [
        [report.fact_divergences[c.name].values for c in group.cells if c.name in report.divergences]
        for group in (first, second)
    ]
    every = [facts for side in kept for facts in side]
    if not all(every):
        return None
    shared = sorted(set(every[0]).intersection(*every[1:]))
    if len(shared) < 2:
        return None
    one, two = (np.mean([[facts[f] for f in shared] for facts in side], axis=0) for side in kept)
    return float(np.var(one - two, ddof=1)) / len(shared)


@dataclass(frozen=True, kw_only=True)
class DivergencePoint:
    """A training or a single model, by its divergence and what it still knows."""

    name: str
    nats: float
    accuracy: float
    """On bucket-4 test questions, between 0 and 1."""


def model_points(report: Report) -> list[DivergencePoint]:
    """Every fine-tuned model that has both."""
    points = []
    for name in sorted(report.divergences, key=report.order):
        model = report.models.get(name)
        known = metric(model, KNOWN) if model else None
        if known is not None:
            points.append(DivergencePoint(name=name, nats=report.divergences[name].mean, accuracy=known.value))
    return points


def training_points(report: Report) -> list[DivergencePoint]:
    """Every training that has both, as means over its seeds."""
    points = []
    for group in groups(report):
        moved, known = divergence_estimate(report, group), estimate(group_models(report, group), KNOWN)
        if moved is not None and known is not None:
            points.append(DivergencePoint(name=group.title, nats=moved.value, accuracy=known.value))
    return points


def rank_correlation(points: Sequence[DivergencePoint]) -> RankCorrelation | None:
    """Spearman's coefficient of divergence and accuracy; see `spearman`."""
    x: Floats = np.array([point.nats for point in points])
    y: Floats = np.array([point.accuracy for point in points])
    return spearman(x, y)
