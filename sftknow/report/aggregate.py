"""Means over seeds and differences with their uncertainty: the arithmetic of the report.

Accuracies and their errors are shares between 0 and 1 here; they become percent where they are shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sftknow.artifacts.choice import ChooseBy, Measured, choose_level
from sftknow.report.by_fact import Shared, shared_outcomes
from sftknow.report.cells import is_draw
from sftknow.report.contents import BASE, Model, Report, Restored, Training
from sftknow.report.words import Difference


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
    values: tuple[float, ...] = ()
    """One a run."""

    @property
    def between(self) -> list[tuple[float, int]]:
        """Variance of the mean over several seeds with its degrees of freedom, as `pooled` takes it."""
        return [(self.error**2 / self.runs, self.runs - 1)] if self.over_seeds else []

    @property
    def without(self) -> tuple[float, float]:
        """Least and largest mean with one of several runs left out; the value itself where there is one run."""
        if len(self.values) < 2:
            return self.value, self.value
        left = [(sum(self.values) - value) / (len(self.values) - 1) for value in self.values]
        return min(left), max(left)


def over_runs(values: Sequence[float], error: float, count: int) -> Estimate:
    """Mean over runs (seeds) with their spread.

    Args:
        values: one a run.
        error: standard error of the first, which stands where it is the only one.
        count: questions or facts behind a value.
    """
    several = len(values) > 1
    error = float(np.std(values, ddof=1)) if several else error
    mean, runs = float(np.mean(values)), len(values)
    return Estimate(value=mean, error=error, over_seeds=several, runs=runs, count=count, values=tuple(values))


def estimate(models: Sequence[Model], split: str, bucket: int | None = None, metric: str = "acc") -> Estimate | None:
    """Mean over runs (seeds) of one score; None where none of them has it.

    Args:
        models: one a run.
        split: whose questions.
        bucket: one bucket; None for the plain mean over them.
        metric: ``acc``, ``acc_word``, ``exact_match`` or ``ended``.
    """
    found = [s for m in models if (s := m.score(split, bucket, metric)) is not None and math.isfinite(s.value)]
    return over_runs([s.value for s in found], found[0].stderr, found[0].count) if found else None


def measured(models: Sequence[Model], split: str) -> Measured | None:
    """Means over runs (seeds) of containment and what stands beside it; None where none of them was scored."""

    def value(metric: str) -> float | None:
        found = estimate(models, split, metric=metric)
        return found.value if found else None

    return Measured.by(value)


def broken_form(report: Report, models: Sequence[Model], split: str) -> tuple[str, ...]:
    """The measures by which fine-tuned models break the form of answers, compared with the base."""
    here = measured(models, split)
    base = measured([report.models[BASE]], split) if BASE in report.models else None
    return here.broken(base) if here and base else ()


def ranked(
    report: Report, trainings: Iterable[Training], split: str, by: ChooseBy | None = None
) -> list[tuple[Training, float]]:
    """Trainings with their mean accuracy on a split, the best first, equals in the order given.

    The best is best as the run chooses, or by what is given (`sftknow.artifacts.choice`); by ``both`` those whose
    answers break their form come last.
    """
    by = by or report.choosing_by
    found = [(t, m) for t in trainings if (m := measured(t.models, split))]

    def key(pair: tuple[Training, Measured]) -> tuple[bool, float]:
        training, here = pair
        exact = here.acc if here.exact_match is None else here.exact_match
        broken = by == "both" and bool(broken_form(report, training.models, split))
        return broken, -(exact if broken or by == "exact" else here.acc)

    return [(training, here.acc) for training, here in sorted(found, key=key)]


def compare(
    first: Sequence[Model],
    second: Sequence[Model],
    split: str,
    bucket: int | None = None,
    *,
    same_runs: bool = False,
    metric: str = "acc",
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
            varies between runs is then the difference. Of one run nothing is said beyond that model.
        metric: as for `estimate`.
    """
    a, b = estimate(first, split, bucket, metric), estimate(second, split, bucket, metric)
    if a is None or b is None:
        return None
    between, without = [*a.between, *b.between], (a.without[0] - b.without[1], a.without[1] - b.without[0])
    draws = min((len(side) for side in (first, second) if any(is_draw(m.name) for m in side)), default=None)
    if same_runs:
        scores = [
            (one.score(split, bucket, metric), two.score(split, bucket, metric))
            for one, two in zip(first, second, strict=True)
        ]
        steps = over_runs([one.value - two.value for one, two in scores if one and two], math.nan, a.count)
        between, without = steps.between, steps.without
        draws = len(first) if len(first) > 1 else None
    within, shared = question_variance(first, second, split, bucket, metric)
    single = shared is not None and len(first) == len(second) == 1
    return pooled(
        a.value - b.value,
        between,
        within,
        changed=None if shared is None else shared.gained + shared.lost,
        gained=shared.gained if shared is not None and single else None,
        lost=shared.lost if shared is not None and single else None,
        draws=draws,
        without=without if between else None,
    )


def question_variance(
    first: Sequence[Model], second: Sequence[Model], split: str, bucket: int | None = None, metric: str = "acc"
) -> tuple[float, Shared | None]:
    """Variance of the difference of two groups over the choice of questions, and the questions where all kept them."""
    shared = shared_outcomes([m.questions for m in first], [m.questions for m in second], split, metric)
    if shared is not None:
        shared = shared.only(bucket)
        within = _paired_variance(shared)
        if within is not None:
            return within, shared
    scores = (side[0].score(split, bucket, metric) for side in (first, second))
    return sum(s.stderr**2 for s in scores if s is not None), shared


def pooled(value: float, between: Sequence[tuple[float, int]], within: float, **about: Any) -> Difference:
    """A difference with the error that its parts have together.

    The degrees of freedom are those of the runs alone (Welch and Satterthwaite): questions are many, but a spread over
    two or three runs that comes out small by chance must not lend their number to the whole. Of questions those
    that changed count: seven gained and one lost are eight coins.

    Args:
        value: the difference.
        between: variances of means over runs with their degrees of freedom: runs are few.
        within: variance over questions or facts.
        about: ``changed``, the number of questions that changed, and fields of `Difference`.
    """
    total, spread = sum(v for v, _ in between), sum(v**2 / freedom for v, freedom in between)
    freedom: float = total**2 / spread if spread else sum(freedom for _, freedom in between) or math.inf
    changed = about.pop("changed", None)
    if changed is not None:
        freedom = min(freedom, max(1, changed - 1))
    return Difference(value=value, stderr=math.sqrt(total + within), freedom=freedom, **about)


def _paired_variance(shared: Shared) -> float | None:
    """Variance of the plain mean over buckets of the mean differences; None where a bucket has under two questions."""
    kinds = np.unique(shared.buckets)
    differences = [(shared.first - shared.second)[shared.buckets == kind] for kind in kinds]
    if not differences or any(values.size < 2 for values in differences):
        return None
    return float(sum(np.var(values, ddof=1) / values.size for values in differences)) / len(differences) ** 2


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What restoring a training adds in-domain at the level chosen for it."""

    training: Restored
    level: str
    found: Difference


def chosen_level(report: Report, training: Restored) -> str | None:
    """The level that is best on the split that choices are made on, over the training's seeds; None without scores."""
    levels = ["0%", *training.shared_levels]
    found = {k: m for k in levels if (m := measured(training.at(k), report.choosing_split))}
    return choose_level(found, report.choosing_by) if len(found) == len(levels) > 1 else None


def chosen_for(report: Report, cell: str) -> str:
    """The level that is best for a single model on the split that choices are made on, as the run chooses it."""
    found = {k: m for k, model in report.restored(cell).items() if (m := measured([model], report.choosing_split))}
    return choose_level(found, report.choosing_by) if found else "0%"


def chosen_gains(report: Report) -> list[Gain]:
    """Of every restored training: its gain on the in-domain test at the level chosen for it.

    Where there is no dev split the level is picked on the test itself, and the gain corrected for every level tried.
    """
    gains = []
    for r in report.restored_trainings:
        level = chosen_level(report, r)
        found = compare(r.at(level), r.plain(level), "test", same_runs=True) if level else None
        if level and found:
            looks = len(r.shared_levels) if report.choosing_split == "test" else 1
            gains.append(Gain(training=r, level=level, found=found.widened(looks)))
    return gains
