"""Figures about parameters: where the largest changes lie (Figure D) and what restoring them does (Figure E)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sftknow.artifacts.levels import level_share
from sftknow.records import ParameterChange
from sftknow.report.aggregate import SPLIT_TITLES, estimate, group_task, groups, metric
from sftknow.report.contents import BASE, Model, Report
from sftknow.report.entries import cell_title, scored_splits
from sftknow.report.layout import Figure, Panel, Value
from sftknow.report.parameter_tables import shares, shown_change
from sftknow.report.style import INK, LOOKS, MUTED, drawing, legend_below, line_with_bars, look, to_panel

MOST_LINES = 7
"""Lines of one drawing."""


def _levels_shown(change: ParameterChange, most: int = 5) -> list[str]:
    """At most five levels, spread over those there are: more lines would not be told apart."""
    levels = [s.level for s in sorted(change.levels, key=lambda s: level_share(s.level)) if s.selected]
    if len(levels) <= most:
        return levels
    return [levels[round(i * (len(levels) - 1) / (most - 1))] for i in range(most)]


def enrichment_panel(change: ParameterChange, kind: str) -> Panel:
    """Enrichment of layers or modules (``kind``) among the elements that a level selects."""
    rows = shares(change, kind)
    keys = [key for key, _, _ in rows]
    title = f"Enrichment by {kind}"
    said = []
    said_values = [1.0]
    numbers = all(k.isdigit() for k in keys)
    with drawing() as (figure, axes):
        for place, level in enumerate(_levels_shown(change)):
            style = LOOKS[place]
            values = [found[level][1] for _, _, found in rows]
            axes.plot(
                range(len(keys)),
                values,
                color=style.colour,
                marker=style.marker,
                linestyle="-" if numbers else "none",
                label=f"top {level}",
            )
            said_values += values
            said.append(f"top {level}: " + ", ".join(f"{k} {v:.2f}" for k, v in zip(keys, values, strict=True)))
        axes.axhline(1, color=INK, linewidth=1, linestyle=(0, (1, 1.5)), label="as its size")
        step = max(1, len(keys) // 12) if numbers else 1
        axes.set_xticks(range(0, len(keys), step), [k.replace("self_attn.", "attn.") for k in keys[::step]])
        if not numbers:
            axes.tick_params(axis="x", rotation=35)
            for label in axes.get_xticklabels():
                label.set_horizontalalignment("right")
        axes.set_xlim(-0.5, len(keys) - 0.5)
        low, high = min(said_values), max(said_values)
        room = 0.1 * max(high - low, 0.2)  # differences of a few per cent are not blown up to fill the drawing
        axes.set_ylim(max(0.0, min(low, 0.9) - room), max(high, 1.1) + room)
        axes.set_xlabel(kind)
        axes.set_ylabel("enrichment (1 = as its size)")
        legend_below(figure, axes)
        return to_panel(figure, id=f"figure-d-{kind}", title=title, alt=f"{title}. " + "; ".join(said) + ".")


def where_changed(report: Report) -> Figure | None:
    """Figure D: enrichment of layers and modules among the most changed elements."""
    name = shown_change(report)
    if name is None or not report.changes[name].elements or not any(s.selected for s in report.changes[name].levels):
        return None
    change = report.changes[name]
    rows: list[tuple[Value, ...]] = [
        (kind, key, level, 100 * share, ratio)
        for kind in ("layer", "module")
        for key, _, levels in shares(change, kind)
        for level, (share, ratio) in levels.items()
    ]
    return Figure(
        id="figure-d-where",
        title="Figure D · Where the most changed elements lie",
        note=f"Model trained on {cell_title(report, name)}. Enrichment is a part’s share of the selected elements ÷ "
        "its share of the region.",
        panels=tuple(enrichment_panel(change, kind) for kind in ("layer", "module")),
        columns=("kind", "part", "level", "share of selected (%)", "enrichment"),
        rows=tuple(rows),
    )


def restoration(report: Report) -> Figure | None:
    """Figure E: accuracy against the share restored, one line a restored training."""
    panels: list[Panel] = []
    rows: list[tuple[Value, ...]] = []
    for split in scored_splits(report, ("test", "testood")):
        lines = _restored_lines(report, split)
        # Seven lines are told apart by colour and marker; more are cut by training size.
        cut: list[int | None] = [*sorted({line.size for line in lines})] if len(lines) > MOST_LINES else [None]
        for size in cut:
            shown = [line for line in lines if size in (None, line.size)]
            if shown:
                panels.append(_restoration_panel(report, split, shown, rows, size))
    if not panels:
        return None
    return Figure(
        id="figure-e-restoration",
        title="Figure E · Accuracy after restoring",
        note="The share of elements set back to the base’s values grows to the right, in even steps of level, not "
        "of share; 0 % is the model as it was trained. Bars: one standard deviation over seeds where there are "
        "several, else one standard error over questions; the differences along a line are surer than these bars "
        "show, because the questions are the same (Table 4).",
        panels=tuple(panels),
        columns=("split", "model", "level", "seeds", "accuracy (%)", "error (points)"),
        rows=tuple(rows),
    )


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A restored training: its models by level."""

    title: str
    source: str
    bucket: int | None
    size: int
    levels: Mapping[str, list[Model]]


def _restored_lines(report: Report, split: str) -> list[_Line]:
    def levels(names: Sequence[str]) -> dict[str, list[Model]]:
        found: dict[str, list[Model]] = {}
        for name in names:
            for level, model in report.restored(name).items():
                if metric(model, group_task(split)):
                    found.setdefault(level, []).append(model)
        return dict(sorted(found.items(), key=lambda item: level_share(item[0])))

    lines = []
    for group in groups(report):
        names = [c.name for c in group.cells if c.name in report.restored_cells]
        if found := levels(names):
            title = cell_title(report, names[0]) if len(names) == 1 else group.title
            lines.append(_Line(title=title, source=group.source, bucket=group.bucket, size=group.size, levels=found))
    return lines + [
        _Line(title=name, source=name, bucket=None, size=0, levels=found)
        for name in report.restored_cells
        if name not in report.cells and (found := levels([name]))
    ]


def _restoration_panel(
    report: Report, split: str, lines: Sequence[_Line], rows: list[tuple[Value, ...]], size: int | None
) -> Panel:
    levels = sorted({level for line in lines for level in line.levels}, key=level_share)
    title = SPLIT_TITLES[split].capitalize() + (f", {size:,} facts" if size is not None else "")
    said = []
    styles: dict[str, int] = {}
    with drawing() as (figure, axes):
        for line in lines:
            style = look(line.bucket, line.source)
            turn = styles[style.colour] = styles.get(style.colour, -1) + 1  # several sizes of one bucket differ by line
            found = [
                (levels.index(level), e)
                for level, models in line.levels.items()
                if (e := estimate(models, group_task(split)))
            ]
            values = [100 * e.value for _, e in found]
            line_with_bars(
                axes,
                [x for x, _ in found],
                values,
                [100 * e.error if math.isfinite(e.error) else 0.0 for _, e in found],
                style,
                line.title,
                line=("-", "--", ":", "-.")[turn % 4],
            )
            rows += [(split, line.title, levels[x], e.runs, 100 * e.value, 100 * e.error) for x, e in found]
            said.append(
                f"{line.title}: "
                + ", ".join(f"{v:.1f} at {levels[x]}" for v, (x, _) in zip(values, found, strict=True))
            )
        choice = report.choice
        if choice and choice.level in levels and report.cells.get(choice.cell):
            chosen = report.cells[choice.cell]
            if any(line.source == chosen.source and line.size == chosen.size for line in lines):
                axes.axvline(levels.index(choice.level), color=MUTED, linewidth=1, linestyle="--", label="level chosen")
        if BASE in report.models and (base := estimate([report.models[BASE]], group_task(split))):
            axes.axhline(100 * base.value, color=INK, linestyle=(0, (1, 1.5)), linewidth=1.4, label="base model")
        axes.set_xticks(range(len(levels)), levels)
        axes.set_xlabel("share of elements restored")
        axes.set_ylabel("mean accuracy (%)")
        axes.set_ylim(bottom=0)
        legend_below(figure, axes)
        return to_panel(
            figure,
            id=f"figure-e-restoration-{split}" + (f"-{size}" if size is not None else ""),
            title=title,
            alt=f"{title} after restoring. " + "; ".join(said) + ".",
        )
