"""The paper's two phenomena and four findings against one run: which of its numbers each claim is about."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from sftknow.artifacts.levels import CONTROLS
from sftknow.records import BUCKETS
from sftknow.report.aggregate import Gain, chosen_gains, compare, over_runs, pooled, question_variance
from sftknow.report.blocks import report_block
from sftknow.report.contents import Report, Training
from sftknow.report.controls import controlled, ranking_gains
from sftknow.report.divergence import (
    beside_words,
    bucket_of,
    compare_divergence,
    divergence_estimate,
    measured,
    rank_correlation,
    reading,
    training_points,
)
from sftknow.report.entries import percent, plus_minus, signed
from sftknow.report.layout import Entry, Field, Table, tabulate
from sftknow.report.paper import paper
from sftknow.report.verdicts import (
    MARGIN,
    Effect,
    Verdict,
    matters,
    mean_effect,
    more_affected,
    peak,
    ranking_matters,
    related,
    together,
    unnecessary,
    valley,
)
from sftknow.report.words import FEW, LEAST_DRAWS, Difference
from sftknow.stats import RankCorrelation

REFERENCE = 240
"""The size that the paper calls best."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A claim of the paper and what this run says to it."""

    id: str
    title: str
    claim: str
    """In the paper's words, in quotation marks; or why there are none."""
    test: str
    """What was compared, and how."""
    verdict: Verdict
    unit: str = "points"
    """Of the effects: points of accuracy, nats, or a coefficient without a unit."""


def judge(report: Report) -> list[Judged]:
    """Every claim, in the paper's order; empty where no fine-tuned model was scored."""
    if not report.trainings and not report.divergences:
        return []
    judged = []
    for id, (title, look, unit) in CLAIMS.items():
        test, verdict = look(report)
        claim = f"“{paper()['claims'][id]}”" if id in paper()["claims"] else "The paper shows no control."
        judged.append(Judged(id=id, title=title, claim=claim, test=test, verdict=verdict, unit=unit))
    return judged


def _effect(name: str, found: Difference | None, seeds: int, bucket: int | None = None) -> list[Effect]:
    if found is None:
        return []
    return [
        Effect(
            name=name,
            bucket=bucket,
            value=found.value,
            stderr=found.stderr,
            freedom=found.freedom,
            seeds=seeds,
            without=found.without,
        )
    ]


def _by_source(found: Iterable[Training]) -> dict[str, list[Training]]:
    """Trainings of each mastery bucket, by size; whole buckets among them."""
    sources: dict[str, list[Training]] = {}
    for training in sorted(found, key=lambda t: t.size):
        if training.bucket is not None:
            sources.setdefault(training.source, []).append(training)
    return dict(sorted(sources.items()))


def _reference(own: Sequence[Training]) -> Training | None:
    """The largest training of at most 240 facts."""
    return max((g for g in own if g.size <= REFERENCE), key=lambda g: g.size, default=None)


def _peak(report: Report) -> tuple[str, Verdict]:
    effects = []
    for own in _by_source(report.trainings).values():
        reference = _reference(own)
        for training in own:
            if reference is not None and training.size > REFERENCE:
                here, there = training.models, reference.models
                name = f"{training.trained_on}, {training.size:,} against {reference.size:,} facts"
                effects += _effect(name, compare(here, there, "test"), min(len(here), len(there)))
    test = (
        "In-domain accuracy of every larger training less that of the largest one of at most 240 facts, for each "
        "training bucket, and their mean; questions paired, spread over seeds included."
    )
    if len(effects) < 2:
        return test, peak(together(effects))
    *sure, overall = together([*effects, mean_effect("all of them in the mean", effects)])
    return test, peak(sure, overall)


def _matters(report: Report) -> tuple[str, Verdict]:
    size = report.large_size
    test = (
        "In-domain accuracy with bucket 0 less that with every other bucket, at the largest size that they share; "
        "questions paired, spread over seeds included."
    )
    if size is None:
        return test, matters((), REFERENCE)
    here = {g.bucket: g.models for g in report.trainings if g.size == size and not g.all}
    effects = []
    for bucket in BUCKETS[1:]:
        if bucket in here:
            found = compare(here[0], here[bucket], "test")
            seeds = min(len(here[0]), len(here[bucket]))
            effects += _effect(f"bucket 0 against bucket {bucket}", found, seeds, bucket)
    return test, matters(together(effects), size)


def _valley(report: Report) -> tuple[str, Verdict]:
    legs: dict[str, tuple[Effect, Effect]] = {}
    for source, own in _by_source(report.every_training).items():
        known = [t for t in own if divergence_estimate(report, t) is not None]
        reference = _reference(known)
        if reference is None or known[0] is reference or known[-1] is reference:
            continue
        pair = []
        for here, there in ((reference, known[0]), (known[-1], reference)):
            name = f"{here.trained_on}, {there.size:,} to {here.size:,} facts"
            seeds = min(len(measured(report, t)) for t in (here, there))
            pair += _effect(name, compare_divergence(report, here, there), seeds)
        legs[source] = (pair[0], pair[1])
    sure = together([e for pair in legs.values() for e in pair])
    test = (
        "Divergence (nats) at the largest size of at most 240 facts less that at the smallest, and at the largest of "
        f"all less that; facts paired, spread over seeds included. {reading(report)}"
    )
    return test, valley({s: (sure[2 * i], sure[2 * i + 1]) for i, s in enumerate(legs)})


def correlation(report: Report) -> tuple[RankCorrelation | None, int]:
    """The rank correlation of divergence and bucket-4 accuracy over trainings, and the fewest draws behind a point.

    Its interval reaches over every value that leaving out one seed gives.
    """
    found = rank_correlation(training_points(report))
    draws = min((len(t.models) for t in report.trainings if measured(report, t)), default=0)
    seeds = {cell.seed for cell in report.cells.values()}
    if found is None or found.low is None or found.high is None or len(seeds) < LEAST_DRAWS:
        return found, draws
    left = [rank_correlation(training_points(report.without_seed(seed))) for seed in seeds]
    rhos = [one.rho for one in left if one is not None]
    return replace(found, low=min(found.low, *rhos), high=max(found.high, *rhos)), draws


def _related(report: Report) -> tuple[str, Verdict]:
    found, draws = correlation(report)
    test = (
        f"Spearman’s rank correlation of divergence and accuracy on bucket-{bucket_of(report)} test facts over "
        "trainings (means over seeds), with Fieller’s 95 % interval; it reaches over every value that leaving out one "
        f"seed gives. {reading(report)}{beside_words(report)}"
    )
    if found is None:
        return test, related(0.0, None, None, len(training_points(report)), draws)
    return test, related(found.rho, found.low, found.high, found.count, draws)


def _mean_over_trainings(report: Report, name: str, gains: Sequence[Gain]) -> list[Effect]:
    """The mean of several trainings' gains: trainings are the units, the questions are the same for all."""
    if not gains:
        return []
    if len(gains) == 1:
        return _effect(name, gains[0].found, len(gains[0].training.runs))
    steps = over_runs([g.found.value for g in gains], math.nan, 0)
    restored = [m for g in gains for m in g.training.at(g.level)]
    plain = [m for g in gains for m in g.training.plain(g.level)]
    within, _ = question_variance(restored, plain, "test")
    return _effect(name, pooled(steps.value, steps.between, within, without=steps.without), len(gains))


def _unnecessary(report: Report) -> tuple[str, Verdict]:
    gains = [g for g in chosen_gains(report) if g.training.in_grid]
    effects = [
        e for g in gains for e in _effect(f"{g.training.title}, {g.level} restored", g.found, len(g.training.runs))
    ]
    mean = _mean_over_trainings(report, "mean over the restored trainings", gains)
    sure = together([*effects, *mean])
    test = (
        f"In-domain accuracy with the level restored that was chosen on {report.choosing_split} less without, for each "
        "restored training and on average over them (Student’s t over trainings); questions and seeds paired."
    )
    return test, unnecessary(sure[: len(effects)], sure[len(effects)] if mean else None)


def _contrast(name: str, one: Gain, two: Gain) -> list[Effect]:
    """How much more the first gains than the second."""
    a, b = one.found, two.found
    found = Difference(
        value=a.value - b.value,
        stderr=math.hypot(a.stderr, b.stderr),
        freedom=min(a.freedom, b.freedom),
        without=(a.without[0] - b.without[1], a.without[1] - b.without[0]) if a.without and b.without else None,
    )
    return _effect(name, found, min(len(one.training.runs), len(two.training.runs)))


def _more_affected(report: Report) -> tuple[str, Verdict]:
    found = [g for g in chosen_gains(report) if g.training.bucket is not None]
    by_size, by_bucket = [], []
    for source in sorted({r.training.source for r in found}):
        own = sorted((r for r in found if r.training.source == source), key=lambda r: r.training.size)
        few, many = own[0], own[-1]
        if few.training.size < many.training.size:
            name = f"{few.training.trained_on}, {many.training.size:,} against {few.training.size:,} facts"
            by_size += _contrast(name, many, few)
    plain = [r for r in found if not r.training.all]
    for size in sorted({r.training.size for r in plain}):
        own = sorted((r for r in plain if r.training.size == size), key=lambda r: r.training.source)
        low, high = own[0], own[-1]
        if low is not high:
            name = f"{low.training.trained_on} against {high.training.trained_on}, {size:,} facts"
            by_bucket += _contrast(name, low, high)
    sure = together([*by_size, *by_bucket])
    test = (
        "Gain from restoring (each training at the level chosen for it) after the largest training less that after the "
        "smallest, and after the lowest bucket less that after the highest at the same size; the two errors as if "
        "independent."
    )
    return test, more_affected(sure[: len(by_size)], sure[len(by_size) :])


def _ranking(report: Report) -> tuple[str, Verdict]:
    found = controlled(report)
    runs = sum(len(one.training.runs) for one in found)
    seeds = len(found) if len(found) > 1 else min(runs, 1)
    gains = ranking_gains(found)
    effects = [e for kind, d in gains.items() for e in _effect(f"against {CONTROLS[kind]}", d, seeds)]
    test = (
        "In-domain gain from restoring the most changed share, at the level chosen for each model, less the gain from "
        "steps of the same size without the ranking; means over restored trainings (Student’s t over trainings)."
    )
    return test, ranking_matters(together(effects))


CLAIMS: dict[str, tuple[str, Callable[[Report], tuple[str, Verdict]], str]] = {
    "phenomenon-1": ("Phenomenon 1: 240 facts are best, more do harm", _peak, "points"),
    "phenomenon-2": ("Phenomenon 2: with much data its mastery decides", _matters, "points"),
    "token-finding-1": ("Token finding 1: divergence falls, then rises", _valley, "nats"),
    "token-finding-2": ("Token finding 2: more divergence, less knowledge", _related, "coefficient"),
    "parameter-finding-1": ("Parameter finding 1: most updates are unnecessary", _unnecessary, "points"),
    "parameter-finding-2": ("Parameter finding 2: more so after much or unknown data", _more_affected, "points"),
    "ranking": ("Beyond the paper: it is the ranking that helps", _ranking, "points"),
}
"""Title, judge and unit of each claim, in the paper's order."""


def word_entry(verdict: Verdict) -> Entry:
    """The word of a verdict, with its colour."""
    tone = {"holds": "up-mid", "does not hold": "down-mid"}.get(verdict.word, "")
    return Entry(text=verdict.word, strong=True, tone=tone)


@report_block("table-m", section="claims")
def verdicts(report: Report) -> Table | None:
    """Table M: each claim with the word and what stands behind it."""
    return tabulate(
        judge(report),
        Field("Claim", lambda j: j.title),
        Field("Here", lambda j: word_entry(j.verdict)),
        Field("Why", lambda j: j.verdict.why),
        Field("Test", lambda j: j.test),
        Field("In the paper’s words", lambda j: j.claim),
        id="table-m-verdicts",
        title="Table M · The paper’s claims in this run",
        note="Rules fixed before the run: “holds” and “does not hold” need intervals that exclude the other; all else "
        "“cannot be told”. Intervals of one claim hold together with 95 % (Bonferroni). The sizes and pairs compared "
        "are the paper’s, the levels are chosen on dev: nothing is picked by its result.",
        words=True,
    )


@report_block("table-n", section="claims")
def evidence(report: Report) -> Table | None:
    """Table N: the differences behind the verdicts with their intervals."""

    def difference(line: tuple[Judged, Effect]) -> Entry:
        j, e = line
        scale = 100 if j.unit == "points" else 1
        text = signed(e.value) if j.unit == "points" else plus_minus(e.value, 3)
        return Entry(text=text, value=scale * e.value, extra={"low": scale * e.low, "high": scale * e.high})

    def interval(line: tuple[Judged, Effect]) -> str:
        j, e = line
        if j.unit != "points":
            return f"{plus_minus(e.low, 3)} to {plus_minus(e.high, 3)}"
        return f"{signed(e.low)} to {signed(e.high)}" if math.isfinite(e.low) else "unknown"

    def reading(line: tuple[Judged, Effect]) -> str:
        if line[1].seeds < LEAST_DRAWS:
            return FEW
        return "above zero" if line[1].above else "below zero" if line[1].below else "not told from zero"

    return tabulate(
        ((j, e) for j in judge(report) for e in j.verdict.effects),
        Field("Claim", lambda line: line[0].title.partition(":")[0]),
        Field("Compared", lambda line: line[1].name),
        Field("Difference", difference),
        Field("Interval", interval),
        Field("Unit", lambda line: line[0].unit),
        Field("Seeds", lambda line: line[1].seeds),
        Field("Reading", reading),
        id="table-n-evidence",
        title="Table N · The intervals behind the words",
        note="Simultaneous intervals: all of one claim hold together with 95 %, by Student’s t with the freedom that "
        "the seeds leave; each reaches over every value that leaving out one seed gives. A difference within "
        f"{percent(MARGIN, 0)} point either way counts as none. For the rank correlation and for means over trainings "
        "the number of trainings stands under “seeds”.",
        folded=True,
    )
