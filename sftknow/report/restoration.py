"""What restoring does: to the same questions, to other tasks, by level and by layer, and the level chosen.

Every function gives None where the run does not hold what the table or figure needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from sftknow.artifacts.choice import BESIDE, rule_words
from sftknow.artifacts.levels import CONTROLS, best_level, by_share, level_share
from sftknow.report.aggregate import chosen_for, compare, estimate
from sftknow.report.blocks import report_block
from sftknow.report.cells import Kind
from sftknow.report.contents import BASE, SPLIT_TITLES, Model, Report, Restored
from sftknow.report.controls import SPLIT as CONTROLLED_SPLIT, control_entry, controlled
from sftknow.report.entries import change_entry, estimate_entry, moved_entry, percent, share_entry, signed
from sftknow.report.layout import Entry, Field, Figure, Panel, Table, Value, figure, tabulate
from sftknow.report.paper import nearest_size, table
from sftknow.report.style import MUTED, base_line, chart, line_with_bars, look, use_space
from sftknow.report.words import TONES, Difference


@report_block("table-h", section="restoration")
def chosen(report: Report) -> Table | None:
    """Table H: the level chosen on one split and what it does on the others."""
    choice = report.choice
    if choice is None or choice.cell not in report.models:
        return None
    plain, model = report.models[choice.cell], report.restored(choice.cell).get(choice.level)
    if model is None:
        return None
    on, fair = choice.chosen_on, ""
    if on == "dev":
        fair = ", so its value there is flattered by the choice and the test lines are the fair ones"
    measures = {"acc": "contains the answer", **BESIDE}
    found = (
        (s, name, compare([model], [plain], s, same_runs=True, metric=name))
        for s in ("dev", "test", "testood", "train")
        for name in measures
    )

    def difference(line: tuple[str, str, Difference]) -> Entry | None:
        entry = change_entry(line[2])
        # What the level was picked by is no test of it.
        return entry if entry is None or line[0] != on else replace(entry, difference=None)

    def side(one: Model, line: tuple[str, str, Difference]) -> Entry:
        return estimate_entry(estimate([one], line[0], metric=line[1]))

    return tabulate(
        [(split, name, moved) for split, name, moved in found if moved is not None],
        Field("Split", lambda line: SPLIT_TITLES[line[0]] + (" (chosen on this)" if line[0] == on else "")),
        Field("Measure", lambda line: measures[line[1]]),
        Field("As trained", partial(side, plain), unit="%"),
        Field("Restored", partial(side, model), unit="%"),
        Field("Difference", difference, unit="points"),
        Field("Gained", lambda line: line[2].gained, unit="questions", absent="not kept"),
        Field("Lost", lambda line: line[2].lost, unit="questions", absent="not kept"),
        id="table-h-chosen",
        title=f"Table H · The chosen level: {choice.level} restored, trained on {report.title(choice.cell)}",
        note=f"The level was chosen on the {SPLIT_TITLES.get(on, on)} split{fair}; it was chosen by "
        f"{rule_words(report.choosing_by)}. Differences are paired over the same questions; gained and lost count "
        "questions that only one of the two answers.",
    )


MOST_LINES = 7
"""Lines of one drawing."""


@report_block("figure-e", section="restoration")
def accuracy_by_level(report: Report) -> Figure | None:
    """Figure E: accuracy against the share restored, one line a restored training."""
    panels: list[Panel] = []
    rows: list[tuple[Value, ...]] = []
    for split in report.scored("test", "testood"):
        lines = [
            r for r in report.restored_trainings if any(m.score(split) for run in r.runs.values() for m in run.values())
        ]
        # Seven lines are told apart by colour and marker; more are cut by training size.
        cut: list[int | None] = [*sorted({line.size for line in lines})] if len(lines) > MOST_LINES else [None]
        for size in cut:
            shown = [line for line in lines if size in (None, line.size)]
            if shown:
                panels.append(_restoration_panel(report, split, shown, rows, size))
    return figure(
        panels,
        id="figure-e-restoration",
        title="Figure E · Accuracy after restoring",
        note="The share of elements set back to the base’s values grows to the right, in even steps of level, not "
        "of share; 0 % is the model as it was trained. Bars: one standard deviation over seeds where there are "
        "several, else one standard error over questions; the differences along a line are surer than these bars "
        "show, because the questions are the same (Table 4).",
        columns=("split", "model", "level", "seeds", "accuracy (%)", "error (points)"),
        rows=rows,
    )


def _scored_levels(lines: Iterable[Restored], split: str) -> list[str]:
    return by_share({k for line in lines for run in line.runs.values() for k, m in run.items() if m.score(split)})


def _restoration_panel(
    report: Report, split: str, lines: Sequence[Restored], rows: list[tuple[Value, ...]], size: int | None
) -> Panel:
    """Lines over the levels; what they show is added to `rows`. A `size` stands in the title and the file's name."""
    levels = _scored_levels(lines, split)
    with chart(
        id=f"figure-e-restoration-{split}" + (f"-{size}" if size is not None else ""),
        title=SPLIT_TITLES[split].capitalize() + (f", {size:,} facts" if size is not None else ""),
        xlabel="share of elements restored",
        ylabel="mean accuracy (%)",
        lead=" after restoring.",
    ) as made:
        axes = made.axes
        styles: dict[str, int] = {}
        drawn: list[float] = []
        for line in lines:
            style = look(line.bucket, line.source)
            turn = styles[style.colour] = styles.get(style.colour, -1) + 1  # several sizes of one bucket differ by line
            title = report.title(next(iter(line.runs))) if len(line.runs) == 1 else line.name
            found = [(x, e) for x, level in enumerate(levels) if (e := estimate(line.at(level), split))]
            values = [100 * e.value for _, e in found]
            errors = [100 * e.error if math.isfinite(e.error) else 0.0 for _, e in found]
            dashes = ("-", "--", ":", "-.")[turn % 4]
            dashes = "none" if len(found) < 3 else dashes
            line_with_bars(axes, [x for x, _ in found], values, errors, style, title, line=dashes)
            drawn += [value + way * error for value, error in zip(values, errors, strict=True) for way in (-1, 1)]
            rows += [(split, title, levels[x], e.runs, 100 * e.value, 100 * e.error) for x, e in found]
            at = ", ".join(f"{v:.1f} at {levels[x]}" for v, (x, _) in zip(values, found, strict=True))
            made.said.append(f"{title}: {at}")
        choice = report.choice
        if choice and choice.level in levels and report.cells.get(choice.cell):
            chosen = report.cells[choice.cell]
            if any(line.source == chosen.source and line.size == chosen.size for line in lines):
                axes.axvline(levels.index(choice.level), color=MUTED, linewidth=1, linestyle="--", label="level chosen")
        if BASE in report.models and (base := estimate([report.models[BASE]], split)):
            base_line(axes, 100 * base.value)
            drawn.append(100 * base.value)
        axes.set_xticks(range(len(levels)), levels)
        use_space(axes, drawn)
    return made.panel


def shown_level(level: str) -> str:
    """A level as it is printed."""
    return "nothing" if level == "0%" else level


@report_block("table-o", section="restoration")
def every_choice(report: Report) -> Table | None:
    """Table O: for each restored model the level chosen on dev, what it does on test, and the best level on test."""
    lines = []
    for name in report.restored_cells:
        levels = report.restored(name)
        dev, test = (
            {level: e.value for level, m in levels.items() if (e := estimate([m], split))} for split in ("dev", "test")
        )
        if dev and test:
            level, top = chosen_for(report, name), best_level(test)
            lines.append((name, level, top, test[top] - test[level] if level in test else None))

    def gain(split: str, metric: str, line: tuple[str, str, str, float | None]) -> Entry | None:
        name, level, *_ = line
        found = compare([report.restored(name)[level]], [report.models[name]], split, same_runs=True, metric=metric)
        entry = change_entry(found)
        return entry if entry is None or split != "dev" else replace(entry, difference=None)

    def lead(line: tuple[str, str, str, float | None]) -> Entry | None:
        return None if line[3] is None else Entry(text=signed(line[3]), value=100 * line[3])

    return tabulate(
        lines,
        Field("Trained on", lambda line: report.title(line[0])),
        Field("Chosen on dev", lambda line: shown_level(line[1])),
        *(
            Field(SPLIT_TITLES[split], partial(gain, split, "acc"), group="Gain (points)", absent="not scored")
            for split in ("dev", "test", "testood")
        ),
        *(
            Field(SPLIT_TITLES[split], partial(gain, split, "exact_match"), group="In exact match", absent="not scored")
            for split in ("test", "testood")
        ),
        Field("Best on test", lambda line: shown_level(line[2])),
        Field("Would add", lead, unit="points", absent="not scored"),
        id="table-o-choices",
        title="Table O · The level chosen on dev, for every restored model",
        note=f"Chosen by {rule_words(report.choosing_by)}. The dev column is flattered by the choice; the test columns "
        "are fair. “Best on test” is the level that "
        "the paper’s way of choosing takes, and what it would seem to add.",
        folded=len(lines) > 12,
    )


_NOTE = (
    "Mean over buckets (%) after setting the {ranking} share of the elements back to the base’s values, and the "
    f"difference in points from the same model unrestored. {TONES} Bold: the highest of a column."
)


_PARTS = {"test": "4a", "testood": "4b", "dev": "4c", "train": "6"}


def ranking(report: Report) -> str:
    """How restored elements were picked, in words."""
    strategies = {str(plan.get("strategy", "top")) for plan in report.plans.values()} or {"top"}
    words_for = {"top": "most changed", "bottom": "least changed", "random": "randomly drawn"}
    words_for |= {"absolute": "absolutely most changed", "trim": "absolutely least changed"}
    return " or ".join(words_for.get(s, s) for s in sorted(strategies))


def restoration(report: Report, split: str) -> Table | None:
    """Table 4 (and 6, on the training facts): accuracy after restoring each level, with the difference it makes.

    Seeds of a training stand together: means over those that were restored at the level, and the spread where there
    are several.
    """
    columns = [r for found in report.restored_trainings if (r := found.scored(split)).runs]
    levels = by_share({level for r in columns for run in r.runs.values() for level in run})

    def accuracy(r: Restored, level: str) -> Entry:
        here = estimate(r.at(level), split)
        if here is None:
            return Entry(text="not run")
        moved = compare(r.at(level), r.plain(level), split, same_runs=True) if level != "0%" else None
        return moved_entry(here, moved)

    def shown(entries: Mapping[str, Entry], best: Value, r: Restored, level: str) -> Entry:
        entry = replace(entries[level], strong=best is not None and entries[level].value == best)
        return _beside_paper(report, entry, r, level, split) if r.in_grid else entry

    def place(shown: Callable[[str], Entry], r: Restored, line: str) -> Entry | None:
        return control_entry(beside.get(r.name), line) if line in CONTROLS else shown(line)

    fields = []
    for r in columns:
        entries = {level: accuracy(r, level) for level in levels}
        best = max((e.value for e in entries.values() if isinstance(e.value, float)), default=None)
        fields.append(Field(r.name, partial(place, partial(shown, entries, best, r), r), group="Trained on", unit="%"))
    note = _NOTE.format(ranking=ranking(report)) if split == "test" else "As in Table 4a."
    if split == "train":
        note += " Each model answers the facts that it was trained on."
    if any(len(r.runs) > 1 for r in columns):
        note += " Behind ±: standard deviation over seeds."
    beside = {found.training.name: found for found in controlled(report)} if split == CONTROLLED_SPLIT else {}
    if beside:
        note += " In grey: steps of the same size back towards the base without the ranking, at the level chosen on "
        note += f"{report.choosing_split} (Table Q)."
    return tabulate(
        [*levels, *(CONTROLS if beside else ())],
        Field("Restored", lambda line: CONTROLS.get(line) or shown_level(line)),
        *fields,
        id=f"table-{_PARTS[split]}-restoration-{split}",
        title=f"Table {_PARTS[split]} · Accuracy after restoring, {SPLIT_TITLES[split]}",
        note=note + ("" if split == "dev" else report.beside.legend(6 if split == "train" else 4)),
        stacked=len(columns) > 5,
    )


for _split, _part in _PARTS.items():
    report_block(f"table-{_part}", section="restoration")(partial(restoration, split=_split))


def _beside_paper(report: Report, entry: Entry, cell: Kind, level: str, split: str) -> Entry:
    """The paper's value for the same bucket and level, at the size of its two that is nearest."""
    size = nearest_size(cell.size)
    number = 6 if split == "train" else 4
    printed = table(6) if split == "train" else table(4).get(split, {})
    value = printed.get(str(size), {}).get(str(cell.bucket), {}).get(level)
    same = cell.size == size and not cell.all
    return report.beside.entry(entry, value, number=number, same=same, place=f"{size:,} facts")


@report_block("table-11", section="restoration")
def layer_ranges(report: Report) -> Table | None:
    """Table 11: accuracy with whole layers set back to the base's."""
    swept = {name: found for name in sorted(report.cells, key=report.order) if (found := report.layer_ranges(name))}
    ranges = sorted({r for found in swept.values() for r in found}, key=lambda r: [int(n) for n in r.split("-")])

    def before(name: str) -> Entry | None:
        here = estimate([report.models[name]], "test") if name in report.models else None
        return share_entry(here.value) if here else None

    def shown(layers: str, name: str) -> Entry | None:
        model, plain = swept[name].get(layers), report.models.get(name)
        here = estimate([model], "test") if model else None
        if model is None or here is None:
            return None
        entry = moved_entry(here, compare([model], [plain], "test", same_runs=True) if plain else None)
        cell = report.cells[name]
        theirs = table(11).get(str(cell.bucket), {}).get(layers)
        # The paper does not say which size its Table 11 is of, nor whether the norms of a layer go back with it.
        return report.beside.entry(entry, theirs, number=11, same=False, place="size not stated")

    def title(layers: str) -> str:
        """``3-3`` is one layer, ``3``; other ranges as they are."""
        first, _, last = layers.partition("-")
        return first if first == last else layers

    group = "Restored layers"
    return tabulate(
        swept,
        Field("Trained on", report.title),
        Field("none", before, group=group, unit="%", absent="not scored"),
        *(Field(title(layers), partial(shown, layers), group=group, unit="%") for layers in ranges),
        id="table-11-layer-ranges",
        title="Table 11 · Accuracy after restoring whole layers",
        note="In-domain mean over buckets (%) with every element of the region in these layers set back to the base, "
        f"and the difference from the same model unrestored.{report.beside.legend(11, compared=False)}",
        stacked=True,
    )


_METRIC_TITLES = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "acc": "ACC",
    "acc_flexible": "ACC, flexible",
}


_TASK_TITLES = {"xsum": "XSum", "gsm8k": "GSM8K"}


@report_block("table-5", section="restoration")
def other_tasks(report: Report) -> Table | None:
    """Table 5: other abilities after fine-tuning on their own tasks and restoring."""
    found = {
        (str(row["level"]), task, str(metric["name"])): metric
        for task, content in report.ability.items()
        for row in content["rows"]
        for metric in row.get("metrics", ())
    }
    columns = dict.fromkeys((task, metric) for _, task, metric in found)
    levels = {level for level, *_ in found}

    def shown(task: str, metric: str, level: str) -> Entry | None:
        score = found.get((level, task, metric), {})
        if score.get("value") is None:
            return None
        value, stderr = float(score["value"]), score.get("stderr")
        entry = Entry(
            text=percent(value),
            note=f"± {percent(stderr)}" if stderr is not None else "",
            value=100 * value,
            extra={"standard error": 100 * stderr} if stderr is not None else {},
        )
        theirs = table(5).get(level, {}).get(metric) if task in _TASK_TITLES else None
        return report.beside.entry(entry, theirs, number=5, same=False)

    trained = "; ".join(
        f"{_TASK_TITLES.get(t, t)}: fine-tuned on {c.get('trained_on', 'an unknown number')} examples, "
        f"{c.get('few_shot', 0) or 'no'} examples in the prompt"
        for t, c in report.ability.items()
    )
    return tabulate(
        sorted(levels, key=lambda level: (level != BASE, level_share(level) if level != BASE else 0)),
        Field("Restored", lambda level: "base model, untrained" if level == BASE else shown_level(level)),
        *(
            Field(_METRIC_TITLES.get(m, m), partial(shown, t, m), group=_TASK_TITLES.get(t, t), unit="%")
            for t, m in columns
        ),
        id="table-5-other-tasks",
        title="Table 5 · Other tasks after restoring",
        note=f"{trained}. Behind ±: standard error over questions. ACC: exact match."
        + report.beside.legend(5, compared=False),
    )
