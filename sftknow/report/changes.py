"""Which parameters changed: how far, where, and how much of the change lies where (Tables 3, 9, 10, F, G, Figure D).

Every function gives None where the run does not hold what the table or figure needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sftknow.artifacts.files import atomic_file
from sftknow.artifacts.levels import by_share, level_share
from sftknow.records import LevelStatistics, ParameterChange
from sftknow.report.blocks import report_block
from sftknow.report.contents import Report
from sftknow.report.entries import MANY_ROWS, number_entry, percent, share_entry
from sftknow.report.layout import Entry, Field, Figure, Panel, Table, figure, tabulate
from sftknow.report.paper import PATTERN, nearest_size, table
from sftknow.report.style import INK, LEVEL_LOOKS, PLAIN, SECOND, chart


def _levels(report: Report) -> list[str]:
    return by_share({s.level for change in report.changes.values() for s in change.levels})


def level_statistics(change: ParameterChange, level: str) -> LevelStatistics | None:
    """What the analysis says of a level; None where it was not asked for."""
    return next((s for s in change.levels if s.level == level), None)


@dataclass(frozen=True)
class Concentrations:
    """A line of Table 3: the concentrations of a training, its seeds together."""

    title: str
    names: Sequence[str]
    """Analysed cells."""
    field: str
    """Of `LevelStatistics`."""

    @property
    def everything(self) -> bool:
        """Whether elements that were 0 in the base count."""
        return self.field == "concentration"


@report_block("table-3", section="change")
def concentration(report: Report) -> Table | None:
    """Table 3: share of the whole relative change in the most changed elements."""
    found = [(t.title, [c.name for c in t.cells if c.name in report.changes]) for t in report.every_training]
    found += [(name, [name]) for name in sorted(report.changes) if name not in report.cells]
    lines = []
    for title, names in found:
        if names:
            lines.append(Concentrations(title, names, "concentration"))
            if _nonzero_differs(report, names):
                lines.append(Concentrations(title, names, "concentration_nonzero_base"))
    apart = not all(line.everything for line in lines)

    def shown(level: str, line: Concentrations) -> Entry | None:
        statistics = [s for n in line.names if (s := level_statistics(report.changes[n], level)) is not None]
        values = [getattr(s, line.field) for s in statistics]
        entry = share_entry(sum(values) / len(values)) if values else Entry(text="not asked for")
        cell = report.cells.get(line.names[0])
        if cell is None or not line.everything:
            return entry
        size = nearest_size(cell.size)
        value = table(3)[str(size)].get(str(cell.bucket), {}).get(level)
        same = cell.size == size and not cell.all
        return report.beside.entry(entry, value, number=3, same=same, place=f"{size:,} facts")

    return tabulate(
        lines,
        Field("Trained on", lambda line: line.title),
        *([Field("Elements", lambda line: "all" if line.everything else "base ≠ 0")] if apart else []),
        *(Field(k, partial(shown, k), group="Share of the change (%) in the top …") for k in _levels(report)),
        id="table-3-concentration",
        title="Table 3 · Concentration of change",
        note="Share of the summed relative change r that lies in the most changed elements. Elements that were exactly "
        "0 in the base have an r that is a division by ε alone and can outweigh everything else. "
        + ("The lines “base ≠ 0” leave them out" if apart else "Leaving them out changes no number here")
        + (", where that changes a number." if apart else ".")
        + (" Means over seeds." if any(len(line.names) > 1 for line in lines) else "")
        + report.beside.legend(3),
    )


def _nonzero_differs(report: Report, names: Sequence[str]) -> bool:
    """Whether leaving out the elements that were 0 in the base changes a number as it is printed."""
    found = [s for name in names for s in report.changes[name].levels]
    return any(percent(s.concentration) != percent(s.concentration_nonzero_base) for s in found)


@report_block("table-f", section="change")
def changed(report: Report) -> Table | None:
    """Table F: how much changed at all, and how many selected elements never did."""

    def share(name: str) -> Entry | None:
        change = report.changes[name]
        return share_entry(change.changed / change.elements) if change.elements else None

    def unchanged(level: str, name: str) -> Entry | str | None:
        found = level_statistics(report.changes[name], level)
        if found is None:
            return None
        if not found.selected:
            return "none selected"
        part = found.selected_unchanged / found.selected
        extra = {"selected": float(found.selected), "unchanged": float(found.selected_unchanged)}
        return Entry(text=percent(part), value=100 * part, extra=extra)

    regions = ", ".join(sorted({f"“{c.region}”" for c in report.changes.values()}))
    levels = [
        level
        for level in _levels(report)
        if any((s := level_statistics(c, level)) and s.selected_unchanged for c in report.changes.values())
    ]
    beyond = (
        "A level beyond the changed share also selects elements that never changed: restoring those does nothing."
        if levels
        else "No level selects an element that never changed."
    )
    group = "Unchanged among the selected (%), top …"
    return tabulate(
        sorted(report.changes, key=report.order),
        Field("Trained on", report.title),
        Field("Elements", lambda name: report.changes[name].elements),
        Field("Changed", lambda name: report.changes[name].changed),
        Field("Changed", share, unit="%", absent="empty region"),
        *(Field(level, partial(unchanged, level), group=group, absent="not asked for") for level in levels),
        id="table-f-changed",
        title="Table F · Changed and unchanged elements",
        note=f"Elements are the parameters of the region {regions}. An element has changed if its stored value "
        f"differs from the base’s. {beyond}",
        folded=not levels or len(report.changes) > MANY_ROWS,
    )


def shown_change(report: Report) -> str | None:
    """The cell whose layers and modules are shown: the chosen one, else the first that was restored or analysed."""
    wanted = [report.choice.cell] if report.choice else []
    wanted += [*report.restored_cells, *sorted(report.changes, key=report.order)]
    return next((name for name in wanted if name in report.changes), None)


@dataclass(frozen=True)
class Part:
    """A layer or module of the region, and how much of each level's selection lies in it."""

    name: str
    share: float
    """Of all elements of the region."""
    levels: Mapping[str, tuple[float, float]]
    """Level → (share of the selected elements, enrichment: that share ÷ `share`)."""


def shares(change: ParameterChange, kind: str) -> list[Part]:
    """The layers or modules of a region in natural or size order.

    Args:
        change: what the analysis of a pair found.
        kind: ``layer`` or ``module``.
    """
    sizes: Mapping[str, int] = getattr(change, f"elements_by_{kind}")
    parts = []
    for key in sorted(sizes, key=lambda k: (0, int(k), "") if k.isdigit() else (1, -sizes[k], k)):
        part = sizes[key] / change.elements
        selected = {s.level: getattr(s, f"by_{kind}").get(key, 0) / s.selected for s in change.levels if s.selected}
        levels = {level: (share, share / part if part else math.nan) for level, share in selected.items()}
        parts.append(Part(key, part, levels))
    return parts


def _levels_shown(change: ParameterChange, most: int = 5) -> list[str]:
    """At most five levels, spread over those there are: more lines would not be told apart."""
    levels = by_share(s.level for s in change.levels if s.selected)
    if len(levels) <= most:
        return levels
    return [levels[round(i * (len(levels) - 1) / (most - 1))] for i in range(most)]


def enrichment_panel(change: ParameterChange, kind: str) -> Panel:
    """Enrichment of layers or modules (``kind``) among the elements that a level selects."""
    parts = shares(change, kind)
    keys = [part.name for part in parts]
    numbers = all(k.isdigit() for k in keys)
    id, ylabel = f"figure-d-{kind}", "enrichment (1 = as its size)"
    with chart(id=id, title=f"Enrichment by {kind}", xlabel=kind, ylabel=ylabel) as made:
        axes, shown = made.axes, [1.0]
        for place, level in enumerate(_levels_shown(change)):
            style = LEVEL_LOOKS[place]
            values = [part.levels[level][1] for part in parts]
            line = "-" if numbers else "none"
            axes.plot(
                range(len(keys)), values, color=style.colour, marker=style.marker, linestyle=line, label=f"top {level}"
            )
            shown += values
            made.said.append(f"top {level}: " + ", ".join(f"{k} {v:.2f}" for k, v in zip(keys, values, strict=True)))
        axes.axhline(1, color=INK, linewidth=1, linestyle=(0, (1, 1.5)), label="as its size")
        step = max(1, len(keys) // 12) if numbers else 1
        axes.set_xticks(range(0, len(keys), step), [k.replace("self_attn.", "attn.") for k in keys[::step]])
        if not numbers:
            axes.tick_params(axis="x", rotation=35)
            for label in axes.get_xticklabels():
                label.set_horizontalalignment("right")
        axes.set_xlim(-0.5, len(keys) - 0.5)
        low, high = min(shown), max(shown)
        room = 0.1 * max(high - low, 0.2)  # differences of a few per cent are not blown up to fill the drawing
        axes.set_ylim(max(0.0, min(low, 0.9) - room), max(high, 1.1) + room)
    return made.panel


@report_block("figure-d", section="change")
def enrichment(report: Report) -> Figure | None:
    """Figure D: enrichment of layers and modules among the most changed elements."""
    name = shown_change(report)
    if name is None or not report.changes[name].elements or not any(s.selected for s in report.changes[name].levels):
        return None
    change = report.changes[name]
    return figure(
        [enrichment_panel(change, kind) for kind in ("layer", "module")],
        id="figure-d-where",
        title="Figure D · Where the most changed elements lie",
        note=f"Model trained on {report.title(name)}. Enrichment is a part’s share of the selected elements ÷ "
        "its share of the region.",
        columns=("kind", "part", "level", "share of selected (%)", "enrichment"),
        rows=[
            (kind, part.name, level, 100 * share, ratio)
            for kind in ("layer", "module")
            for part in shares(change, kind)
            for level, (share, ratio) in part.levels.items()
        ],
    )


def where_changed(report: Report, kind: str) -> Table | None:
    """Tables 9 (``layer``) and 10 (``module``) of the cell that is shown, every level."""
    name = shown_change(report)
    if name is None or not report.changes[name].elements:
        return None
    change = report.changes[name]
    number = {"layer": 9, "module": 10}[kind]
    printed: Mapping[str, float] = table(number)
    comparable = kind == "module" or set(printed) == set(change.elements_by_layer)
    said = (
        f" Last column: Table {number} of the paper, for {PATTERN}; of which level it does not say."
        if comparable
        else f" The paper’s Table {number} is of a model of {len(printed)} layers: most in layer 0 "
        f"({printed['0']} %), least in layer 31 ({printed['31']} %; an even share is 3.1 %)."
    )

    def shown(level: str, part: Part) -> Entry:
        share, enrichment = part.levels[level]
        extra = {"enrichment": enrichment}
        return Entry(text=percent(share), note=f"×{enrichment:.2f}", value=100 * share, extra=extra)

    def paper(part: Part) -> Entry | None:
        value = printed.get(_paper_module(part.name) if kind == "module" else part.name)
        return number_entry(value) if value is not None else None

    return tabulate(
        shares(change, kind),
        Field(kind.capitalize(), lambda part: part.name),
        Field("Of the region", lambda part: share_entry(part.share), unit="%"),
        *(
            Field(level, partial(shown, level), group="Share of the selected (%) in the top …")
            for level in by_share(s.level for s in change.levels if s.selected)
        ),
        *([Field("Paper", paper, group=PATTERN, unit="%", absent="none")] if comparable else []),
        id=f"table-{number}-{kind}s",
        title=f"Table {number} · Most changed elements by {kind}",
        note=f"Model trained on {report.title(name)}. Of the elements selected at each level, the share that "
        f"lies in each {kind}; behind ×, enrichment: that share ÷ the {kind}’s share of all elements of the "
        f"region (1 = as many as its size would give).{said}",
    )


report_block("table-9", section="change")(partial(where_changed, kind="layer"))
report_block("table-10", section="change")(partial(where_changed, kind="module"))


def _paper_module(name: str) -> str:
    """``self_attn.q_proj`` → ``attn.q``, as the paper writes it."""
    return name.replace("self_attn.", "attn.").removesuffix("_proj")


@report_block("table-g", section="change")
def every_share(report: Report) -> Table | None:
    """Layers and modules of every analysed cell, one line each: mostly for its CSV."""
    return tabulate(
        (
            (name, kind, part, level)
            for name in sorted(report.changes, key=report.order)
            for kind in ("layer", "module")
            for part in (shares(report.changes[name], kind) if report.changes[name].elements else [])
            for level in part.levels
        ),
        Field("Model", lambda line: line[0]),
        Field("Kind", lambda line: line[1]),
        Field("Part", lambda line: line[2].name),
        Field("Level", lambda line: line[3]),
        Field("Of the region", lambda line: share_entry(line[2].share), unit="%"),
        Field("Of the selected", lambda line: share_entry(line[2].levels[line[3]][0]), unit="%"),
        Field("Enrichment", lambda line: number_entry(line[2].levels[line[3]][1])),
        id="table-g-shares",
        title="Table G · Layers and modules of every analysed model",
        note="As in Tables 9 and 10.",
        folded=True,
    )


def change_panels(change: ParameterChange) -> list[Panel]:
    """Concentration, histogram of r, enrichment by layer and by module: the figures of one pair outside a run.

    What the pair has no data for is left out.
    """
    panels = []
    if any(math.isfinite(level.concentration) for level in change.levels):
        panels.append(_concentration_panel(change))
    if any(edge > 0 and math.isfinite(edge) for edge, _ in change.histogram):
        panels.append(_histogram(change))
    if change.elements and any(level.selected for level in change.levels):
        panels += [enrichment_panel(change, kind) for kind in ("layer", "module")]
    return panels


def _concentration_panel(change: ParameterChange) -> Panel:
    levels = sorted(change.levels, key=lambda level: level_share(level.level))
    shares = [float(100 * level_share(level.level)) for level in levels]
    with chart(
        id="concentration",
        title="Concentration of the change",
        xlabel="elements selected (% of the region)",
        ylabel="share of the relative change (%)",
    ) as made:
        fields = (("concentration", "all elements"), ("concentration_nonzero_base", "without base = 0"))
        for style, (field, label) in zip((PLAIN, SECOND), fields, strict=True):
            values = [100 * getattr(level, field) for level in levels]
            made.axes.plot(shares, values, color=style.colour, marker=style.marker, label=label)
            at = ", ".join(f"{v:.1f} at {s:g} %" for s, v in zip(shares, values, strict=True))
            made.said.append(f"{label}: {at}")
        made.axes.set_xlim(left=0)
        made.axes.set_ylim(0, 105)
    return made.panel


def _histogram(change: ParameterChange) -> Panel:
    rows = [(edge, count) for edge, count in change.histogram if edge > 0 and math.isfinite(edge)]
    edges, counts = [edge for edge, _ in rows], [count for _, count in rows]
    xlabel = "relative change r, a bar a quarter of a decade"
    with chart(id="histogram", title="Relative changes", xlabel=xlabel, ylabel="elements", lead=":") as made:
        widths = [edge * (10**0.25 - 1) for edge in edges]
        made.axes.bar(edges, counts, width=widths, align="edge", color=PLAIN.colour)
        made.axes.set_xscale("log")
        fullest = max(rows, key=lambda row: row[1])[0]
        made.said.append(f"histogram of r over {change.changed:,} changed elements, fullest from {fullest:.1e}")
    return made.panel


def write_panels(folder: Path, panels: Sequence[Panel]) -> None:
    """Each panel as ``ID.svg`` and ``ID.png``."""
    for panel in panels:
        with atomic_file(folder / f"{panel.id}.svg") as partial_file:
            partial_file.write_text(panel.svg, encoding="utf-8")
        with atomic_file(folder / f"{panel.id}.png") as partial_file:
            partial_file.write_bytes(panel.png)
