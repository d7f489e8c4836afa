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

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from sftknow.artifacts.choice import ENDED
from sftknow.prompts import CHAT
from sftknow.records import BUCKETS
from sftknow.report.aggregate import Estimate, estimate
from sftknow.report.blocks import report_block
from sftknow.report.contents import BASE, SPLIT_TITLES, Model, Report, Training
from sftknow.report.entries import accuracy_of, estimate_entry
from sftknow.report.layout import Entry, Field, Figure, Panel, Table, figure, tabulate
from sftknow.report.paper import SIZES, table
from sftknow.report.style import base_line, chart, line_with_bars, look, use_space

METRIC_TITLES = {"acc": "contains", "acc_word": "whole word", "exact_match": "exact", ENDED: "ends by itself"}


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
        value, spread = theirs[len(BUCKETS) if bucket is None else bucket] if theirs is not None else (None, None)
        same, place = line.size == max(SIZES), f"{max(SIZES):,} facts"
        return report.beside.entry(entry, value, number=2, same=same, place=place, spread=spread)

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
        f"line of a column.{report.beside.legend(2) if printed else ''}",
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
        shown = [] if base is None else [scale * base.value]
        for place, source in enumerate(sources):
            line = [(t, e) for t, e in points if t.source == source]
            first = line[0][0]
            nudge = 1.02 ** (place - (len(sources) - 1) / 2)  # so that error bars do not hide each other
            y = [scale * e.value for _, e in line]
            errors = [scale * e.error if math.isfinite(e.error) else 0.0 for _, e in line]
            style = look(first.bucket, source)
            # Between two sizes nothing was measured that a line could follow.
            drawn = "none" if len(line) < 3 else ""
            line_with_bars(made.axes, [t.size * nudge for t, _ in line], y, errors, style, first.trained_on, line=drawn)
            shown += [value + way * error for value, error in zip(y, errors, strict=True) for way in (-1, 1)]
            at = ", ".join(f"{v:.3g} at {t.size:,}" for v, (t, _) in zip(y, line, strict=True))
            made.said.append(f"{first.trained_on}: {at}")
        if base is not None:
            base_line(made.axes, scale * base.value)
            made.said.append(f"base model: {scale * base.value:.3g}")
        _size_axis(made.axes, [t.size for t, _ in points])
        use_space(made.axes, shown)
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
    """Name in the paper's Table 7; empty where it has none."""
    taken: str | None = None
    """None where the run has none."""
    models: Sequence[Model] = ()
    """One a seed."""
    unrestored: tuple[str, Sequence[Model]] | None = None
    """Of a restored training: its name, and the same seeds as they were trained."""


def _best_of(report: Report, candidates: Iterable[Strategy], title: str, key: str) -> Strategy:
    """The best candidate, picked on dev."""
    scored = [(e.value, c) for c in candidates if (e := estimate(c.models, report.choosing_split))]
    return max(scored, key=lambda found: found[0])[1] if scored else Strategy(title, key)


def _as_asked(report: Report, name: str) -> str:
    """How a model beside the grid was asked."""
    grid = (report.recipe or {}).get("grid") or {}
    own = grid.get("chat_template") and name.removesuffix(CHAT) in (grid.get("baselines") or {})
    return f"as it is, in {'its own chat template' if own and name.endswith(CHAT) else 'the prompt of fine-tuning'}"


@report_block("table-7", section="accuracy")
def strategies(report: Report) -> Table | None:
    """Table 7: each way of fine-tuning at its best."""
    found, largest = report.trainings, report.large_size
    divided = [t for t in found if t.bucket is not None and (largest is None or (t.size == largest and not t.all))]
    levels = [(r, level) for r in report.restored_trainings if r.in_grid for level in r.shared_levels]
    levels = [(r, level) for r, level in levels if r.size == largest] or levels
    # Of a training that was restored those seeds alone, so that the lines are of the same models.
    same_seeds = {r.name: r.plain(level) for r, level in levels}

    def best(title: str, key: str, trainings: Iterable[Training]) -> Strategy:
        candidates = (Strategy(title, key, t.title, same_seeds.get(t.title, t.models)) for t in trainings)
        return _best_of(report, candidates, title, key)

    title, key = "Parameter restoration", "restored"
    restored = _best_of(
        report,
        (Strategy(title, key, f"{r.name}, {k} restored", r.at(k), (r.name, r.plain(k))) for r, k in levels),
        title,
        key,
    )
    others = sorted(report.other_models.items())
    lines = [
        *(Strategy(name, "instruct", _as_asked(report, name), [model]) for name, model in others),
        best("SFT (mixed)", "mixed", [t for t in found if t.source == "mixed"]),
        best("SFT (divided)", "divided", divided),
        best("LoRA", "lora", [t for t in found if t.source == "lora"]),
        restored,
    ]
    if restored.unrestored:
        lines.append(Strategy("The same models unrestored", "", *restored.unrestored))
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
        # The paper does not say how its instruct model is asked, nor how and on how much its LoRA model is trained; of
        # the mixed ones it takes the best of all sizes.
        same = line.key == "mixed" or (line.key in ("divided", "restored") and largest == max(SIZES))
        return report.beside.entry(entry, table(7).get(line.key, {}).get(split), number=7, same=same)

    where = "dev split" if report.choosing_split == "dev" else SPLIT_TITLES[report.choosing_split]
    return tabulate(
        lines,
        Field("Strategy", lambda line: line.title),
        Field("The one taken", lambda line: line.taken),
        Field("Seeds", lambda line: len(line.models) or None),
        *(Field(SPLIT_TITLES[s].capitalize(), partial(shown, s), unit="%") for s in splits),
        id="table-7-strategies",
        title="Table 7 · Ways to fine-tune",
        note=f"The best of each, picked on the {where}. Mixed and LoRA draw over all buckets, at any size; divided: "
        f"the best bucket{f' at {largest:,} facts' if largest else ''}, by the seeds that were restored where some "
        "were; restoration: the best level of the restored ones, with the same models unrestored below. Behind ±: "
        "standard deviation over seeds, or standard error over questions where there is one." + report.beside.legend(7),
    )


@report_block("table-b", section="accuracy")
def strictness(report: Report) -> Table | None:
    """Table B: the same means under three readings of "correct"."""
    splits = report.scored("test", "testood")
    kept = {metric for m in report.models.values() for _, _, metric in m.scores}

    def shown(split: str, metric: str, line: Line) -> Entry | None:
        return accuracy_of(split, None, metric, line.models) if estimate(line.models, split, None, metric) else None

    return tabulate(
        _lines(report) if splits else [],
        Field("Trained on", lambda line: line.trained_on),
        Field("Facts", lambda line: line.size),
        *(
            Field(title, partial(shown, split, metric), group=SPLIT_TITLES[split].capitalize(), unit="%")
            for split in splits
            for metric, title in METRIC_TITLES.items()
            if metric in kept
        ),
        id="table-b-strictness",
        title="Table B · The same accuracy under stricter readings",
        note="Contains: the output contains the answer (the paper’s reading, used everywhere else here). Whole "
        "word: it does so at word boundaries. Exact: the output is the answer, after case, punctuation and "
        "articles are set aside. Ends by itself: an end token came before the 16 tokens of an answer were used; only "
        "this says nothing of whether it is right.",
        folded=True,
    )
