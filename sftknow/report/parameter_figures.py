"""Figures about parameters: where the largest changes lie (Figure D) and what restoring them does (Figure E)."""

from __future__ import annotations

import math

from sftknow.records import ParameterChange
from sftknow.report.aggregate import SPLIT_TITLES, estimate, group_task, metric
from sftknow.report.collect import BASE, Report, level_share
from sftknow.report.layout import Figure, Panel, Value
from sftknow.report.parameter_tables import shares, shown_change
from sftknow.report.style import INK, LOOKS, MUTED, drawing, legend_below, line_with_bars, look, to_panel
from sftknow.report.tables import cell_title, scored_splits


def _levels_shown(change: ParameterChange, most: int = 5) -> list[str]:
    """At most five levels, spread over those there are: more lines would not be told apart."""
    levels = [s.level for s in sorted(change.levels, key=lambda s: level_share(s.level)) if s.selected]
    if len(levels) <= most:
        return levels
    return [levels[round(i * (len(levels) - 1) / (most - 1))] for i in range(most)]


def _enrichment_panel(change: ParameterChange, kind: str) -> Panel:
    rows = shares(change, kind)
    keys = [key for key, _, _ in rows]
    title = f"Enrichment by {kind}"
    said = []
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
            said.append(f"top {level}: " + ", ".join(f"{k} {v:.2f}" for k, v in zip(keys, values, strict=True)))
        axes.axhline(1, color=INK, linewidth=1, linestyle=(0, (1, 1.5)), label="as its size")
        step = max(1, len(keys) // 12) if numbers else 1
        axes.set_xticks(range(0, len(keys), step), [k.replace("self_attn.", "attn.") for k in keys[::step]])
        if not numbers:
            axes.tick_params(axis="x", rotation=35)
            for label in axes.get_xticklabels():
                label.set_horizontalalignment("right")
        axes.set_xlim(-0.5, len(keys) - 0.5)
        axes.set_ylim(bottom=0)
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
        panels=tuple(_enrichment_panel(change, kind) for kind in ("layer", "module")),
        columns=("kind", "part", "level", "share of selected (%)", "enrichment"),
        rows=tuple(rows),
    )


def restoration(report: Report) -> Figure | None:
    """Figure E: accuracy against the share restored, one line a restored model."""
    panels: list[Panel] = []
    rows: list[tuple[Value, ...]] = []
    for split in scored_splits(report, ("test", "testood")):
        names = [n for n in report.restored_cells if metric(report.models[n], group_task(split))]
        if names:
            panels.append(_restoration_panel(report, split, names, rows))
    if not panels:
        return None
    return Figure(
        id="figure-e-restoration",
        title="Figure E · Accuracy after restoring",
        note="The share of elements set back to the base’s values grows to the right, in even steps of level, not "
        "of share; 0 % is the model as it was trained. Bars: one standard error over questions; the "
        "differences along a line are surer than these bars show, because the questions are the same (Table 4).",
        panels=tuple(panels),
        columns=("split", "model", "level", "accuracy (%)", "standard error (points)"),
        rows=tuple(rows),
    )


def _restoration_panel(report: Report, split: str, names: list[str], rows: list[tuple[Value, ...]]) -> Panel:
    levels = sorted({level for n in names for level in report.restored(n)}, key=level_share)
    title = SPLIT_TITLES[split].capitalize()
    said = []
    styles: dict[str, int] = {}
    with drawing() as (figure, axes):
        for name in names:
            cell = report.cells.get(name)
            style = look(cell.bucket if cell else None, cell.source if cell else name)
            turn = styles[style.colour] = styles.get(style.colour, -1) + 1  # several sizes of one bucket differ by line
            found = [
                (levels.index(level), e)
                for level, model in report.restored(name).items()
                if (e := estimate([model], group_task(split)))
            ]
            values = [100 * e.value for _, e in found]
            line_with_bars(
                axes,
                [x for x, _ in found],
                values,
                [100 * e.error if math.isfinite(e.error) else 0.0 for _, e in found],
                style,
                cell_title(report, name),
                line=("-", "--", ":", "-.")[turn % 4],
            )
            rows += [(split, name, levels[x], 100 * e.value, 100 * e.error) for x, e in found]
            said.append(
                f"{cell_title(report, name)}: "
                + ", ".join(f"{v:.1f} at {levels[x]}" for v, (x, _) in zip(values, found, strict=True))
            )
        if report.choice and report.choice.cell in names and report.choice.level in levels:
            axes.axvline(
                levels.index(report.choice.level), color=MUTED, linewidth=1, linestyle="--", label="level chosen"
            )
        if BASE in report.models and (base := estimate([report.models[BASE]], group_task(split))):
            axes.axhline(100 * base.value, color=INK, linestyle=(0, (1, 1.5)), linewidth=1.4, label="base model")
        axes.set_xticks(range(len(levels)), levels)
        axes.set_xlabel("share of elements restored")
        axes.set_ylabel("mean accuracy (%)")
        axes.set_ylim(bottom=0)
        legend_below(figure, axes)
        return to_panel(
            figure,
            id=f"figure-e-restoration-{split}",
            title=title,
            alt=f"{title} after restoring. " + "; ".join(said) + ".",
        )
