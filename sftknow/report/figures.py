"""The figures of the report, drawn with matplotlib. Those that the paper has carry its numbers, the others letters.

Each is made of panels that are files of their own and stand side by side where there is room. Every function gives None
where the run does not hold what the figure needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from sftknow.records import BUCKETS, SPLITS
from sftknow.report.aggregate import (
    SPLIT_TITLES,
    Estimate,
    ExposureBin,
    Group,
    divergence_points,
    estimate,
    exposure_bins,
    group_models,
    group_task,
    groups,
    leaf_task,
    spearman,
    wrong_bins,
)
from sftknow.report.collect import BASE, Report
from sftknow.report.layout import Figure, Panel, Value
from sftknow.report.style import (
    INK,
    LOOKS,
    PAPER,
    RED,
    drawing,
    legend_below,
    line_with_bars,
    look,
    to_panel,
)
from sftknow.report.tables import plus_minus, scored_splits


def _sentence(parts: Iterable[str]) -> str:
    return "; ".join(parts) + "."


def distribution(report: Report) -> Figure | None:
    """Figure A: share of each bucket for each split."""
    graded = report.graded
    splits = [s for s in SPLITS if graded and sum(graded.counts[s].values())]
    if graded is None or not splits:
        return None
    title = "Share of facts in each mastery bucket"
    rows: list[tuple[Value, ...]] = []
    said = []
    with drawing(height=3.3) as (figure, axes):
        left = [0.0] * len(splits)
        names = [SPLIT_TITLES[s] for s in splits]
        for bucket in BUCKETS:
            widths = [100 * graded.counts[s][bucket] / sum(graded.counts[s].values()) for s in splits]
            bars = axes.barh(
                names,
                widths,
                left=left,
                color=LOOKS[bucket].colour,
                edgecolor=PAPER,
                label=f"bucket {bucket}",
                height=0.68,
            )
            labels = [f"{w:.0f}" if w >= 6 else "" for w in widths]
            # Dark text on all five colours: it reads on the lightest and on the darkest of them alike.
            axes.bar_label(bars, labels=labels, label_type="center", fontsize=9.5, color="#000000")
            left = [a + b for a, b in zip(left, widths, strict=True)]
            rows += [(s, bucket, graded.counts[s][bucket], w) for s, w in zip(splits, widths, strict=True)]
        for split in splits:
            total = sum(graded.counts[split].values())
            parts = ", ".join(f"{100 * graded.counts[split][b] / total:.0f} %" for b in BUCKETS)
            said.append(f"{SPLIT_TITLES[split]}: {parts}")
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("share of the split’s facts (%)")
        axes.grid(visible=False, axis="y")
        legend_below(figure, axes)
        panel = to_panel(figure, id="figure-a-distribution", title=title, alt=f"{title}, 0 to 4. {_sentence(said)}")
    return Figure(
        id="figure-a-distribution",
        title=f"Figure A · {title}",
        note="Bucket 0: never completed with the answer. Bucket 4: completed with it in more than three quarters of "
        "the samples.",
        panels=(panel,),
        columns=("split", "bucket", "facts", "share (%)"),
        rows=tuple(rows),
    )


def _exposure_panel(bins: Sequence[ExposureBin], *, id: str, title: str, xlabel: str, wrong: bool) -> Panel:
    places = range(len(bins))
    with drawing() as (figure, axes):
        low = [b.mean - min(b.quartiles[0], b.mean) for b in bins]
        high = [max(b.quartiles[1], b.mean) - b.mean for b in bins]
        means = [b.mean for b in bins]
        line_with_bars(axes, places, means, (low, high), LOOKS[0], "mean R, quartiles")
        if wrong:
            axes.plot(
                places, [b.wrong_share for b in bins], color=RED, marker="v", linestyle="--", label="wrong statements"
            )
        axes.set_xticks(list(places), [b.title for b in bins])
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel(xlabel)
        axes.set_ylabel("share (0 to 1)" if wrong else "mean R (0 to 1)")
        legend_below(figure, axes)
        said = (f"{b.title}: mean R {b.mean:.2f} over {b.facts:,} facts" for b in bins)
        return to_panel(figure, id=id, title=title, alt=f"{title}. By {xlabel}: {_sentence(said)}")


def exposure(report: Report) -> Figure | None:
    """Figure B: R against what the lab's model really saw."""
    if report.exposed is None:
        return None
    seen, wrong = exposure_bins(report.exposed), wrong_bins(report.exposed)
    panels = [
        _exposure_panel(
            seen,
            id="figure-b-exposure-seen",
            title="R against statements seen",
            xlabel="statements about the fact in pretraining",
            wrong=True,
        )
    ]
    if len(wrong) > 1:
        panels.append(
            _exposure_panel(
                wrong,
                id="figure-b-exposure-wrong",
                title="R against wrong statements, facts seen 6 times or more",
                xlabel="statements naming another answer (%)",
                wrong=False,
            )
        )
    related = spearman(report.exposed.exposures, report.exposed.rate)
    strength = (
        f" Rank correlation of exposure and R: {plus_minus(related.rho)} over {related.count:,} facts."
        if related
        else ""
    )
    kinds = (("statements seen", seen), ("wrong statements (%)", wrong))
    return Figure(
        id="figure-b-exposure",
        title="Figure B · Measured mastery against true exposure",
        note=f"Points: mean R; bars: from the lower to the upper quartile of R over a bin’s facts.{strength}",
        panels=tuple(panels),
        columns=("binned by", "bin", "facts", "mean R", "lower quartile", "upper quartile", "wrong share"),
        rows=tuple((kind, b.title, b.facts, b.mean, *b.quartiles, b.wrong_share) for kind, bins in kinds for b in bins),
    )


Point = tuple[Group, Estimate]


def _size_axis(axes: Axes, sizes: Sequence[int]) -> None:
    axes.set_xscale("log")
    ticks = sorted(set(sizes))
    shown = [t for i, t in enumerate(ticks) if i == 0 or t / ticks[i - 1] > 1.25 or i == len(ticks) - 1]
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(shown, [f"{t:,}" for t in shown])
    axes.set_xlim(ticks[0] / 1.3, ticks[-1] * 1.3)
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
        return to_panel(figure, id=id, title=title, alt=f"{title}; {ylabel} by training facts. {_sentence(said)}")


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


def _divergence_points(report: Report) -> list[Point]:
    points = []
    for group in groups(report, scored=False):
        found = [report.divergences[c.name] for c in group.cells if c.name in report.divergences]
        if found:
            values = [d.mean for d in found]
            mean = sum(values) / len(values)
            several = len(values) > 1
            deviation = (sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1)) ** 0.5
            error = deviation if several else (found[0].high - found[0].low) / (2 * 1.959964)
            runs = len(values)
            points.append(
                (group, Estimate(value=mean, error=error, over_seeds=several, runs=runs, count=found[0].count))
            )
    return points


def divergence(report: Report) -> Figure | None:
    """Figures 4 and 5, and the two against each other."""
    moved = _divergence_points(report)
    if not moved:
        return None
    task = leaf_task("test", BUCKETS[-1])
    known = [(g, e) for g in groups(report) if (e := estimate(group_models(report, g), task))]
    base = estimate([report.models[BASE]], task) if BASE in report.models else None
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
    points = divergence_points(report)
    related = spearman([kl for _, kl, _ in points], [right for _, _, right in points])
    strength = " Too few models for a rank correlation."
    if related:
        interval = ""
        if related.low is not None and related.high is not None:
            interval = f", 95 % interval {plus_minus(related.low)} to {plus_minus(related.high)}"
        strength = (
            f" Spearman’s rank correlation of the two: {plus_minus(related.rho)} over {related.count} models{interval}."
        )
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


def _scatter(report: Report, points: Sequence[tuple[str, float, float]]) -> Panel:
    title = "Divergence and bucket-4 accuracy, model by model"
    with drawing() as (figure, axes):
        seen: set[str] = set()
        for name, kl, right in points:
            cell = report.cells.get(name)
            source = cell.source if cell else name
            style = look(cell.bucket if cell else None, source)
            label = (
                None if source in seen else (f"bucket {cell.bucket}" if cell and cell.bucket is not None else source)
            )
            seen.add(source)
            axes.plot([kl], [100 * right], style.marker, color=style.colour, label=label)
        axes.set_xlabel("KL(tuned ‖ base) (nats)")
        axes.set_ylabel("bucket-4 accuracy (%)")
        legend_below(figure, axes)
        said = (f"{name}: {kl:.3f} nats, {100 * right:.1f} %" for name, kl, right in points)
        return to_panel(figure, id="figure-5-scatter", title=title, alt=f"{title}. {_sentence(said)}")


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
        axes.set_ylabel("loss (nats per answer token)")
        axes.set_ylim(bottom=0)
        legend_below(figure, axes)
        panel = to_panel(figure, id="figure-c-loss", title=title, alt=f"{title} by step. {_sentence(said)}")
    return Figure(
        id="figure-c-loss",
        title=f"Figure C · {title}",
        note="The largest training of each source, its first seed. The data hold every model’s curve.",
        panels=(panel,),
        columns=("model", "step", "loss (nats)"),
        rows=tuple(rows),
    )
