"""Model against model, question by question: exact tests, what was gained and lost, and how sure the buckets are.

Every function gives None where the run does not hold what the table needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sftknow.artifacts.levels import level_of_folder
from sftknow.records import BUCKETS
from sftknow.report.aggregate import SPLIT_TITLES, estimate, group_models, group_task, groups, large_size
from sftknow.report.claims import REFERENCE
from sftknow.report.contents import BASE, Model, Report
from sftknow.report.entries import cell_title, percent, share_entry, signed, whole, words
from sftknow.report.layout import Column, Entry, Table
from sftknow.report.outcomes import Shared, shared_outcomes
from sftknow.report.strategy_tables import choosing_split
from sftknow.stats import PairedCounts, mcnemar, stratified_mcnemar

EXAMPLES = 6
"""Questions shown for each way and pair."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two models to compare."""

    kind: str
    before: Model
    after: Model
    before_title: str
    after_title: str


def best_cell(report: Report) -> str | None:
    """The fine-tuned model of the best training, picked on dev; of several seeds the first."""
    task = group_task(choosing_split(report))
    scored = [(e.value, g) for g in groups(report) if (e := estimate(group_models(report, g), task))]
    if not scored:
        return None
    group = max(scored, key=lambda pair: pair[0])[1]
    return next(c.name for c in group.cells if c.name in report.models)


def pairs(report: Report) -> list[Pair]:
    """The pairs that the paper's questions are about, seed by seed; nothing is picked by its p-value."""
    found = []

    def add(kind: str, before: str, after: str) -> None:
        if before in report.models and after in report.models:
            titles = [_title(report, name) for name in (before, after)]
            found.append(
                Pair(
                    kind=kind,
                    before=report.models[before],
                    after=report.models[after],
                    before_title=titles[0],
                    after_title=titles[1],
                )
            )

    best = best_cell(report)
    if best is not None:
        add("best training against base", BASE, best)
    cells = {(c.source, c.seed, None if c.all else c.size): c for c in report.cells.values()}
    size = large_size(report)
    for (source, seed, cell_size), cell in sorted(cells.items(), key=lambda item: report.order(item[1].name)):
        if cell.bucket is not None and cell.size > REFERENCE and (source, seed, REFERENCE) in cells:
            add(f"more data than {REFERENCE}", cells[source, seed, REFERENCE].name, cell.name)
        if source == "b0" and cell_size == size and ("b2", seed, size) in cells:
            add("bucket 0 against bucket 2", cells["b2", seed, size].name, cell.name)
    if report.choice:
        for model in report.restored(report.choice.cell).values():
            if model.name != report.choice.cell:
                add("restoring", report.choice.cell, model.name)
    return found


def _title(report: Report, name: str) -> str:
    owner, at, level = name.partition("@")
    title = "base model" if owner == BASE else cell_title(report, owner)
    return f"{title}, {level_of_folder(level)} restored" if at else title


def counts(shared: Shared) -> list[PairedCounts]:
    """Gained and lost by bucket, of two single models (first: after, second: before); empty buckets left out."""
    found = []
    for bucket in BUCKETS:
        here = shared.only(bucket)
        if here.fact_ids.size:
            found.append(
                PairedCounts(
                    count=int(here.fact_ids.size),
                    gained=int(np.count_nonzero(here.first > here.second)),
                    lost=int(np.count_nonzero(here.first < here.second)),
                )
            )
    return found


def holm(values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm, 1979), in the given order."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    adjusted, highest = [0.0] * len(values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = highest
    return adjusted


def p_text(value: float) -> str:
    """A p-value as it is printed."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def tests(report: Report) -> Table | None:
    """Table K: McNemar's exact test for each pair, in-domain."""
    tested = []
    for pair in pairs(report):
        shared = shared_outcomes([pair.after.questions], [pair.before.questions], "test")
        if shared is not None:
            tested.append((pair, counts(shared)))
    if not tested:
        return None
    values = [stratified_mcnemar(found) for _, found in tested]
    rows = []
    for (pair, found), p, adjusted in zip(tested, values, holm(values), strict=True):
        mean = sum(c.difference for c in found) / len(found)
        gained, lost = sum(c.gained for c in found), sum(c.lost for c in found)
        rows.append(
            (
                words(pair.kind),
                words(pair.before_title),
                words(pair.after_title),
                Entry(text=signed(mean), value=100 * mean),
                whole(gained),
                whole(lost),
                Entry(text=p_text(p), value=p, extra={"plain McNemar": mcnemar(gained, lost)}),
                Entry(text=p_text(adjusted), value=adjusted, strong=adjusted < 0.05),
            )
        )
    return Table(
        id="table-k-paired-tests",
        title="Table K · Paired tests, in-domain",
        note="McNemar’s exact test for the plain mean over buckets: under no difference every question that changed "
        "was as likely gained as lost. “Holm”: adjusted for the number of tests here; bold below 0.05. It covers the "
        "choice of questions, not the luck of a training draw.",
        columns=(
            Column(title="What"),
            Column(title="Before"),
            Column(title="After"),
            Column(title="Difference", unit="points"),
            Column(title="Gained", unit="questions"),
            Column(title="Lost", unit="questions"),
            Column(title="p"),
            Column(title="p, Holm"),
        ),
        rows=tuple(rows),
        folded=len(rows) > 12,
    )


def shown_pairs(report: Report) -> list[Pair]:
    """The pairs whose questions are shown: the best training against the base, and the chosen restoration."""
    found = [p for p in pairs(report) if p.kind == "best training against base"]
    if report.choice:
        level = report.restored(report.choice.cell).get(report.choice.level)
        found += [p for p in pairs(report) if p.kind == "restoring" and level is not None and p.after is level]
    return found


def gained_and_lost(report: Report) -> Table | None:
    """Table L: questions gained and lost, with the answers of both models."""
    rows = []
    for pair in shown_pairs(report):
        after = pair.after.questions.split("test") if pair.after.questions else None
        before = pair.before.questions.split("test") if pair.before.questions else None
        shared = shared_outcomes([pair.after.questions], [pair.before.questions], "test")
        if shared is None or after is None or before is None:
            continue
        for way, sign in (("gained", 1), ("lost", -1)):
            chosen = np.flatnonzero(sign * (shared.first - shared.second) > 0)
            # The most surprising first: gained though hardly known, lost though well known; then by name.
            order = chosen[np.argsort(sign * shared.buckets[chosen], kind="stable")][:EXAMPLES]
            for place in order:
                fact_id = str(shared.fact_ids[place])
                question, answer = report.texts.of(fact_id) or (fact_id, "not kept")
                said = [str(side.outputs[np.searchsorted(side.fact_ids, fact_id)]).strip() for side in (before, after)]
                rows.append(
                    (
                        words(pair.after_title),
                        Entry(text=way, tone="up-weak" if sign > 0 else "down-weak"),
                        Entry(text=f"{shared.buckets[place]}", value=int(shared.buckets[place])),
                        words(question),
                        words(answer),
                        words(said[0] or "(nothing)"),
                        words(said[1] or "(nothing)"),
                    )
                )
    if not rows:
        return None
    against = "; ".join(f"{p.after_title} against {p.before_title}" for p in shown_pairs(report))
    return Table(
        id="table-l-gained-lost",
        title="Table L · Questions gained and lost",
        note=f"In-domain: {against}. Up to {EXAMPLES} each way: gained ones from the least known facts, lost ones from "
        "the best known. “Bucket” is how well the base knew the fact.",
        columns=tuple(
            Column(title=t) for t in ("Model", "Way", "Bucket", "Question", "Answer", "Said before", "Says after")
        ),
        rows=tuple(rows),
        words=True,
        folded=True,
    )


def bucket_of(rate: float) -> int:
    """The bucket of a rate between 0 and 1 (paper, 3.1)."""
    return 0 if rate <= 0 else min(4, int(np.ceil(4 * rate)))


def edges(report: Report) -> Table | None:
    """Table J: how sure each bucket is, and the base's accuracy without the facts near an edge."""
    graded = report.graded
    if graded is None or not len(graded.fact_ids):
        return None
    own = np.array([bucket_of(r) for r in graded.rate])
    lowest = np.array([bucket_of(r) for r in graded.low])
    highest = np.array([bucket_of(r) for r in graded.high])
    sure_ids = {f for f, near in zip(graded.fact_ids, graded.edge, strict=True) if not near}
    base = report.models.get(BASE)
    asked = base.questions.split("test") if base is not None and base.questions is not None else None
    rows = []
    for bucket in BUCKETS:
        inside = own == bucket
        number = int(inside.sum())
        cells: list[Entry] = [words(f"bucket {bucket}"), whole(number)]
        if not number:
            rows.append((*cells, *(words("no facts") for _ in range(5 if asked is not None else 3))))
            continue
        cells += [
            share_entry(float((~graded.edge[inside]).mean())),
            share_entry(float((lowest[inside] < bucket).mean())),
            share_entry(float((highest[inside] > bucket).mean())),
        ]
        if asked is not None:
            here = asked.buckets == bucket
            kept = here & np.array([f in sure_ids for f in asked.fact_ids])
            for chosen in (here, kept):
                found = asked.right[chosen]
                cells.append(
                    Entry(text=percent(float(found.mean())), note=f"of {found.size:,}", value=100 * float(found.mean()))
                    if found.size
                    else words("no questions")
                )
        rows.append(tuple(cells))
    test = SPLIT_TITLES["test"]
    extra = (
        (
            Column(title="All", group=f"Base, {test}", unit="%"),
            Column(title="Sure ones", group=f"Base, {test}", unit="%"),
        )
        if asked is not None
        else ()
    )
    return Table(
        id="table-j-edges",
        title="Table J · How sure the buckets are",
        note="From each fact’s 95 % interval of R (Wilson). A fact without a hit may have a small R above 0, so bucket "
        "0 always reaches up. “Sure ones”: the same accuracy over the facts whose interval stays in their bucket.",
        columns=(
            Column(title="Bucket"),
            Column(title="Facts"),
            Column(title="Surely here", unit="%"),
            Column(title="May be lower", unit="%"),
            Column(title="May be higher", unit="%"),
            *extra,
        ),
        rows=tuple(rows),
        folded=True,
    )
