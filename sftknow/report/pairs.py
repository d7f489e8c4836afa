"""Model against model, question by question: exact tests, and what was gained and lost.

Every function gives None where the run does not hold what the table needs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sftknow.artifacts.levels import level_of_folder
from sftknow.records import BUCKETS
from sftknow.report.aggregate import ranked
from sftknow.report.blocks import report_block
from sftknow.report.by_fact import Shared, shared_outcomes
from sftknow.report.claims import REFERENCE
from sftknow.report.contents import BASE, Model, Report
from sftknow.report.entries import signed
from sftknow.report.layout import Entry, Field, Table, tabulate
from sftknow.report.words import ALPHA
from sftknow.stats import PairedCounts, holm, mcnemar, stratified_mcnemar

EXAMPLES = 6
"""Questions shown for each way and pair."""


@dataclass(frozen=True)
class Pair:
    """Two models to compare."""

    kind: str
    before: Model
    after: Model
    before_title: str
    after_title: str

    @property
    def shared(self) -> Shared | None:
        """In-domain outcomes, the later model first; None where questions were not kept."""
        return shared_outcomes([self.after.questions], [self.before.questions], "test")


BEST, RESTORING = "best training against base", "restoring"


def best_cell(report: Report) -> str | None:
    """The fine-tuned model of the best training, picked on dev; of several seeds the first."""
    found = ranked(report, report.trainings, report.choosing_split)
    return found[0][0].models[0].name if found else None


def pairs(report: Report) -> list[Pair]:
    """The pairs that the paper's questions are about, seed by seed; nothing is picked by its p-value."""
    found = []

    def add(kind: str, before: str, after: str) -> None:
        if before in report.models and after in report.models:
            models = report.models[before], report.models[after]
            found.append(Pair(kind, *models, _title(report, before), _title(report, after)))

    best = best_cell(report)
    if best is not None:
        add(BEST, BASE, best)
    cells = {(c.source, c.seed, None if c.all else c.size): c for c in report.cells.values()}
    size = report.large_size
    for (source, seed, cell_size), cell in sorted(cells.items(), key=lambda item: report.order(item[1].name)):
        if cell.bucket is not None and cell.size > REFERENCE and (source, seed, REFERENCE) in cells:
            add(f"more data than {REFERENCE}", cells[source, seed, REFERENCE].name, cell.name)
        if source == "b0" and cell_size == size and ("b2", seed, size) in cells:
            add("bucket 0 against bucket 2", cells["b2", seed, size].name, cell.name)
    if report.choice:
        for model in report.restored(report.choice.cell).values():
            if model.name != report.choice.cell:
                add(RESTORING, report.choice.cell, model.name)
    return found


def _title(report: Report, name: str) -> str:
    owner, at, level = name.partition("@")
    title = "base model" if owner == BASE else report.title(owner)
    return f"{title}, {level_of_folder(level)} restored" if at else title


def counts(shared: Shared) -> list[PairedCounts]:
    """Gained and lost by bucket, of two single models (first: after, second: before); empty buckets left out."""
    parts = [shared.only(bucket) for bucket in BUCKETS]
    return [PairedCounts(count=int(p.fact_ids.size), gained=p.gained, lost=p.lost) for p in parts if p.fact_ids.size]


def p_text(value: float) -> str:
    """A p-value as it is printed."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


@dataclass(frozen=True)
class Tested:
    """A pair with McNemar's exact test of the plain mean over buckets."""

    pair: Pair
    counts: list[PairedCounts]
    p: float
    adjusted: float
    """p after Holm."""

    @property
    def gained(self) -> int:
        return sum(c.gained for c in self.counts)

    @property
    def lost(self) -> int:
        return sum(c.lost for c in self.counts)

    @property
    def difference(self) -> Entry:
        mean = sum(c.difference for c in self.counts) / len(self.counts)
        return Entry(text=signed(mean), value=100 * mean)


@report_block("table-k", section="accuracy", after="table-7")
def tests(report: Report) -> Table | None:
    """Table K: McNemar's exact test for each pair, in-domain."""
    counted = [(pair, counts(shared)) for pair in pairs(report) if (shared := pair.shared) is not None]
    values = [stratified_mcnemar(found) for _, found in counted]
    lines = [Tested(*one, p, adjusted) for one, p, adjusted in zip(counted, values, holm(values), strict=True)]
    return tabulate(
        lines,
        Field("What", lambda t: t.pair.kind),
        Field("Before", lambda t: t.pair.before_title),
        Field("After", lambda t: t.pair.after_title),
        Field("Difference", lambda t: t.difference, unit="points"),
        Field("Gained", lambda t: t.gained, unit="questions"),
        Field("Lost", lambda t: t.lost, unit="questions"),
        Field("p", lambda t: Entry(text=p_text(t.p), value=t.p, extra={"plain McNemar": mcnemar(t.gained, t.lost)})),
        Field("p, Holm", lambda t: Entry(text=p_text(t.adjusted), value=t.adjusted, strong=t.adjusted < ALPHA)),
        id="table-k-paired-tests",
        title="Table K · Paired tests, in-domain",
        note="McNemar’s exact test for the plain mean over buckets: under no difference every question that changed "
        f"was as likely gained as lost. “Holm”: adjusted for the number of tests here; bold below {ALPHA}. It covers "
        "the choice of questions, not the luck of a training draw.",
        folded=len(lines) > 12,
    )


def shown_pairs(report: Report) -> list[Pair]:
    """The pairs whose questions are shown: the best training against the base, and the chosen restoration."""
    choice = report.choice
    level = report.restored(choice.cell).get(choice.level) if choice else None
    found = pairs(report)
    chosen = [p for p in found if p.kind == RESTORING and level is not None and p.after is level]
    return [p for p in found if p.kind == BEST] + chosen


@dataclass(frozen=True)
class Example:
    """A question that one of two models answers."""

    model: str
    gained: bool
    bucket: int
    question: str
    answer: str
    before: str
    """What the earlier model said."""
    after: str


def _examples(report: Report, pair: Pair) -> list[Example]:
    sides = [m.questions.split("test") if m.questions else None for m in (pair.before, pair.after)]
    shared = pair.shared
    if shared is None:
        return []
    found = []
    for sign in (1, -1):
        chosen = np.flatnonzero(sign * (shared.first - shared.second) > 0)
        # The most surprising first: gained though hardly known, lost though well known; then by name.
        for place in chosen[np.argsort(sign * shared.buckets[chosen], kind="stable")][:EXAMPLES]:
            fact_id, bucket = str(shared.fact_ids[place]), int(shared.buckets[place])
            said = [str(s.outputs[np.searchsorted(s.fact_ids, fact_id)]).strip() for s in sides if s is not None]
            texts = report.texts.of(fact_id) or (fact_id, "not kept")
            found.append(Example(pair.after_title, sign > 0, bucket, *texts, *(text or "(nothing)" for text in said)))
    return found


@report_block("table-l", section="accuracy", after="table-k")
def gained_and_lost(report: Report) -> Table | None:
    """Table L: questions gained and lost, with the answers of both models."""
    shown = shown_pairs(report)

    def way(example: Example) -> Entry:
        gained = example.gained
        return Entry(text="gained" if gained else "lost", tone="up-weak" if gained else "down-weak")

    return tabulate(
        [example for pair in shown for example in _examples(report, pair)],
        Field("Model", lambda e: e.model),
        Field("Way", way),
        Field("Bucket", lambda e: e.bucket),
        Field("Question", lambda e: e.question),
        Field("Answer", lambda e: e.answer),
        Field("Said before", lambda e: e.before),
        Field("Says after", lambda e: e.after),
        id="table-l-gained-lost",
        title="Table L · Questions gained and lost",
        note=f"In-domain: {'; '.join(f'{p.after_title} against {p.before_title}' for p in shown)}. Up to {EXAMPLES} "
        "each way: gained ones from the least known facts, lost ones from "
        "the best known. “Bucket” is how well the base knew the fact.",
        words=True,
        folded=True,
    )
