"""Tables about parameters: how far they moved, where, and what restoring them does (Tables 3, 4, 9, 10 and F to H)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sftknow.records import LevelStatistics, ParameterChange
from sftknow.report.aggregate import SPLIT_TITLES, SURE, Difference, compare, estimate, group_task, groups, metric
from sftknow.report.collect import Report, level_share
from sftknow.report.layout import Column, Entry, Table
from sftknow.report.tables import MANY_ROWS, cell_title, estimate_entry, percent, share_entry, signed, whole, words


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
    several = False
    for title, names in _analysed(report):
        several = several or len(names) > 1
        for kind, field in (("all", "concentration"), ("base ≠ 0", "concentration_nonzero_base")):
            entries = []
            for level in levels:
                at_level = [s for name in names if (s := _at(report.changes[name], level)) is not None]
                found = [getattr(s, field) for s in at_level]
                entries.append(share_entry(sum(found) / len(found)) if found else words("not asked for"))
            rows.append((words(title), words(kind), *entries))
    return Table(
        id="table-3-concentration",
        title="Table 3 · Concentration of change",
        note="Share of the summed relative change r that lies in the most changed elements. The lines “base ≠ 0” "
        "leave out elements that were exactly 0 in the base: their r is a division by ε alone and can outweigh "
        "everything else." + (" Means over seeds." if several else ""),
        columns=(
            Column(title="Trained on"),
            Column(title="Elements"),
            *(Column(title=level, group="Share of the change (%) in the top …") for level in levels),
        ),
        rows=tuple(rows),
    )


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
    for key, part, found in shares(change, kind):
        entries = []
        for level in levels:
            share, enrichment = found[level]
            entries.append(
                Entry(
                    text=percent(share), note=f"×{enrichment:.2f}", value=100 * share, extra={"enrichment": enrichment}
                )
            )
        rows.append((words(key), share_entry(part), *entries))
    number = {"layer": 9, "module": 10}[kind]
    return Table(
        id=f"table-{number}-{kind}s",
        title=f"Table {number} · Most changed elements by {kind}",
        note=f"Model trained on {cell_title(report, name)}. Of the elements selected at each level, the share that "
        f"lies in each {kind}; behind ×, enrichment: that share ÷ the {kind}’s share of all elements of the "
        "region (1 = as many as its size would give).",
        columns=(
            Column(title=kind.capitalize()),
            Column(title="Of the region", unit="%"),
            *(Column(title=level, group="Share of the selected (%) in the top …") for level in levels),
        ),
        rows=tuple(rows),
    )


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


def _tone(difference: Difference) -> str:
    if float(f"{100 * difference.value:.1f}") == 0:
        return ""
    way = "up" if difference.value > 0 else "down"
    if not difference.sure:
        return f"{way}-weak"
    return f"{way}-strong" if abs(difference.value) >= 0.05 else f"{way}-mid"


_RESTORATION_NOTE = (
    "Mean over buckets (%) after setting the {ranking} share of the elements back to the base’s values, and the "
    "difference in points from the same model unrestored. Green with +: better; orange with −: worse. The fullest "
    "colour: 5 points or more; the faintest: within {sure:.0f} standard errors of no difference. Bold: the best of "
    "a column."
)


def ranking(report: Report) -> str:
    """How restored elements were picked, in words."""
    strategies = {str(plan.get("strategy", "top")) for plan in report.plans.values()} or {"top"}
    words_for = {"top": "most changed", "bottom": "least changed", "random": "randomly drawn"}
    return " or ".join(words_for.get(s, s) for s in sorted(strategies))


def restoration(report: Report, split: str) -> Table | None:
    """Table 4: accuracy after restoring each level, with the signed difference from the model as it was trained."""
    names = [n for n in report.restored_cells if metric(report.models[n], group_task(split))]
    if not names:
        return None
    runs = {n: report.restored(n) for n in names}
    levels = sorted({level for run in runs.values() for level in run}, key=level_share)
    best = {n: max(e.value for m in runs[n].values() if (e := estimate([m], group_task(split)))) for n in names}
    rows = []
    for level in levels:
        entries = []
        for name in names:
            model = runs[name].get(level)
            here = estimate([model], group_task(split)) if model else None
            if model is None or here is None:
                entries.append(words("not run"))
                continue
            strong = here.value == best[name]
            moved = compare([model], [report.models[name]], split) if model.name != name else None
            if moved is None:
                entries.append(Entry(text=percent(here.value), value=100 * here.value, strong=strong))
                continue
            entries.append(
                Entry(
                    text=percent(here.value),
                    note=signed(moved.value),
                    value=100 * here.value,
                    extra={"difference": 100 * moved.value, "its standard error": 100 * moved.stderr},
                    tone=_tone(moved),
                    strong=strong,
                )
            )
        rows.append((words("nothing" if level == "0%" else level), *entries))
    part = {"test": "a", "testood": "b", "dev": "c", "train": "d"}[split]
    return Table(
        id=f"table-4{part}-restoration-{split}",
        title=f"Table 4{part} · Accuracy after restoring, {SPLIT_TITLES[split]}",
        note=_RESTORATION_NOTE.format(ranking=ranking(report), sure=SURE) if split == "test" else "As in Table 4a.",
        columns=(
            Column(title="Restored"),
            *(Column(title=cell_title(report, n), group="Trained on", unit="%") for n in names),
        ),
        rows=tuple(rows),
    )


def chosen(report: Report) -> Table | None:
    """Table H: the level chosen on one split and what it does on the others."""
    choice = report.choice
    if choice is None or choice.cell not in report.models:
        return None
    model = report.restored(choice.cell).get(choice.level)
    plain = report.models[choice.cell]
    if model is None:
        return None
    rows = []
    for split in ("dev", "test", "testood", "train"):
        before, after = estimate([plain], group_task(split)), estimate([model], group_task(split))
        moved = compare([model], [plain], split)
        if before is None or after is None or moved is None:
            continue
        counted = moved.gained is not None and moved.lost is not None
        rows.append(
            (
                words(SPLIT_TITLES[split] + (" (chosen on this)" if split == choice.chosen_on else "")),
                estimate_entry(before),
                estimate_entry(after),
                Entry(
                    text=signed(moved.value),
                    note=f"± {percent(moved.stderr)}",
                    value=100 * moved.value,
                    extra={"standard error": 100 * moved.stderr},
                    tone=_tone(moved),
                ),
                whole(moved.gained or 0) if counted else words("not kept"),
                whole(moved.lost or 0) if counted else words("not kept"),
            )
        )
    if not rows:
        return None
    return Table(
        id="table-h-chosen",
        title=f"Table H · The chosen level: {choice.level} restored, trained on {cell_title(report, choice.cell)}",
        note=f"The level was chosen on the {SPLIT_TITLES.get(choice.chosen_on, choice.chosen_on)} split"
        + (
            ", so its value there is flattered by the choice and the test lines are the fair ones. "
            if choice.chosen_on == "dev"
            else ". "
        )
        + "Differences are paired over the same questions; gained and lost count questions that only one of the two "
        "answers.",
        columns=(
            Column(title="Split"),
            Column(title="As trained", unit="%"),
            Column(title="Restored", unit="%"),
            Column(title="Difference", unit="points"),
            Column(title="Gained", unit="questions"),
            Column(title="Lost", unit="questions"),
        ),
        rows=tuple(rows),
    )
