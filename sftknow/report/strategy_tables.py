"""Ways to fine-tune side by side (Table 7), other tasks (Table 5), whole layers restored (Table 11).

Every function gives None where the run does not hold what the table needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sftknow.artifacts.levels import level_share
from sftknow.report.aggregate import (
    SPLIT_TITLES,
    Group,
    compare,
    estimate,
    group_models,
    group_task,
    groups,
    large_size,
)
from sftknow.report.contents import BASE, Model, Report
from sftknow.report.entries import (
    cell_title,
    estimate_entry,
    percent,
    scored_splits,
    share_entry,
    signed,
    words,
)
from sftknow.report.layout import Column, Entry, Table
from sftknow.report.paper import table
from sftknow.report.restoration_tables import tone

Candidate = tuple[str, list[Model]]
"""What it is in words, and its models (one a seed)."""


def choosing_split(report: Report) -> str:
    """Where the best of several is picked: dev where it was scored, else the in-domain test."""
    return "dev" if "dev" in scored_splits(report, ("dev",)) else "test"


def _best(report: Report, candidates: Sequence[Candidate]) -> Candidate | None:
    task = group_task(choosing_split(report))
    scored = [(e.value, c) for c in candidates if (e := estimate(c[1], task))]
    return max(scored, key=lambda pair: pair[0])[1] if scored else None


def _trainings(report: Report, wanted: Sequence[Group]) -> list[Candidate]:
    return [(g.title, group_models(report, g)) for g in wanted]


def restored_candidates(report: Report, size: int | None) -> list[Candidate]:
    """Every training of a size (every training for None) at every level that all its restored seeds have."""
    found = []
    for group in groups(report):
        cells = [c.name for c in group.cells if c.name in report.restored_cells]
        if not cells or (size is not None and group.size != size):
            continue
        runs = [report.restored(name) for name in cells]
        levels = sorted(set.intersection(*(set(run) for run in runs)) - {"0%"}, key=level_share)
        found += [(f"{group.title}, {level} restored", [run[level] for run in runs]) for level in levels]
    return found


def strategies(report: Report) -> Table | None:
    """Table 7: each way of fine-tuning at its best."""
    found, largest = groups(report), large_size(report)
    divided = [g for g in found if g.bucket is not None]
    if largest is not None:
        divided = [g for g in divided if g.size == largest and not g.all]
    restored = restored_candidates(report, largest) or restored_candidates(report, None)
    lines: list[tuple[str, str, Candidate | None]] = [
        (name, "instruct", ("as it is", [model]))
        for name, model in sorted(report.models.items())
        if name != BASE and "@" not in name and name not in report.cells
    ]
    lines += [
        ("SFT (mixed)", "mixed", _best(report, _trainings(report, [g for g in found if g.source == "mixed"]))),
        ("SFT (divided)", "divided", _best(report, _trainings(report, divided))),
        ("LoRA", "lora", _best(report, _trainings(report, [g for g in found if g.source == "lora"]))),
        ("Parameter restoration", "restored", _best(report, restored)),
    ]
    splits = scored_splits(report, ("test", "testood"))
    if not splits or sum(candidate is not None for *_, candidate in lines) < 2:
        return None
    if BASE in report.models:
        lines.insert(0, ("Base model", "", ("as it is", [report.models[BASE]])))
    values = {
        s: [e.value for _, _, c in lines if c is not None and (e := estimate(c[1], group_task(s)))] for s in splits
    }
    rows = []
    for title, key, candidate in lines:
        if candidate is None:
            rows.append((words(title), words("not run"), *(words("not run") for _ in splits)))
            continue
        name, models = candidate
        entries = []
        for split in splits:
            here = estimate(models, group_task(split))
            entry = estimate_entry(here, best=here is not None and here.value == max(values[split]))
            printed = table(7).get(key, {}).get(split)
            same = report.beside.has(7) and (key in ("instruct", "mixed", "lora") or largest == 1920)
            entries.append(report.beside.entry(entry, printed, number=7, same=same))
        rows.append((words(title), words(name), *entries))
    where = {"dev": "dev split"}.get(split := choosing_split(report), SPLIT_TITLES[split])
    return Table(
        id="table-7-strategies",
        title="Table 7 · Ways to fine-tune",
        note=f"The best of each, picked on the {where}. Mixed and LoRA draw over all buckets, at any size; divided: "
        f"the best bucket{f' at {largest:,} facts' if largest else ''}; restoration: the best level of the restored "
        "ones. Behind ±: standard deviation over seeds, or standard error over questions where there is one."
        + report.beside.legend(7),
        columns=(
            Column(title="Strategy"),
            Column(title="The one taken"),
            *(Column(title=SPLIT_TITLES[s].capitalize(), unit="%") for s in splits),
        ),
        rows=tuple(rows),
    )


_METRIC_TITLES = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "acc": "ACC",
    "acc_flexible": "ACC, flexible",
}
_TASK_TITLES = {"xsum": "XSum", "gsm8k": "GSM8K"}


def other_tasks(report: Report) -> Table | None:
    """Table 5: other abilities after fine-tuning on their own tasks and restoring."""
    if not report.ability:
        return None
    columns: list[tuple[str, str]] = []
    values: dict[str, dict[tuple[str, str], Mapping[str, float | None]]] = {}
    for task, content in report.ability.items():
        for row in content["rows"]:
            for metric in row.get("metrics", ()):
                key = (task, str(metric["name"]))
                if key not in columns:
                    columns.append(key)
                values.setdefault(str(row["level"]), {})[key] = metric
    if not columns:
        return None
    levels = sorted(values, key=lambda level: (level != BASE, level_share(level) if level != BASE else 0))
    printed = table(5)
    rows = []
    for level in levels:
        entries = []
        for key in columns:
            metric = values[level].get(key)
            if metric is None or metric.get("value") is None:
                entries.append(words("not run"))
                continue
            value, stderr = float(metric["value"] or 0.0), metric.get("stderr")
            entry = Entry(
                text=percent(value),
                note=f"± {percent(stderr)}" if stderr is not None else "",
                value=100 * value,
                extra={"standard error": 100 * stderr} if stderr is not None else {},
            )
            theirs = printed.get(level, {}).get(key[1]) if key[0] in _TASK_TITLES else None
            entries.append(report.beside.entry(entry, theirs, number=5))
        name = "base model, untrained" if level == BASE else "nothing" if level == "0%" else level
        rows.append((words(name), *entries))
    trained = "; ".join(
        f"{_TASK_TITLES.get(t, t)}: fine-tuned on {c.get('trained_on', 'an unknown number')} examples, "
        f"{c.get('few_shot', 0) or 'no'} examples in the prompt"
        for t, c in report.ability.items()
    )
    return Table(
        id="table-5-other-tasks",
        title="Table 5 · Other tasks after restoring",
        note=f"{trained}. Behind ±: standard error over questions. ACC: exact match.{report.beside.legend(5)}",
        columns=(
            Column(title="Restored"),
            *(Column(title=_METRIC_TITLES.get(m, m), group=_TASK_TITLES.get(t, t), unit="%") for t, m in columns),
        ),
        rows=tuple(rows),
    )


def _range_title(layers: str) -> str:
    """``3-3`` is one layer, ``3``; other ranges as they are."""
    first, _, last = layers.partition("-")
    return first if first == last else layers


def layer_ranges(report: Report) -> Table | None:
    """Table 11: accuracy with whole layers set back to the base's."""
    swept = {name: found for name in sorted(report.cells, key=report.order) if (found := report.layer_ranges(name))}
    if not swept:
        return None
    ranges = sorted({r for found in swept.values() for r in found}, key=lambda r: [int(n) for n in r.split("-")])
    printed = table(11)
    rows = []
    for name, found in swept.items():
        plain = report.models.get(name)
        before = estimate([plain] if plain else [], group_task("test"))
        entries = [share_entry(before.value) if before else words("not scored")]
        cell = report.cells[name]
        for layers in ranges:
            model = found.get(layers)
            here = estimate([model] if model else [], group_task("test"))
            if model is None or here is None:
                entries.append(words("not run"))
                continue
            moved = compare([model], [plain], "test") if plain else None
            entry = Entry(
                text=percent(here.value),
                note=signed(moved.value) if moved else "",
                value=100 * here.value,
                extra={"difference": 100 * moved.value, "its standard error": 100 * moved.stderr} if moved else {},
                tone=tone(moved) if moved else "",
            )
            theirs = printed.get(str(cell.bucket), {}).get(layers)
            # The paper does not say which size its Table 11 is of; the untouched layers give its 240.
            entries.append(report.beside.entry(entry, theirs, number=11, same=cell.size == 240))
        rows.append((words(cell_title(report, name)), *entries))
    return Table(
        id="table-11-layer-ranges",
        title="Table 11 · Accuracy after restoring whole layers",
        note="In-domain mean over buckets (%) with every element of the region in these layers set back to the base, "
        f"and the difference from the same model unrestored.{report.beside.legend(11)}",
        columns=(
            Column(title="Trained on"),
            Column(title="none", group="Restored layers", unit="%"),
            *(Column(title=_range_title(r), group="Restored layers", unit="%") for r in ranges),
        ),
        rows=tuple(rows),
        stacked=True,
    )
