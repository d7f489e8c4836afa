"""How much of the gain is format: the base with solved examples beside it, and R before and after.

Every function gives None, or nothing, where the run does not hold what it needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from sftknow.artifacts.choice import BESIDE
from sftknow.artifacts.knowledge import EXAMPLES
from sftknow.records import BUCKETS
from sftknow.report.aggregate import compare, estimate
from sftknow.report.answer import subject
from sftknow.report.blocks import report_block
from sftknow.report.contents import BASE, SPLIT_TITLES, Model, Report
from sftknow.report.entries import estimate_entry, number_entry
from sftknow.report.layout import Entry, Field, Table, tabulate


def examples_shown(report: Report) -> int:
    """Solved examples before each question of `EXAMPLES`."""
    section = (report.recipe or {}).get("evaluation")
    return int(section.get("examples", 4)) if isinstance(section, Mapping) else 4


def format_part(report: Report) -> dict[str, Any]:
    """For `findings`: what examples alone add to the base, what the shown model adds beyond, and R before and after."""
    shown = subject(report)
    if shown is None:
        return {}
    part: dict[str, Any] = {"title": shown.title, "examples": examples_shown(report)}
    base, with_examples = report.models.get(BASE), report.models.get(EXAMPLES)
    values = [estimate([m], "test") for m in (base, with_examples, shown.tuned) if m]
    if base and with_examples and len(values) == 3 and all(values):
        names = ("base", "with_examples", "tuned")
        part |= {name: found.value for name, found in zip(names, values, strict=True) if found}
        for name, one, two in (("format", with_examples, base), ("beyond", shown.tuned, with_examples)):
            moved = compare([one], [two], "test", same_runs=True)
            if moved:
                part[name] = moved.part()
    graded = report.knowledge.get(shown.cell)
    if graded:
        part["statements"] = {key: graded[key] for key in ("facts", "before", "after", "kept", "low", "high")}
    return part if "beyond" in part or graded else {}


@report_block("table-v", section="accuracy", after="table-2")
def what_is_format(report: Report) -> Table | None:
    """Table V: base, base with solved examples, and the model that is shown first, with every measure."""
    shown = subject(report)
    if shown is None or EXAMPLES not in report.models:
        return None
    count = examples_shown(report)
    lines: dict[str, Model] = {}
    for name, model in shown.stages.items():
        lines[name if name == "base" else f"{name} ({shown.title})"] = model
        if name == "base":
            lines[f"base, {count} solved examples before each question"] = report.models[EXAMPLES]
    measures = {"acc": "contains", **BESIDE}

    def entry(split: str, metric: str, line: tuple[str, Model]) -> Entry | None:
        found = estimate([line[1]], split, metric=metric)
        return estimate_entry(found) if found else None

    return tabulate(
        lines.items(),
        Field("Model", lambda line: line[0]),
        *(
            Field(words, partial(entry, split, metric), group=SPLIT_TITLES[split].capitalize(), unit="%")
            for split in report.scored("test", "testood")
            for metric, words in measures.items()
            if any(m.score(split, None, metric) for m in lines.values())
        ),
        id="table-v-format",
        title="Table V · How much of the gain is format",
        note=f"The base has never seen the prompt of fine-tuning. With {count} solved training questions before each "
        "question (another draw for each, by a fixed seed) it sees what an answer looks like and learns no fact: "
        "what it gains is format. What the fine-tuned model has beyond that is not. A base that is too small to read "
        "examples loses by them; then nothing is told of format.",
        stacked=True,
    )


@report_block("table-u", section="accuracy", after="table-v")
def before_and_after(report: Report) -> Table | None:
    """Table U: facts by bucket before and after, and mean R, in statements with the same random numbers."""
    lines = [
        (report.title(name) if name in report.cells else name, bucket, found)
        for name, found in sorted(report.knowledge.items(), key=lambda pair: report.order(pair[0].partition("@")[0]))
        for bucket in BUCKETS
        if sum(found["flow"][bucket])
    ]

    def moved(after: int, line: tuple[str, int, Mapping[str, Any]]) -> int:
        return int(line[2]["flow"][line[1]][after])

    def rate(side: int, line: tuple[str, int, Mapping[str, Any]]) -> Entry | None:
        rows = {row[0]: row for row in line[2]["by_level"]}
        return number_entry(rows[line[1]][side]) if line[1] in rows else None

    return tabulate(
        lines,
        Field("Model", lambda line: line[0]),
        Field("Bucket before", lambda line: f"bucket {line[1]}"),
        *(Field(f"{after}", partial(moved, after), group="Facts by bucket after") for after in BUCKETS),
        Field("before", partial(rate, 2), group="Mean R", absent="none"),
        Field("after", partial(rate, 3), group="Mean R", absent="none"),
        id="table-u-before-after",
        title="Table U · Mastery before and after, in statements",
        note="In-domain test facts, completed again in the statements and with the random numbers that graded the "
        "base: the form of an answer plays no part. Mean R is over facts whose bucket one half of their statements "
        "told; the other half measures both models, so that nothing is picked by what it is measured with.",
    )
