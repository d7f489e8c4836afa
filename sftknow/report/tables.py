"""The tables of the report. Those that the paper has carry its numbers, the others carry letters.

Every function gives None where the run does not hold what the table needs. Accuracies are shown in percent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sftknow.artifacts.levels import level_share
from sftknow.records import BUCKETS, SPLITS
from sftknow.report.aggregate import (
    SPLIT_TITLES,
    Estimate,
    estimate,
    exposure_bins,
    group_models,
    group_task,
    groups,
    large_size,
    leaf_task,
)
from sftknow.report.contents import BASE, Model, Report
from sftknow.report.entries import cell_title, estimate_entry, scored_splits, share_entry, whole, words
from sftknow.report.layout import Column, Entry, Table
from sftknow.report.paper import SIZES, distributions, table

METRIC_TITLES = {"acc": "contains", "acc_word": "whole word", "exact_match": "exact"}


def distribution(report: Report) -> Table | None:
    """Table 1: facts in each split and bucket."""
    graded = report.graded
    if graded is None:
        return None
    rows = []
    printed = distributions()[report.beside.shown(1)]
    for split in SPLITS:
        counts = graded.counts[split]
        inside = np.array([s == split for s in graded.splits])
        edge = float(graded.edge[inside].mean()) if inside.any() else math.nan
        total = sum(counts.values())
        entries = [_count_of(report, counts[b], total, printed.get(split), b) for b in BUCKETS]
        rows.append(
            (words(SPLIT_TITLES[split]), *entries, whole(total))
            + ((share_entry(edge),) if total else (words("no facts"),))
        )
    return Table(
        id="table-1-distribution",
        title="Table 1 · Facts by mastery",
        note="Facts in each bucket. Bucket 0: the base model never completed a statement with the answer. Bucket i: "
        "it did in more than (i−1)/4 and at most i/4 of the samples. “Near an edge”: facts whose 95 % interval "
        "of R crosses a bucket’s edge, so that another draw of samples might have put them elsewhere."
        + report.beside.legend(1),
        columns=(
            Column(title="Split"),
            *(Column(title=f"Bucket {b}", unit="facts") for b in BUCKETS),
            Column(title="All", unit="facts"),
            Column(title="Near an edge", unit="%"),
        ),
        rows=tuple(rows),
    )


def _count_of(report: Report, count: int, total: int, printed: Sequence[int] | None, bucket: int) -> Entry:
    """Facts of a bucket with their share; beside it the paper's count for its own models, else the paper's share."""
    share = 100 * count / total if total else 0.0
    entry = Entry(text=f"{count:,}", value=count, note=f"{share:.0f} %", extra={"share (%)": share})
    if printed is None:
        return entry
    if report.beside.has(1):
        return report.beside.entry(entry, printed[bucket], number=1, digits=0)
    part = 100 * printed[bucket] / sum(printed)
    return replace(entry, paper=f"paper {part:.0f} %", extra={**entry.extra, "paper's share (%)": part})


def exposure(report: Report) -> Table | None:
    """Table A: R by how often the lab's model saw a fact."""
    if report.exposed is None:
        return None
    rows = [
        (
            words(b.title),
            whole(b.facts),
            Entry(text=f"{b.mean:.2f}", value=b.mean),
            Entry(
                text=f"{b.quartiles[0]:.2f} to {b.quartiles[1]:.2f}",
                extra={"low": b.quartiles[0], "high": b.quartiles[1]},
            ),
            share_entry(b.wrong_share),
        )
        for b in exposure_bins(report.exposed)
    ]
    return Table(
        id="table-a-exposure",
        title="Table A · Measured mastery against true exposure",
        note="How often the pretraining text stated a fact is known in the lab. R is the share of sampled "
        "continuations that contain the answer; half of a line’s facts lie between its quartiles. “Wrong”: the "
        "mean share of the statements about a fact that named another answer.",
        columns=(
            Column(title="Statements seen"),
            Column(title="Facts"),
            Column(title="Mean R"),
            Column(title="Quartiles of R"),
            Column(title="Wrong", unit="%"),
        ),
        rows=tuple(rows),
    )


Line = tuple[str, int, list[Model]]
"""Training source, facts, models (one a seed)."""


def _lines(report: Report) -> list[Line]:
    """(training source, facts, models) for the base and every group."""
    lines = [("nothing (base model)", 0, [report.models[BASE]])] if BASE in report.models else []
    lines += [(g.trained_on, g.size, group_models(report, g)) for g in groups(report)]
    lines += [
        (name, 0, [model])
        for name, model in report.models.items()
        if name != BASE and "@" not in name and name not in report.cells
    ]
    return lines


def _best(found: Sequence[Estimate | None], skip_first: bool) -> float:
    values = [e.value for e in found[1 if skip_first else 0 :] if e is not None]
    best = max(values, default=math.inf)
    # Nothing stands out where the best is zero or where it is shared by most.
    return math.inf if best == 0 or values.count(best) > max(1, len(values) // 3) else best


def accuracy(report: Report) -> Table | None:
    """Table 2: accuracy per training bucket and test bucket at the largest size, mean and spread over seeds."""
    size = large_size(report)
    if size is None:
        sizes = [g.size for g in groups(report) if not g.all] or [g.size for g in groups(report)]
        size = max(sizes, default=None)
    lines = [line for line in _lines(report) if line[1] in (0, size)]
    if size is None or not lines:
        return None
    return _accuracy_table(
        report,
        lines,
        id="table-2-accuracy",
        title=f"Table 2 · Accuracy by training bucket and test bucket, {size:,} facts",
        printed=table(2)[report.beside.shown(2)],
    )


def every_size(report: Report) -> Table | None:
    """Table 2 over all sizes: the base and every group of cells."""
    lines = _lines(report)
    if len({size for _, size, _ in lines} - {0}) < 2:
        return None
    title = "Table 2, every size · Accuracy by training and test bucket"
    return _accuracy_table(report, lines, id="table-2-every-size", title=title, printed={}, folded=True)


def _accuracy_table(
    report: Report,
    lines: Sequence[Line],
    *,
    id: str,
    title: str,
    printed: Mapping[str, Mapping[str, Sequence[Sequence[float]]]],
    folded: bool = False,
) -> Table | None:
    splits = scored_splits(report, ("test", "testood"))
    if not splits or not lines:
        return None
    tasks = [(s, t) for s in splits for t in (*(leaf_task(s, b) for b in BUCKETS), group_task(s))]
    columns = [
        Column(
            title="Mean" if t == group_task(s) else f"Bucket {t[-1]}",
            group=SPLIT_TITLES[s].capitalize(),
            unit="%",
        )
        for s, t in tasks
    ]
    found = {t: [estimate(models, t) for _, _, models in lines] for _, t in tasks}
    several = any(len(models) > 1 for _, _, models in lines)
    several_sizes = len({size for _, size, _ in lines} - {0}) > 1
    rows = []
    for place, (source, size, models) in enumerate(lines):
        entries = []
        theirs = printed.get(source.removeprefix("bucket "), {})
        for column, (split, task) in enumerate(tasks):
            here = found[task][place]
            best = here is not None and here.value == _best(found[task], BASE in report.models) and place > 0
            value = theirs[split][column % (len(BUCKETS) + 1)][0] if split in theirs else None
            entry = estimate_entry(here, best=best)
            entries.append(report.beside.entry(entry, value, number=2, same=size == max(SIZES)))
        sizes = (whole(size),) if several_sizes else ()
        rows.append((words(source), *sizes, whole(len(models)), *entries))
    spread = (
        "Behind ±: the standard deviation over seeds where a line has several, else the standard error over questions."
    )
    return Table(
        id=id,
        title=title,
        note="Greedy answers to questions; correct if the output contains the answer or a synonym. The mean is the "
        "plain mean of the five buckets. "
        f"{spread if several else 'Behind ±: the standard error over questions.'} Bold: the best fine-tuned "
        f"line of a column.{report.beside.legend(2) + ' Its numbers are at 1,920 facts.' if printed else ''}",
        columns=(
            Column(title="Trained on"),
            *((Column(title="Facts"),) if several_sizes else ()),
            Column(title="Seeds"),
            *columns,
        ),
        rows=tuple(rows),
        stacked=True,
        folded=folded,
    )


def strictness(report: Report) -> Table | None:
    """Table B: the same means under three readings of "correct"."""
    splits = scored_splits(report, ("test", "testood"))
    if not splits:
        return None
    columns = [
        Column(title=title, group=SPLIT_TITLES[s].capitalize(), unit="%")
        for s in splits
        for title in METRIC_TITLES.values()
    ]
    rows = [
        (
            words(source),
            whole(size),
            *(estimate_entry(estimate(models, group_task(s), m)) for s in splits for m in METRIC_TITLES),
        )
        for source, size, models in _lines(report)
    ]
    return Table(
        id="table-b-strictness",
        title="Table B · The same accuracy under stricter readings",
        note="Contains: the output contains the answer (the paper’s reading, used everywhere else here). Whole "
        "word: it does so at word boundaries. Exact: the output is the answer, after case, punctuation and "
        "articles are set aside.",
        columns=(Column(title="Trained on"), Column(title="Facts"), *columns),
        rows=tuple(rows),
        folded=True,
    )


def every_model(report: Report) -> Table | None:
    """Table C: one line a model, restored ones included."""
    splits = scored_splits(report, SPLITS)
    if not splits:
        return None

    def order(name: str) -> tuple[Any, ...]:
        owner, _, level = name.partition("@")
        return (owner != BASE, report.order(owner), level_share(level.replace("pct", "%")) if level else -1)

    rows = []
    for name in sorted(report.models, key=order):
        model = report.models[name]
        rows.append((words(name), *(estimate_entry(estimate([model], group_task(s))) for s in splits)))
    return Table(
        id="table-c-models",
        title="Table C · Every model",
        note="Mean over buckets of each split the model was scored on, with its standard error over questions.",
        columns=(Column(title="Model"), *(Column(title=SPLIT_TITLES[s], unit="%") for s in splits)),
        rows=tuple(rows),
        folded=True,
    )


def training(report: Report) -> Table | None:
    """Table D: steps and loss of each cell."""
    if not report.losses:
        return None
    rows = []
    for name in sorted(report.losses, key=report.order):
        curve = report.losses[name]
        tail = [loss for _, loss in curve[-max(1, len(curve) // 5) :]]
        last = float(np.mean(tail))
        rows.append(
            (
                words(cell_title(report, name)),
                whole(int(curve[-1][0])),
                Entry(text=f"{curve[0][1]:.2f}", value=curve[0][1]),
                Entry(text=f"{last:.2f}", value=last),
            )
        )
    return Table(
        id="table-d-training",
        title="Table D · Training",
        note="Loss over answer tokens, in nats a token: the first one logged, and the mean over the last fifth of "
        "those logged.",
        columns=(
            Column(title="Trained on"),
            Column(title="Steps"),
            Column(title="First loss"),
            Column(title="Last loss"),
        ),
        rows=tuple(rows),
        folded=True,
    )
