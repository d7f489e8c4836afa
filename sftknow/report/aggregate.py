"""Means over seeds, differences with their uncertainty, rank correlation, bins: the arithmetic of the report.

Accuracies and their errors are shares between 0 and 1 here; they become percent where they are shown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sftknow.records import MetricValue
from sftknow.report.contents import Cell, Exposed, Floats, Model, Report
from sftknow.report.outcomes import Shared, shared_outcomes

SURE = 2.0
"""Standard errors beyond which a difference is called one."""

SPLIT_TITLES = {"train": "training", "dev": "dev", "test": "in-domain test", "testood": "out-of-domain test"}


def group_task(split: str) -> str:
    """Name of the task that is the plain mean over a split's buckets."""
    return f"cbqa_mastery_{split}"


def leaf_task(split: str, bucket: int) -> str:
    """Name of one bucket's task."""
    return f"cbqa_mastery_{split}_bucket_{bucket}"


@dataclass(frozen=True, kw_only=True)
class Group:
    """The cells of one training source and size: the same training with different seeds."""

    source: str
    bucket: int | None
    size: int
    all: bool
    cells: tuple[Cell, ...]

    @property
    def name(self) -> str:
        """Such as ``b2-n240``."""
        return f"{self.source}-n{'all' if self.all else self.size}"

    @property
    def trained_on(self) -> str:
        """Such as ``bucket 2``."""
        return source_title(self.source, self.bucket)

    @property
    def phrase(self) -> str:
        """Such as ``240 facts of bucket 2``."""
        return phrase(self.source, self.bucket, self.size)

    @property
    def title(self) -> str:
        """Such as ``bucket 2, 240 facts``."""
        return f"{self.trained_on}, {self.size:,} facts"


def source_title(source: str, bucket: int | None) -> str:
    """What a cell was trained on, in words."""
    if bucket is not None:
        return f"bucket {bucket}"
    return {"mixed": "all buckets mixed", "lora": "LoRA, all buckets"}.get(source, source)


def phrase(source: str, bucket: int | None, size: int) -> str:
    """A training in running text, such as ``240 facts of bucket 2``."""
    if bucket is not None:
        return f"{size:,} facts of bucket {bucket}"
    known = {"mixed": f"{size:,} facts of all buckets", "lora": f"{size:,} facts of all buckets with LoRA"}
    return known.get(source, f"{size:,} facts ({source})")


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


@dataclass(frozen=True, kw_only=True)
class RankCorrelation:
    """Spearman's coefficient with an approximate 95 % interval (None below five points)."""

    rho: float
    low: float | None
    high: float | None
    count: int


def groups(report: Report, *, scored: bool = True) -> list[Group]:
    """Cells by source and size in grid order; with `scored` only those that were evaluated."""
    members: dict[tuple[str, bool, int], list[Cell]] = {}
    for name in sorted(report.cells, key=report.order):
        cell = report.cells[name]
        if not scored or name in report.models:
            members.setdefault((cell.source, cell.all, 0 if cell.all else cell.size), []).append(cell)
    found = [
        Group(source=s, bucket=cells[0].bucket, size=cells[0].size, all=whole, cells=tuple(cells))
        for (s, whole, _), cells in members.items()
    ]
    return sorted(found, key=lambda g: (g.bucket is None, g.source, g.size, g.all))


def large_size(report: Report) -> int | None:
    """The largest size that at least two buckets, bucket 0 among them, were trained on (`all` left out)."""
    found = [g for g in groups(report) if g.bucket is not None and not g.all]
    with_unknown = {g.size for g in found if g.bucket == 0}
    return max((g.size for g in found if g.bucket != 0 and g.size in with_unknown), default=None)


def metric(model: Model, task: str, name: str = "acc") -> MetricValue | None:
    """A model's metric; the mean over buckets is worked out from the leaves where the group was not written."""
    try:
        return model.scores.value(task, name)
    except KeyError:
        leaves = [m for m in model.scores.metrics if m.metric == name and m.task.startswith(f"{task}_bucket_")]
    if not leaves or "_bucket_" in task:
        return None
    return MetricValue(
        task=task,
        metric=name,
        value=sum(m.value for m in leaves) / len(leaves),
        stderr=math.sqrt(sum(m.stderr**2 for m in leaves)) / len(leaves),
        count=sum(m.count for m in leaves),
    )


def estimate(models: Sequence[Model], task: str, name: str = "acc") -> Estimate | None:
    """Mean over runs (seeds) of one metric; None where none of them has it."""
    found = [m for model in models if (m := metric(model, task, name)) is not None and math.isfinite(m.value)]
    if not found:
        return None
    values = [m.value for m in found]
    several = len(values) > 1
    error = float(np.std(values, ddof=1)) if several else found[0].stderr
    return Estimate(
        value=float(np.mean(values)), error=error, over_seeds=several, runs=len(values), count=found[0].count
    )


def group_models(report: Report, group: Group) -> list[Model]:
    """The evaluated models of a group, one a seed."""
    return [report.models[c.name] for c in group.cells if c.name in report.models]


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
    task = group_task(split) if bucket is None else leaf_task(split, bucket)
    a, b = estimate(first, task), estimate(second, task)
    if a is None or b is None:
        return None
    between = [(e.error**2 / e.runs, e.runs - 1) for e in (a, b) if e.over_seeds]
    if same_runs and len(first) > 1:
        steps = [_step(one, two, task) for one, two in zip(first, second, strict=True)]
        between = [(float(np.var(steps, ddof=1)) / len(steps), len(steps) - 1)]
    shared = shared_outcomes([m.questions for m in first], [m.questions for m in second], split)
    gained = lost = None
    within = None
    if shared is not None:
        pairs = shared.only(bucket)
        within = _paired_variance(pairs)
        if len(first) == len(second) == 1:
            gained = int(np.count_nonzero(pairs.first > pairs.second))
            lost = int(np.count_nonzero(pairs.first < pairs.second))
    if within is None:
        within = sum(m.stderr**2 for group in (first, second) for m in (metric(group[0], task),) if m is not None)
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
    return Difference(
        value=value,
        stderr=math.sqrt(variance),
        freedom=variance**2 / spread if spread else math.inf,
        gained=gained,
        lost=lost,
    )


def _step(first: Model, second: Model, task: str) -> float:
    here, there = metric(first, task), metric(second, task)
    return here.value - there.value if here and there else math.nan


def _paired_variance(shared: Shared) -> float | None:
    """Variance of the plain mean over buckets of the mean differences; None where a bucket has under two questions."""
    kinds = np.unique(shared.buckets)
    differences = [(shared.first - shared.second)[shared.buckets == kind] for kind in kinds]
    if not differences or any(values.size < 2 for values in differences):
        return None
    return float(sum(np.var(values, ddof=1) / values.size for values in differences)) / len(differences) ** 2


def _ranks(values: Floats) -> Floats:
    """Ranks from 1, ties sharing their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place].astype(np.float64)


def spearman(x: Sequence[float] | Floats, y: Sequence[float] | Floats) -> RankCorrelation | None:
    """Spearman's rank correlation; None with under three points or where one side never varies.

    The interval is Fisher's z with the variance 1.06 / (n − 3) (Fieller, Hartley and Pearson, 1957). It takes the
    points as independent.
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.size < 3 or np.all(a == a[0]) or np.all(b == b[0]):
        return None
    rho = float(np.clip(np.corrcoef(_ranks(a), _ranks(b))[0, 1], -1.0, 1.0))
    if a.size < 5 or abs(rho) > 1 - 1e-12:
        return RankCorrelation(rho=rho, low=None, high=None, count=a.size)
    half = 1.959964 * math.sqrt(1.06 / (a.size - 3))
    return RankCorrelation(
        rho=rho, low=math.tanh(math.atanh(rho) - half), high=math.tanh(math.atanh(rho) + half), count=a.size
    )


@dataclass(frozen=True, kw_only=True)
class ExposureBin:
    """Facts seen about equally often in pretraining (lab)."""

    title: str
    facts: int
    mean: float
    """Mean R."""
    quartiles: tuple[float, float]
    """R of the facts at one and at three quarters of the bin."""
    wrong_share: float
    """Mean share of the statements seen that named another object."""


def exposure_bins(exposed: Exposed) -> list[ExposureBin]:
    """R by the number of statements seen in pretraining; empty bins are left out."""
    edges = (0, 1, 3, 6, 11, 21, 51, 101)
    return _binned(exposed, exposed.exposures, edges)


def wrong_bins(exposed: Exposed, at_least: int = 6) -> list[ExposureBin]:
    """R by the share of wrong statements (in percent), among facts that were seen at least that often."""
    often = exposed.exposures >= at_least
    kept = Exposed(exposures=exposed.exposures[often], wrong_share=exposed.wrong_share[often], rate=exposed.rate[often])
    return _binned(kept, np.round(100 * kept.wrong_share), (0, 1, 11, 21, 31, 41, 51))


def _binned(exposed: Exposed, values: Floats, edges: Sequence[int]) -> list[ExposureBin]:
    bins = []
    for low, high in zip(edges, [*(e - 1 for e in edges[1:]), None], strict=True):
        inside = (values >= low) & (values <= (math.inf if high is None else high))
        if not inside.any():
            continue
        rate = exposed.rate[inside]
        title = f"> {low - 1}" if high is None else str(low) if high == low else f"{low}–{high}"
        quartiles = (float(np.quantile(rate, 0.25)), float(np.quantile(rate, 0.75)))
        bins.append(
            ExposureBin(
                title=title,
                facts=int(inside.sum()),
                mean=float(rate.mean()),
                quartiles=quartiles,
                wrong_share=float(exposed.wrong_share[inside].mean()),
            )
        )
    return bins
