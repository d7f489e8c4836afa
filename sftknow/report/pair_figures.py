"""The figures of one checkpoint pair by itself, outside a run: how concentrated the change is, and where it lies."""

from __future__ import annotations

import math
from pathlib import Path

from sftknow.artifacts.files import atomic_file
from sftknow.artifacts.levels import level_share
from sftknow.records import ParameterChange
from sftknow.report.layout import Panel
from sftknow.report.parameter_figures import enrichment_panel
from sftknow.report.style import LOOKS, drawing, legend_below, to_panel


def change_panels(change: ParameterChange) -> list[Panel]:
    """Concentration, histogram of r, enrichment by layer and by module; what the pair has no data for is left out."""
    panels = []
    if any(math.isfinite(level.concentration) for level in change.levels):
        panels.append(_concentration(change))
    if any(edge > 0 and math.isfinite(edge) for edge, _ in change.histogram):
        panels.append(_histogram(change))
    if change.elements and any(level.selected for level in change.levels):
        panels += [enrichment_panel(change, kind) for kind in ("layer", "module")]
    return panels


def write_panels(folder: Path, panels: list[Panel]) -> None:
    """Each panel as ``ID.svg`` and ``ID.png``."""
    for panel in panels:
        with atomic_file(folder / f"{panel.id}.svg") as partial:
            partial.write_text(panel.svg, encoding="utf-8")
        with atomic_file(folder / f"{panel.id}.png") as partial:
            partial.write_bytes(panel.png)


def _concentration(change: ParameterChange) -> Panel:
    title = "Concentration of the change"
    levels = sorted(change.levels, key=lambda level: level_share(level.level))
    shares = [float(100 * level_share(level.level)) for level in levels]
    said = []
    with drawing() as (figure, axes):
        for place, (field, label) in enumerate(
            (("concentration", "all elements"), ("concentration_nonzero_base", "without base = 0"))
        ):
            values = [100 * getattr(level, field) for level in levels]
            look = LOOKS[place]
            axes.plot(shares, values, color=look.colour, marker=look.marker, label=label)
            said.append(f"{label}: " + ", ".join(f"{v:.1f} at {s:g} %" for s, v in zip(shares, values, strict=True)))
        axes.set_xlabel("elements selected (% of the region)")
        axes.set_ylabel("share of the relative change (%)")
        axes.set_xlim(left=0)
        axes.set_ylim(0, 105)
        legend_below(figure, axes)
        return to_panel(figure, id="concentration", title=title, alt=f"{title}. " + "; ".join(said) + ".")


def _histogram(change: ParameterChange) -> Panel:
    title = "Relative changes"
    rows = [(edge, count) for edge, count in change.histogram if edge > 0 and math.isfinite(edge)]
    with drawing() as (figure, axes):
        axes.bar(
            [edge for edge, _ in rows],
            [count for _, count in rows],
            width=[edge * (10**0.25 - 1) for edge, _ in rows],
            align="edge",
            color=LOOKS[0].colour,
        )
        axes.set_xscale("log")
        axes.set_xlabel("relative change r, a bar a quarter of a decade")
        axes.set_ylabel("elements")
        largest = max(rows, key=lambda row: row[1])
        alt = f"{title}: histogram of r over {change.changed:,} changed elements, fullest from {largest[0]:.1e}."
        return to_panel(figure, id="histogram", title=title, alt=alt)
