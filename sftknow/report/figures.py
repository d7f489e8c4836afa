"""Figures of training: accuracy and divergence against training size, loss. The paper's carry its numbers.

Each is made of panels that are files of their own and stand side by side where there is room. Every function gives None
where the run does not hold what the figure needs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from sftknow.report.aggregate import (
    SPLIT_TITLES,
    Estimate,
    Group,
    estimate,
    group_models,
    group_task,
    groups,
    source_title,
)
from sftknow.report.contents import BASE, Report
from sftknow.report.divergence_statistics import (
    KNOWN,
    DivergencePoint,
    divergence_estimate,
    model_points,
    rank_correlation,
    training_points,
)
from sftknow.report.entries import plus_minus, scored_splits
from sftknow.report.layout import Figure, Panel, Value
from sftknow.report.style import (
    INK,
    drawing,
    legend_below,
    line_with_bars,
    look,
    sentence,
    to_panel,
)

Point = tuple[Group, Estimate]


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
    axes.set_xlabel("training facts (logarithmic)")


def _by_size(
    points: Sequence[Point], *, id: str, title: str, ylabel: str, base: Estimate | None, scale: float
) -> Panel:
    """Lines over training size, one a source, with the base as a level line."""
    sources = list(dict.fromkeys(group.source for group, _ in points))
    said = []
    with drawing() as (figure, axes):
        for place, source in enumerate(sources):
            line = [(g, e) for g, e in points if g.source == source]
            style = look(line[0][0].bucket, source)
            nudge = 1.02 ** (place - (len(sources) - 1) / 2)  # so that error bars do not hide each other
            x = [g.size * nudge for g, _ in line]
            y = [scale * e.value for _, e in line]
            errors = [scale * e.error if math.isfinite(e.error) else 0.0 for _, e in line]
            line_with_bars(axes, x, y, errors, style, line[0][0].trained_on)
            said.append(
                f"{line[0][0].trained_on}: "
                + ", ".join(f"{v:.3g} at {g.size:,}" for v, (g, _) in zip(y, line, strict=True))
            )
        if base is not None:
            axes.axhline(scale * base.value, color=INK, linestyle=(0, (1, 1.5)), linewidth=1.4, label="base model")
            said.append(f"base model: {scale * base.value:.3g}")
        _size_axis(axes, [g.size for g, _ in points])
        axes.set_ylabel(ylabel)
        axes.set_ylim(bottom=0)
        legend_below(figure, axes)
        return to_panel(figure, id=id, title=title, alt=f"{title}; {ylabel} by training facts. {sentence(said)}")


def _error_words(estimates: Iterable[Estimate]) -> str:
    kinds = {e.over_seeds for e in estimates}
    several, single = "one standard deviation over seeds", "one standard error over questions (a single seed)"
    return (
        f"Bars: {several} where there are several, else {single}."
        if len(kinds) > 1
        else f"Bars: {several if True in kinds else single}."
    )


def accuracy_by_size(report: Report) -> Figure | None:
    """Figure 2: accuracy against training size, one line a training bucket."""
    panels, rows, all_points = [], [], []
    for split in scored_splits(report, ("test", "testood")):
        task = group_task(split)
        points = [(g, e) for g in groups(report) if (e := estimate(group_models(report, g), task))]
        if not points:
            continue
        base = estimate([report.models[BASE]], task) if BASE in report.models else None
        panels.append(
            _by_size(
                points,
                id=f"figure-2-accuracy-{split}",
                title=SPLIT_TITLES[split].capitalize(),
                ylabel="mean accuracy (%)",
                base=base,
                scale=100,
            )
        )
        rows += [(split, g.trained_on, g.size, e.runs, 100 * e.value, 100 * e.error) for g, e in points]
        if base:
            rows.append((split, "nothing (base model)", 0, 1, 100 * base.value, 100 * base.error))
        all_points += [e for _, e in points]
    if not panels:
        return None
    return Figure(
        id="figure-2-accuracy",
        title="Figure 2 · Accuracy against training size",
        note=f"Mean over the five test buckets. {_error_words(all_points)}",
        panels=tuple(panels),
        columns=("split", "trained on", "facts", "seeds", "accuracy (%)", "error (points)"),
        rows=tuple(rows),
    )


def divergence(report: Report) -> Figure | None:
    """Figures 4 and 5, and the two against each other."""
    moved = [(g, e) for g in groups(report, scored=False) if (e := divergence_estimate(report, g))]
    if not moved:
        return None
    known = [(g, e) for g in groups(report) if (e := estimate(group_models(report, g), KNOWN))]
    base = estimate([report.models[BASE]], KNOWN) if BASE in report.models else None
    panels = [
        _by_size(
            moved,
            id="figure-5-divergence",
            title="Figure 5: divergence of the first token",
            ylabel="KL(tuned ‖ base) (nats)",
            base=None,
            scale=1,
        )
    ]
    if known:
        panels.insert(
            0,
            _by_size(
                known,
                id="figure-4-bucket-4",
                title="Figure 4: accuracy on bucket-4 test facts",
                ylabel="bucket-4 accuracy (%)",
                base=base,
                scale=100,
            ),
        )
    points, trainings = model_points(report), training_points(report)
    strength = f" {_correlation_words(trainings, points)}"
    if len(points) > 2:
        panels.append(_scatter(report, points))
    rows: list[tuple[Value, ...]] = [
        ("divergence (nats)", g.trained_on, g.size, e.runs, e.value, e.error) for g, e in moved
    ]
    rows += [("bucket-4 accuracy (%)", g.trained_on, g.size, e.runs, 100 * e.value, 100 * e.error) for g, e in known]
    return Figure(
        id="figure-4-5-divergence",
        title="Figures 4 and 5 · Divergence from the base, and what the base knew best",
        note=f"{_error_words(e for _, e in known or moved)}{strength}",
        panels=tuple(panels),
        columns=("what", "trained on", "facts", "seeds", "value", "error"),
        rows=tuple(rows),
    )


def _correlation_words(trainings: Sequence[DivergencePoint], models: Sequence[DivergencePoint]) -> str:
    """The rank correlation over trainings, whose seeds are one point, and over single models where they are more."""
    related = rank_correlation(trainings)
    if related is None:
        return "Too few trainings for a rank correlation."
    interval = ""
    if related.low is not None and related.high is not None:
        interval = f", 95 % interval {plus_minus(related.low)} to {plus_minus(related.high)}"
    words = (
        f"Spearman’s rank correlation of the two: {plus_minus(related.rho)} over {related.count} trainings{interval}"
    )
    single = rank_correlation(models)
    if single is None or len(models) == len(trainings):
        return f"{words}."
    return (
        f"{words} (seeds taken together); over the {single.count} single models {plus_minus(single.rho)}, where the "
        "seeds of a training are not independent of each other."
    )


def _scatter(report: Report, points: Sequence[DivergencePoint]) -> Panel:
    title = "Divergence and bucket-4 accuracy, model by model"
    with drawing() as (figure, axes):
        seen: set[str] = set()
        for point in points:
            cell = report.cells.get(point.name)
            source = cell.source if cell else point.name
            style = look(cell.bucket if cell else None, source)
            label = None if source in seen else source_title(source, cell.bucket if cell else None)
            seen.add(source)
            axes.plot([point.nats], [100 * point.accuracy], style.marker, color=style.colour, label=label)
        axes.set_xlabel("KL(tuned ‖ base) (nats)")
        axes.set_ylabel("bucket-4 accuracy (%)")
        legend_below(figure, axes)
        said = (f"{point.name}: {point.nats:.3f} nats, {100 * point.accuracy:.1f} %" for point in points)
        return to_panel(figure, id="figure-5-scatter", title=title, alt=f"{title}. {sentence(said)}")


def loss(report: Report) -> Figure | None:
    """Figure C: training loss of each source's largest size."""
    largest = {g.source: g for g in groups(report, scored=False) if any(c.name in report.losses for c in g.cells)}
    if not largest:
        return None
    rows: list[tuple[Value, ...]] = [
        (name, step, value) for name in sorted(report.losses, key=report.order) for step, value in report.losses[name]
    ]
    title = "Training loss"
    said = []
    with drawing() as (figure, axes):
        for group in largest.values():
            style = look(group.bucket, group.source)
            cell = next(c for c in group.cells if c.name in report.losses)
            curve = report.losses[cell.name]
            steps, values = [s for s, _ in curve], [v for _, v in curve]
            axes.plot(
                steps,
                values,
                color=style.colour,
                marker=style.marker,
                markevery=max(1, len(steps) // 8),
                linestyle=style.line,
                linewidth=1.3,
                label=f"{group.trained_on}, {group.size:,}",
            )
            said.append(f"{group.title}: from {values[0]:.2f} to {values[-1]:.2f} in {steps[-1]:.0f} steps")
        axes.set_xlabel("training step")
        axes.set_ylabel("loss (nats per token)")
        axes.set_ylim(bottom=0)
        legend_below(figure, axes)
        panel = to_panel(figure, id="figure-c-loss", title=title, alt=f"{title} by step. {sentence(said)}")
    return Figure(
        id="figure-c-loss",
        title=f"Figure C · {title}",
        note="The largest training of each source, its first seed; over answer tokens alone. The data hold every "
        "model’s curve.",
        panels=(panel,),
        columns=("model", "step", "loss (nats)"),
        rows=tuple(rows),
    )
