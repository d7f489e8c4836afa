"""What fine-tuning does to answers: by training and test bucket, size, reading, model and way of training.

Every function gives None where the run does not hold what the table or figure needs. Accuracies are
shown in percent.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from sftknow.artifacts.levels import level_share
from sftknow.records import BUCKETS, SPLITS
from sftknow.report.aggregate import Estimate, estimate
from sftknow.report.blocks import report_block
from sftknow.report.contents import BASE, SPLIT_TITLES, Model, Report, Training
from sftknow.report.entries import accuracy_of, estimate_entry, number_entry
from sftknow.report.layout import Entry, Field, Figure, Panel, Table, figure, tabulate
from sftknow.report.paper import SIZES, table
from sftknow.report.style import base_line, chart, line_with_bars, look

METRIC_TITLES = {"acc": "contains", "acc_word": "whole word", "exact_match": "exact"}


@dataclass(frozen=True)
class Line:
    """A training, or a model that stands by itself."""

    trained_on: str
    size: int
    """Training facts; 0 for a model that the run did not train."""
    models: Sequence[Model]
    """One a seed."""


def _lines(report: Report) -> list[Line]:
    """The base, every training, and the models beside the grid."""
    lines = [Line("nothing (base model)", 0, [report.models[BASE]])] if BASE in report.models else []
    lines += [Line(t.trained_on, t.size, t.models) for t in report.trainings]
    return lines + [Line(name, 0, [model]) for name, model in report.other_models.items()]


@report_block("table-2", section="accuracy")
def accuracy(report: Report) -> Table | None:
    """Table 2: accuracy per training bucket and test bucket at the largest size, mean and spread over seeds."""
    size = report.large_size
    if size is None:
        sizes = [t.size for t in report.trainings if not t.all] or [t.size for t in report.trainings]
        size = max(sizes, default=None)
    if size is None:
        return None
    return _accuracy_table(
        report,
        [line for line in _lines(report) if line.size in (0, size)],
        id="table-2-accuracy",
        title=f"Table 2 · Accuracy by training bucket and test bucket, {size:,} facts",
        printed=table(2)[report.beside.shown(2)],
    )


@report_block("table-2-every-size", section="accuracy")
def every_size(report: Report) -> Table | None:
    """Table 2 over all sizes: the base and every group of cells."""
    lines = _lines(report)
    if len({line.size for line in lines} - {0}) < 2:
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
    splits = report.scored("test", "testood")
    if not splits or not lines:
        return None

    def shown(split: str, bucket: int | None, best: float, line: Line) -> Entry:
        here = estimate(line.models, split, bucket)
        entry = estimate_entry(here, best=here is not None and here.value == best and line is not lines[0])
        theirs = printed.get(line.trained_on.removeprefix("bucket "), {}).get(split)
        value = theirs[len(BUCKETS) if bucket is None else bucket][0] if theirs is not None else None
        return report.beside.entry(entry, value, number=2, same=line.size == max(SIZES))

    columns = []
    for split in splits:
        for bucket in (*BUCKETS, None):
            best = _best(lines, split, bucket, skip_first=BASE in report.models)
            show = partial(shown, split, bucket, best)
            heading = "Mean" if bucket is None else f"Bucket {bucket}"
            columns.append(Field(heading, show, group=SPLIT_TITLES[split].capitalize(), unit="%"))
    several_sizes = len({line.size for line in lines} - {0}) > 1
    spread = (
        "Behind ±: the standard deviation over seeds where a line has several, else the standard error over questions."
        if any(len(line.models) > 1 for line in lines)
        else "Behind ±: the standard error over questions."
    )
    return tabulate(
        lines,
        Field("Trained on", lambda line: line.trained_on),
        *([Field("Facts", lambda line: line.size)] if several_sizes else []),
        Field("Seeds", lambda line: len(line.models)),
        *columns,
        id=id,
        title=title,
        note="Greedy answers to questions; correct if the output contains the answer or a synonym. The mean is the "
        f"plain mean of the five buckets. {spread} Bold: the best fine-tuned "
        f"line of a column.{report.beside.legend(2) + ' Its numbers are at 1,920 facts.' if printed else ''}",
        stacked=True,
        folded=folded,
    )


def _best(lines: Sequence[Line], split: str, bucket: int | None, *, skip_first: bool) -> float:
    values = [e.value for line in lines[skip_first:] if (e := estimate(line.models, split, bucket)) is not None]
    best = max(values, default=math.inf)
    # Nothing stands out where the best is zero or where it is shared by most.
    return math.inf if best == 0 or values.count(best) > max(1, len(values) // 3) else best


Point = tuple[Training, Estimate]


def size_panel(
    points: Sequence[Point], *, id: str, title: str, ylabel: str, base: Estimate | None = None, scale: float = 1
) -> Panel:
    """Lines over training size, one a source, with the base as a level line."""
    xlabel = "training facts (logarithmic)"
    with chart(id=id, title=title, xlabel=xlabel, ylabel=ylabel, lead=f"; {ylabel} by training facts.") as made:
        sources = list(dict.fromkeys(training.source for training, _ in points))
        for place, source in enumerate(sources):
            line = [(t, e) for t, e in points if t.source == source]
            first = line[0][0]
            nudge = 1.02 ** (place - (len(sources) - 1) / 2)  # so that error bars do not hide each other
            y = [scale * e.value for _, e in line]
            errors = [scale * e.error if math.isfinite(e.error) else 0.0 for _, e in line]
            style = look(first.bucket, source)
            line_with_bars(made.axes, [t.size * nudge for t, _ in line], y, errors, style, first.trained_on)
            at = ", ".join(f"{v:.3g} at {t.size:,}" for v, (t, _) in zip(y, line, strict=True))
            made.said.append(f"{first.trained_on}: {at}")
        if base is not None:
            base_line(made.axes, scale * base.value)
            made.said.append(f"base model: {scale * base.value:.3g}")
        _size_axis(made.axes, [t.size for t, _ in points])
        made.axes.set_ylim(bottom=0)
    return made.panel


def _size_axis(axes: Axes, sizes: Sequence[int]) -> None:
    axes.set_xscale("log")
    # Whole buckets are of any size: sizes that lines share come first, then the largest, then what has room between.
    lines = Counter(sizes)
    shown: list[int] = []
    for size in sorted(lines, key=lambda size: (lines[size] == 1, size != max(sizes), size)):
        if all(max(size, other) / min(size, other) > 1.5 for other in shown):
            shown.append(size)
    shown.sort()
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(shown, [f"{t:,}" for t in shown])
    axes.set_xlim(min(sizes) / 1.3, max(sizes) * 1.3)


def error_words(estimates: Iterable[Estimate]) -> str:
    """What the bars of a figure are."""
    kinds = {e.over_seeds for e in estimates}
    several, single = "one standard deviation over seeds", "one standard error over questions (a single seed)"
    if len(kinds) > 1:
        return f"Bars: {several} where there are several, else {single}."
    return f"Bars: {several if True in kinds else single}."


@report_block("figure-2", section="accuracy")
def accuracy_by_size(report: Report) -> Figure | None:
    """Figure 2: accuracy against training size, one line a training bucket."""
    panels, rows, estimates = [], [], []
    for split in report.scored("test", "testood"):
        points = [(t, e) for t in report.trainings if (e := estimate(t.models, split))]
        if not points:
            continue
        base = estimate([report.models[BASE]], split) if BASE in report.models else None
        title = SPLIT_TITLES[split].capitalize()
        id, ylabel = f"figure-2-accuracy-{split}", "mean accuracy (%)"
        panels.append(size_panel(points, id=id, title=title, ylabel=ylabel, base=base, scale=100))
        rows += [(split, t.trained_on, t.size, e.runs, 100 * e.value, 100 * e.error) for t, e in points]
        if base:
            rows.append((split, "nothing (base model)", 0, 1, 100 * base.value, 100 * base.error))
        estimates += [e for _, e in points]
    return figure(
        panels,
        id="figure-2-accuracy",
        title="Figure 2 · Accuracy against training size",
        note=f"Mean over the five test buckets. {error_words(estimates)}",
        columns=("split", "trained on", "facts", "seeds", "accuracy (%)", "error (points)"),
        rows=rows,
    )


@dataclass(frozen=True)
class Strategy:
    """A way to fine-tune, and the one of its kind that is taken."""

    title: str
    key: str
    """Name in the paper's Table 7."""
    taken: str | None
    """None where the run has none."""
    models: Sequence[Model]


def _best_of(report: Report, title: str, key: str, candidates: Sequence[tuple[str, Sequence[Model]]]) -> Strategy:
    """The best candidate, picked on dev."""
    scored = [(e.value, name, models) for name, models in candidates if (e := estimate(models, report.choosing_split))]
    if not scored:
        return Strategy(title, key, None, [])
    _, name, models = max(scored, key=lambda found: found[0])
    return Strategy(title, key, name, models)


def restored_candidates(report: Report, size: int | None) -> list[tuple[str, list[Model]]]:
    """Every training of a size (every training for None) at every level that all its restored seeds have."""
    found = [r for r in report.restored_trainings if r.in_grid and size in (None, r.size)]
    return [(f"{r.name}, {level} restored", r.at(level)) for r in found for level in r.shared_levels]


@report_block("table-7", section="accuracy")
def strategies(report: Report) -> Table | None:
    """Table 7: each way of fine-tuning at its best."""
    found, largest = report.trainings, report.large_size
    divided = [t for t in found if t.bucket is not None]
    if largest is not None:
        divided = [t for t in divided if t.size == largest and not t.all]

    def best(title: str, key: str, trainings: Sequence[Training]) -> Strategy:
        return _best_of(report, title, key, [(t.title, t.models) for t in trainings])

    lines = [Strategy(name, "instruct", "as it is", [model]) for name, model in sorted(report.other_models.items())]
    lines += [
        best("SFT (mixed)", "mixed", [t for t in found if t.source == "mixed"]),
        best("SFT (divided)", "divided", divided),
        best("LoRA", "lora", [t for t in found if t.source == "lora"]),
        _best_of(
            report,
            "Parameter restoration",
            "restored",
            restored_candidates(report, largest) or restored_candidates(report, None),
        ),
    ]
    splits = report.scored("test", "testood")
    if not splits or sum(line.taken is not None for line in lines) < 2:
        return None
    if BASE in report.models:
        lines.insert(0, Strategy("Base model", "", "as it is", [report.models[BASE]]))
    highest = {s: max((e.value for line in lines if (e := estimate(line.models, s))), default=None) for s in splits}

    def shown(split: str, line: Strategy) -> Entry | None:
        if line.taken is None:
            return None
        here = estimate(line.models, split)
        entry = estimate_entry(here, best=here is not None and here.value == highest[split])
        same = report.beside.has(7) and (line.key in ("instruct", "mixed", "lora") or largest == 1920)
        return report.beside.entry(entry, table(7).get(line.key, {}).get(split), number=7, same=same)

    where = "dev split" if report.choosing_split == "dev" else SPLIT_TITLES[report.choosing_split]
    return tabulate(
        lines,
        Field("Strategy", lambda line: line.title),
        Field("The one taken", lambda line: line.taken),
        *(Field(SPLIT_TITLES[s].capitalize(), partial(shown, s), unit="%") for s in splits),
        id="table-7-strategies",
        title="Table 7 · Ways to fine-tune",
        note=f"The best of each, picked on the {where}. Mixed and LoRA draw over all buckets, at any size; divided: "
        f"the best bucket{f' at {largest:,} facts' if largest else ''}; restoration: the best level of the restored "
        "ones. Behind ±: standard deviation over seeds, or standard error over questions where there is one."
        + report.beside.legend(7),
    )


@report_block("table-b", section="accuracy")
def strictness(report: Report) -> Table | None:
    """Table B: the same means under three readings of "correct"."""
    splits = report.scored("test", "testood")

    def shown(split: str, metric: str, line: Line) -> Entry:
        return accuracy_of(split, None, metric, line.models)

    return tabulate(
        _lines(report) if splits else [],
        Field("Trained on", lambda line: line.trained_on),
        Field("Facts", lambda line: line.size),
        *(
            Field(title, partial(shown, split, metric), group=SPLIT_TITLES[split].capitalize(), unit="%")
            for split in splits
            for metric, title in METRIC_TITLES.items()
        ),
        id="table-b-strictness",
        title="Table B · The same accuracy under stricter readings",
        note="Contains: the output contains the answer (the paper’s reading, used everywhere else here). Whole "
        "word: it does so at word boundaries. Exact: the output is the answer, after case, punctuation and "
        "articles are set aside.",
        folded=True,
    )


@report_block("figure-c", section="accuracy")
def loss(report: Report) -> Figure | None:
    """Figure C: training loss of each source's largest size."""
    largest = {t.source: t for t in report.every_training if any(c.name in report.losses for c in t.cells)}
    if not largest:
        return None
    with chart(
        id="figure-c-loss",
        title="Training loss",
        xlabel="training step",
        ylabel="loss (nats per token)",
        lead=" by step.",
    ) as made:
        for training in largest.values():
            style = look(training.bucket, training.source)
            curve = next(report.losses[c.name] for c in training.cells if c.name in report.losses)
            steps, values = [s for s, _ in curve], [v for _, v in curve]
            made.axes.plot(
                steps,
                values,
                color=style.colour,
                marker=style.marker,
                markevery=max(1, len(steps) // 8),
                linestyle=style.line,
                linewidth=1.3,
                label=f"{training.trained_on}, {training.size:,}",
            )
            made.said.append(f"{training.title}: from {values[0]:.2f} to {values[-1]:.2f} in {steps[-1]:.0f} steps")
        made.axes.set_ylim(bottom=0)
    names = sorted(report.losses, key=report.order)
    return figure(
        [made.panel],
        id="figure-c-loss",
        title="Figure C · Training loss",
        note="The largest training of each source, its first seed; over answer tokens alone. The data hold every "
        "model’s curve.",
        columns=("model", "step", "loss (nats)"),
        rows=[(name, step, value) for name in names for step, value in report.losses[name]],
    )


@report_block("table-d", section="accuracy")
def training(report: Report) -> Table | None:
    """Table D: steps and loss of each cell."""

    def last_fifth(curve: Sequence[tuple[float, float]]) -> Entry:
        return number_entry(float(np.mean([loss for _, loss in curve[-max(1, len(curve) // 5) :]])))

    return tabulate(
        ((report.title(name), report.losses[name]) for name in sorted(report.losses, key=report.order)),
        Field("Trained on", lambda line: line[0]),
        Field("Steps", lambda line: int(line[1][-1][0])),
        Field("First loss", lambda line: number_entry(line[1][0][1])),
        Field("Last loss", lambda line: last_fifth(line[1])),
        id="table-d-training",
        title="Table D · Training",
        note="Loss over answer tokens, in nats a token: the first one logged, and the mean over the last fifth of "
        "those logged.",
        folded=True,
    )


@report_block("table-c", section="accuracy")
def every_model(report: Report) -> Table | None:
    """Table C: one line a model, restored ones included."""
    splits = report.scored(*SPLITS)

    def order(name: str) -> tuple[Any, ...]:
        owner, _, level = name.partition("@")
        return (owner != BASE, report.order(owner), level_share(level.replace("pct", "%")) if level else -1)

    def shown(split: str, name: str) -> Entry:
        return accuracy_of(split, None, "acc", [report.models[name]])

    return tabulate(
        sorted(report.models, key=order) if splits else [],
        Field("Model", str),
        *(Field(SPLIT_TITLES[split], partial(shown, split), unit="%") for split in splits),
        id="table-c-models",
        title="Table C · Every model",
        note="Mean over buckets of each split the model was scored on, with its standard error over questions.",
        folded=True,
    )
