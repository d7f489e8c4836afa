"""What restoring does to accuracy (Tables 4 and 6), and the level chosen on one split and told on the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sftknow.artifacts.levels import best_level, level_share
from sftknow.report.aggregate import SPLIT_TITLES, SURE, Difference, compare, estimate, group_task, groups, metric
from sftknow.report.contents import Cell, Model, Report
from sftknow.report.entries import cell_title, estimate_entry, percent, signed, whole, words
from sftknow.report.layout import Column, Entry, Table
from sftknow.report.paper import nearest_size, table


def tone(difference: Difference) -> str:
    """Background for a difference: its direction, and how sure and how large it is."""
    if float(f"{100 * difference.value:.1f}") == 0:
        return ""
    way = "up" if difference.value > 0 else "down"
    if not difference.sure:
        return f"{way}-weak"
    return f"{way}-strong" if abs(difference.value) >= 0.05 else f"{way}-mid"


def change_entry(difference: Difference) -> Entry:
    """A difference in points with its standard error."""
    return Entry(
        text=signed(difference.value),
        note=f"± {percent(difference.stderr)}",
        value=100 * difference.value,
        extra={"standard error": 100 * difference.stderr},
        tone=tone(difference),
    )


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
    """Table 4 (and 6, on the training facts): accuracy after restoring each level, with the difference it makes.

    Seeds of a training stand together: means over those that were restored at the level, and the spread where there
    are several.
    """
    columns = [(g.title, [c.name for c in g.cells if c.name in report.restored_cells]) for g in groups(report)]
    columns += [(name, [name]) for name in report.restored_cells if name not in report.cells]
    columns = [(title, [n for n in names if metric(report.models[n], group_task(split))]) for title, names in columns]
    columns = [(title, names) for title, names in columns if names]
    if not columns:
        return None
    runs = {n: report.restored(n) for _, names in columns for n in names}
    levels = sorted({level for run in runs.values() for level in run}, key=level_share)
    number = 6 if split == "train" else 4
    grid = [[_restored(report, split, names, runs, level) for _, names in columns] for level in levels]
    values = [[line[i].value for line in grid] for i in range(len(columns))]
    best = [max((v for v in column if isinstance(v, float)), default=None) for column in values]
    rows = []
    for level, line in zip(levels, grid, strict=True):
        entries = []
        for (_, names), entry, top in zip(columns, line, best, strict=True):
            cell = report.cells.get(names[0])
            entry = replace(entry, strong=top is not None and entry.value == top)
            entries.append(_beside_restored(report, entry, cell, level, split) if cell else entry)
        rows.append((words("nothing" if level == "0%" else level), *entries))
    part = {"test": "4a", "testood": "4b", "dev": "4c", "train": "6"}[split]
    several = any(len(names) > 1 for _, names in columns)
    note = _RESTORATION_NOTE.format(ranking=ranking(report), sure=SURE) if split == "test" else "As in Table 4a."
    if split == "train":
        note += " Each model answers the facts that it was trained on."
    if several:
        note += " Behind ±: standard deviation over seeds."
    return Table(
        id=f"table-{part}-restoration-{split}",
        title=f"Table {part} · Accuracy after restoring, {SPLIT_TITLES[split]}",
        note=note + ("" if split == "dev" else report.beside.legend(number)),
        columns=(Column(title="Restored"), *(Column(title=t, group="Trained on", unit="%") for t, _ in columns)),
        rows=tuple(rows),
        stacked=len(columns) > 5,
    )


def _restored(
    report: Report, split: str, names: Sequence[str], runs: Mapping[str, Mapping[str, Model]], level: str
) -> Entry:
    """One place of the table, without the paper."""
    pairs = [(runs[n][level], report.models[n]) for n in names if level in runs[n]]
    here = estimate([model for model, _ in pairs], group_task(split))
    if here is None:
        return words("not run")
    spread = f"± {percent(here.error)}" if here.over_seeds else ""
    extra = {"spread over seeds": 100 * here.error} if here.over_seeds else {}
    plain = [model for _, model in pairs]
    moved = compare([m for m, _ in pairs], plain, split, same_runs=True) if level != "0%" else None
    if moved is None:
        return Entry(text=percent(here.value), note=spread, value=100 * here.value, extra=extra)
    return Entry(
        text=percent(here.value),
        note=f"{signed(moved.value)} {spread}".rstrip(),
        value=100 * here.value,
        extra={**extra, "difference": 100 * moved.value, "its standard error": 100 * moved.stderr},
        tone=tone(moved),
    )


def _beside_restored(report: Report, entry: Entry, cell: Cell, level: str, split: str) -> Entry:
    """The paper's value for the same bucket and level, at the size of its two that is nearest."""
    size = nearest_size(cell.size)
    printed = table(6) if split == "train" else table(4).get(split, {})
    value = printed.get(str(size), {}).get(str(cell.bucket), {}).get(level)
    return report.beside.entry(
        entry, value, number=6 if split == "train" else 4, same=cell.size == size and not cell.all
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
                change_entry(moved),
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


def every_choice(report: Report) -> Table | None:
    """Table O: for each restored model the level chosen on dev, what it does on test, and the best level on test."""
    rows = []
    for name in report.restored_cells:
        levels = report.restored(name)
        plain = report.models[name]
        scores = {
            split: {level: e.value for level, m in levels.items() if (e := estimate([m], group_task(split)))}
            for split in ("dev", "test")
        }
        if not scores["dev"] or not scores["test"]:
            continue
        level, top = best_level(scores["dev"]), best_level(scores["test"])
        entries = [words(cell_title(report, name)), words("nothing" if level == "0%" else level)]
        for split in ("dev", "test", "testood"):
            moved = compare([levels[level]], [plain], split)
            if moved is None:
                entries.append(words("not scored"))
                continue
            entries.append(change_entry(moved))
        lead = scores["test"][top] - scores["test"][level] if level in scores["test"] else float("nan")
        entries.append(words("nothing" if top == "0%" else top))
        entries.append(Entry(text=signed(lead), value=100 * lead) if lead == lead else words("not scored"))
        rows.append(tuple(entries))
    if not rows:
        return None
    return Table(
        id="table-o-choices",
        title="Table O · The level chosen on dev, for every restored model",
        note="The dev column is flattered by the choice; the test columns are fair. “Best on test” is the level that "
        "the paper’s way of choosing takes, and what it would seem to add.",
        columns=(
            Column(title="Trained on"),
            Column(title="Chosen on dev"),
            *(Column(title=SPLIT_TITLES[s], group="Gain (points)") for s in ("dev", "test", "testood")),
            Column(title="Best on test"),
            Column(title="Would add", unit="points"),
        ),
        rows=tuple(rows),
        folded=len(rows) > 12,
    )
