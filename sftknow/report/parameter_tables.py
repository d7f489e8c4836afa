"""Tables about parameters: how far they moved, where, and what restoring them does (Tables 3, 4, 9, 10 and F to H)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sftknow.artifacts.levels import level_share
from sftknow.records import LevelStatistics, ParameterChange
from sftknow.report.aggregate import groups
from sftknow.report.contents import Cell, Report
from sftknow.report.entries import MANY_ROWS, cell_title, percent, share_entry, whole, words
from sftknow.report.layout import Column, Entry, Table
from sftknow.report.paper import PATTERN, nearest_size, table


def _levels(changes: Mapping[str, ParameterChange]) -> list[str]:
    return sorted({s.level for change in changes.values() for s in change.levels}, key=level_share)


def _at(change: ParameterChange, level: str) -> LevelStatistics | None:
    return next((s for s in change.levels if s.level == level), None)


def _analysed(report: Report) -> list[tuple[str, list[str]]]:
    """(title, analysed cells) for each training, its seeds together; then whatever is not of the grid."""
    found = [(g.title, [c.name for c in g.cells if c.name in report.changes]) for g in groups(report, scored=False)]
    found += [(name, [name]) for name in sorted(report.changes) if name not in report.cells]
    return [(title, names) for title, names in found if names]


def concentration(report: Report) -> Table | None:
    """Table 3: share of the whole relative change in the most changed elements."""
    if not report.changes:
        return None
    levels = _levels(report.changes)
    rows = []
    several = apart = False
    for title, names in _analysed(report):
        several = several or len(names) > 1
        for kind, field in (("all", "concentration"), ("base ≠ 0", "concentration_nonzero_base")):
            if kind != "all" and not _nonzero_differs(report, names):
                continue
            apart = apart or kind != "all"
            entries = []
            for level in levels:
                at_level = [s for name in names if (s := _at(report.changes[name], level)) is not None]
                found = [getattr(s, field) for s in at_level]
                entry = share_entry(sum(found) / len(found)) if found else words("not asked for")
                cell = report.cells.get(names[0])
                if cell and kind == "all":
                    entry = _beside_change(report, entry, cell, level)
                entries.append(entry)
            rows.append((words(title), words(kind), *entries))
    if not apart:
        rows = [(title, *entries) for title, _, *entries in rows]
    return Table(
        id="table-3-concentration",
        title="Table 3 · Concentration of change",
        note="Share of the summed relative change r that lies in the most changed elements. Elements that were exactly "
        "0 in the base have an r that is a division by ε alone and can outweigh everything else. "
        + ("The lines “base ≠ 0” leave them out" if apart else "Leaving them out changes no number here")
        + (", where that changes a number." if apart else ".")
        + (" Means over seeds." if several else "")
        + report.beside.legend(3),
        columns=(
            Column(title="Trained on"),
            *((Column(title="Elements"),) if apart else ()),
            *(Column(title=level, group="Share of the change (%) in the top …") for level in levels),
        ),
        rows=tuple(rows),
    )


def _nonzero_differs(report: Report, names: Sequence[str]) -> bool:
    """Whether leaving out the elements that were 0 in the base changes a number as it is printed."""
    found = [s for name in names for s in report.changes[name].levels]
    return any(percent(s.concentration) != percent(s.concentration_nonzero_base) for s in found)


def _beside_change(report: Report, entry: Entry, cell: Cell, level: str) -> Entry:
    """The paper's value of Table 3 for the same bucket and level, at the size of its two that is nearest."""
    size = nearest_size(cell.size)
    value = table(3)[str(size)].get(str(cell.bucket), {}).get(level)
    return report.beside.entry(entry, value, number=3, same=cell.size == size and not cell.all)


def changed(report: Report) -> Table | None:
    """Table F: how much changed at all, and how many selected elements never did."""
    if not report.changes:
        return None
    levels = _levels(report.changes)
    rows = []
    for name in sorted(report.changes, key=report.order):
        change = report.changes[name]
        unchanged = []
        for level in levels:
            s = _at(change, level)
            if s is None:
                unchanged.append(words("not asked for"))
            elif not s.selected:
                unchanged.append(words("none selected"))
            else:
                extra = {"selected": float(s.selected), "unchanged": float(s.selected_unchanged)}
                share = s.selected_unchanged / s.selected
                unchanged.append(Entry(text=percent(share), value=100 * share, extra=extra))
        rows.append(
            (
                words(cell_title(report, name)),
                whole(change.elements),
                whole(change.changed),
                share_entry(change.changed / change.elements) if change.elements else words("empty region"),
                *unchanged,
            )
        )
    regions = ", ".join(sorted({f"“{c.region}”" for c in report.changes.values()}))
    return Table(
        id="table-f-changed",
        title="Table F · Changed and unchanged elements",
        note=f"Elements are the parameters of the region {regions}. An element has changed if its stored value "
        "differs from the base’s. A level beyond the changed share also selects elements that never changed: "
        "restoring those does nothing.",
        columns=(
            Column(title="Trained on"),
            Column(title="Elements"),
            Column(title="Changed"),
            Column(title="Changed", unit="%"),
            *(Column(title=level, group="Unchanged among the selected (%), top …") for level in levels),
        ),
        rows=tuple(rows),
        folded=len(rows) > MANY_ROWS,
    )


def shown_change(report: Report) -> str | None:
    """The cell whose layers and modules are shown: the chosen one, else the first that was restored or analysed."""
    wanted = [report.choice.cell] if report.choice else []
    wanted += [*report.restored_cells, *sorted(report.changes, key=report.order)]
    return next((name for name in wanted if name in report.changes), None)


def shares(change: ParameterChange, kind: str) -> list[tuple[str, float, dict[str, tuple[float, float]]]]:
    """(layer or module, share of the region, level → (share of the selected, enrichment)) in natural or size order.

    Args:
        change: what the analysis of a pair found.
        kind: ``layer`` or ``module``.
    """
    sizes: Mapping[str, int] = getattr(change, f"elements_by_{kind}")
    keys = sorted(sizes, key=lambda k: (0, int(k), "") if k.isdigit() else (1, -sizes[k], k))
    rows = []
    for key in keys:
        part = sizes[key] / change.elements
        levels = {}
        for s in change.levels:
            if s.selected:
                share = getattr(s, f"by_{kind}").get(key, 0) / s.selected
                levels[s.level] = (share, share / part if part else math.nan)
        rows.append((key, part, levels))
    return rows


def where_changed(report: Report, kind: str) -> Table | None:
    """Tables 9 (``layer``) and 10 (``module``) of the cell that is shown, every level."""
    name = shown_change(report)
    if name is None or not report.changes[name].elements:
        return None
    change = report.changes[name]
    levels = [s.level for s in sorted(change.levels, key=lambda s: level_share(s.level)) if s.selected]
    rows = []
    number = {"layer": 9, "module": 10}[kind]
    printed: Mapping[str, float] = table(number)
    comparable = kind == "module" or set(printed) == set(change.elements_by_layer)
    for key, part, found in shares(change, kind):
        entries = []
        for level in levels:
            share, enrichment = found[level]
            entries.append(
                Entry(
                    text=percent(share), note=f"×{enrichment:.2f}", value=100 * share, extra={"enrichment": enrichment}
                )
            )
        value = printed.get(_paper_module(key) if kind == "module" else key) if comparable else None
        beside = Entry(text=f"{value:.2f}", value=value) if value is not None else words("none")
        rows.append((words(key), share_entry(part), *entries, *((beside,) if comparable else ())))
    theirs = (Column(title="Paper", group=PATTERN, unit="%"),) if comparable else ()
    said = (
        f" Last column: Table {number} of the paper, for {PATTERN}; of which level it does not say."
        if comparable
        else f" The paper’s Table {number} is of a model of {len(printed)} layers: most in layer 0 "
        f"({printed['0']} %), least in layer 31 ({printed['31']} %; an even share is 3.1 %)."
    )
    return Table(
        id=f"table-{number}-{kind}s",
        title=f"Table {number} · Most changed elements by {kind}",
        note=f"Model trained on {cell_title(report, name)}. Of the elements selected at each level, the share that "
        f"lies in each {kind}; behind ×, enrichment: that share ÷ the {kind}’s share of all elements of the "
        f"region (1 = as many as its size would give).{said}",
        columns=(
            Column(title=kind.capitalize()),
            Column(title="Of the region", unit="%"),
            *(Column(title=level, group="Share of the selected (%) in the top …") for level in levels),
            *theirs,
        ),
        rows=tuple(rows),
    )


def _paper_module(name: str) -> str:
    """``self_attn.q_proj`` → ``attn.q``, as the paper writes it."""
    return name.replace("self_attn.", "attn.").removesuffix("_proj")


def every_share(report: Report) -> Table | None:
    """Layers and modules of every analysed cell, one line each: mostly for its CSV."""
    rows = []
    for name in sorted(report.changes, key=report.order):
        for kind in ("layer", "module"):
            for key, part, levels in shares(report.changes[name], kind) if report.changes[name].elements else []:
                for level, (share, enrichment) in levels.items():
                    ratio = Entry(text=f"{enrichment:.2f}", value=enrichment)
                    rows.append(
                        (
                            words(name),
                            words(kind),
                            words(key),
                            words(level),
                            share_entry(part),
                            share_entry(share),
                            ratio,
                        )
                    )
    if not rows:
        return None
    titles = ("Model", "Kind", "Part", "Level")
    return Table(
        id="table-g-shares",
        title="Table G · Layers and modules of every analysed model",
        note="As in Tables 9 and 10.",
        columns=(
            *(Column(title=t) for t in titles),
            Column(title="Of the region", unit="%"),
            Column(title="Of the selected", unit="%"),
            Column(title="Enrichment"),
        ),
        rows=tuple(rows),
        folded=True,
    )
