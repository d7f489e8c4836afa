"""The paper's two phenomena and four findings against one run: which of its numbers each claim is about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sftknow.artifacts.levels import level_share
from sftknow.records import BUCKETS
from sftknow.report.aggregate import (
    Difference,
    Group,
    compare,
    group_models,
    groups,
    large_size,
)
from sftknow.report.contents import Model, Report
from sftknow.report.divergence_statistics import (
    compare_divergence,
    divergence_estimate,
    rank_correlation,
    training_points,
)
from sftknow.report.entries import percent, signed, words
from sftknow.report.intervals import Effect, together
from sftknow.report.layout import Column, Entry, Table
from sftknow.report.paper import paper
from sftknow.report.verdicts import Verdict, matters, more_affected, peak, related, unnecessary, valley

REFERENCE = 240
"""The size that the paper calls best."""
LEVEL = "10%"
"""The level at which all ten models of the paper's Table 4a are better than unrestored."""

TITLES = {
    "phenomenon-1": "Phenomenon 1: 240 facts are best, more do harm",
    "phenomenon-2": "Phenomenon 2: with much data its mastery decides",
    "token-finding-1": "Token finding 1: divergence falls, then rises",
    "token-finding-2": "Token finding 2: more divergence, less knowledge",
    "parameter-finding-1": "Parameter finding 1: most updates are unnecessary",
    "parameter-finding-2": "Parameter finding 2: more so after much or unknown data",
}


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A claim of the paper and what this run says to it."""

    id: str
    title: str
    claim: str
    """In the paper's words."""
    test: str
    """What was compared, and how."""
    verdict: Verdict
    nats: bool = False
    """Effects are divergences, not accuracies."""


def judge(report: Report) -> list[Judged]:
    """Every claim, in the paper's order; empty where no fine-tuned model was scored."""
    if not groups(report) and not report.divergences:
        return []
    text = paper()["claims"]
    made = {
        "phenomenon-1": _peak(report),
        "phenomenon-2": _matters(report),
        "token-finding-1": _valley(report),
        "token-finding-2": _related(report),
        "parameter-finding-1": _unnecessary(report),
        "parameter-finding-2": _more_affected(report),
    }
    return [
        Judged(id=k, title=TITLES[k], claim=text[k], test=test, verdict=v, nats=k == "token-finding-1")
        for k, (test, v) in made.items()
    ]


def _effect(name: str, found: Difference | None, seeds: int) -> list[Effect]:
    if found is None:
        return []
    return [Effect(name=name, value=found.value, stderr=found.stderr, freedom=found.freedom, seeds=seeds)]


def _by_source(found: Sequence[Group]) -> dict[str, list[Group]]:
    """Groups of each mastery bucket, by size (`groups` sorts them); whole buckets among them."""
    sources: dict[str, list[Group]] = {}
    for group in found:
        if group.bucket is not None:
            sources.setdefault(group.source, []).append(group)
    return {source: sorted(own, key=lambda g: g.size) for source, own in sources.items()}


def _reference(own: Sequence[Group]) -> Group | None:
    """The largest training of at most 240 facts."""
    return max((g for g in own if g.size <= REFERENCE), key=lambda g: g.size, default=None)


def _peak(report: Report) -> tuple[str, Verdict]:
    effects = []
    for own in _by_source(groups(report)).values():
        reference = _reference(own)
        for group in own if reference else []:
            if reference is not None and group.size > REFERENCE:
                here, there = group_models(report, group), group_models(report, reference)
                name = f"{group.trained_on}, {group.size:,} against {reference.size:,} facts"
                effects += _effect(name, compare(here, there, "test"), min(len(here), len(there)))
    test = (
        "In-domain accuracy of every larger training less that of the largest one of at most 240 facts, for each "
        "training bucket; questions paired, spread over seeds included."
    )
    return test, peak(together(effects))


def _matters(report: Report) -> tuple[str, Verdict]:
    size = large_size(report)
    test = (
        "In-domain accuracy with bucket 0 less that with every other bucket, at the largest size that they share; "
        "questions paired, spread over seeds included."
    )
    if size is None:
        return test, matters((), REFERENCE)
    here = {g.bucket: group_models(report, g) for g in groups(report) if g.size == size and not g.all}
    effects = []
    for bucket in BUCKETS[1:]:
        if bucket in here:
            found = compare(here[0], here[bucket], "test")
            effects += _effect(f"bucket 0 against bucket {bucket}", found, min(len(here[0]), len(here[bucket])))
    return test, matters(together(effects), size)


def _valley(report: Report) -> tuple[str, Verdict]:
    legs: dict[str, tuple[Effect, Effect]] = {}
    for source, own in _by_source(groups(report, scored=False)).items():
        measured = [g for g in own if divergence_estimate(report, g) is not None]
        reference = _reference(measured)
        if reference is None or measured[0] is reference or measured[-1] is reference:
            continue
        pair = []
        for here, there in ((reference, measured[0]), (measured[-1], reference)):
            name = f"{here.trained_on}, {there.size:,} to {here.size:,} facts"
            seeds = min(len([c for c in g.cells if c.name in report.divergences]) for g in (here, there))
            pair += _effect(name, compare_divergence(report, here, there), seeds)
        legs[source] = (pair[0], pair[1])
    sure = together([e for pair in legs.values() for e in pair])
    test = (
        "Divergence (nats) at the largest size of at most 240 facts less that at the smallest, and at the largest of "
        "all less that; facts paired, spread over seeds included."
    )
    return test, valley({s: (sure[2 * i], sure[2 * i + 1]) for i, s in enumerate(legs)})


def _related(report: Report) -> tuple[str, Verdict]:
    points = training_points(report)
    found = rank_correlation(points)
    test = (
        "Spearman’s rank correlation of divergence and accuracy on bucket-4 test facts over trainings (means over "
        "seeds), with Fieller’s 95 % interval."
    )
    if found is None:
        return test, related(0.0, None, None, len(points))
    return test, related(found.rho, found.low, found.high, found.count)


def _restored_groups(report: Report) -> list[tuple[Group, str, list[Model], list[Model]]]:
    """(training, level, restored, unrestored) at the level nearest to 10 %, by ratio and within a factor of 2."""
    done = []
    for group in groups(report):
        cells = [c.name for c in group.cells if c.name in report.restored_cells]
        levels = [set(report.restored(name)) - {"0%"} for name in cells]
        shared = set.intersection(*levels) if levels else set()
        near = [s for s in shared if 0.5 <= float(level_share(s) / level_share(LEVEL)) <= 2]
        if near:
            level = min(
                near,
                key=lambda s: (round(abs(math.log(float(level_share(s) / level_share(LEVEL)))), 9), level_share(s)),
            )
            restored = [report.restored(name)[level] for name in cells]
            done.append((group, level, restored, [report.models[name] for name in cells]))
    return done


def _unnecessary(report: Report) -> tuple[str, Verdict]:
    effects = []
    for group, level, restored, plain in _restored_groups(report):
        name = f"{group.title}, {level} restored"
        effects += _effect(name, compare(restored, plain, "test", same_runs=True), len(plain))
    test = (
        f"In-domain accuracy with {LEVEL} of the elements restored (or the level nearest to it) less without, for "
        "each restored training; questions and seeds paired. The level is fixed beforehand: all ten models of the "
        "paper’s Table 4a gain there."
    )
    return test, unnecessary(together(effects))


def _gain(report: Report, entry: tuple[Group, str, list[Model], list[Model]]) -> tuple[Difference, int] | None:
    _, _, restored, plain = entry
    found = compare(restored, plain, "test", same_runs=True)
    return (found, len(plain)) if found else None


def _contrast(
    report: Report,
    name: str,
    one: tuple[Group, str, list[Model], list[Model]],
    two: tuple[Group, str, list[Model], list[Model]],
) -> list[Effect]:
    a, b = _gain(report, one), _gain(report, two)
    if a is None or b is None:
        return []
    stderr = math.hypot(a[0].stderr, b[0].stderr)
    freedom = min(a[0].freedom, b[0].freedom)
    return [Effect(name=name, value=a[0].value - b[0].value, stderr=stderr, freedom=freedom, seeds=min(a[1], b[1]))]


def _more_affected(report: Report) -> tuple[str, Verdict]:
    entries = [e for e in _restored_groups(report) if e[0].bucket is not None]
    by_size, by_bucket = [], []
    for source in sorted({e[0].source for e in entries}):
        own = sorted((e for e in entries if e[0].source == source), key=lambda e: e[0].size)
        if own[0][0].size < own[-1][0].size and own[0][1] == own[-1][1]:
            name = f"{own[0][0].trained_on}, {own[-1][0].size:,} against {own[0][0].size:,} facts"
            by_size += _contrast(report, name, own[-1], own[0])
    for size in sorted({e[0].size for e in entries if not e[0].all}):
        own = sorted((e for e in entries if e[0].size == size and not e[0].all), key=lambda e: e[0].source)
        if len(own) > 1 and own[0][1] == own[-1][1]:
            name = f"{own[0][0].trained_on} against {own[-1][0].trained_on}, {size:,} facts"
            by_bucket += _contrast(report, name, own[0], own[-1])
    sure = together([*by_size, *by_bucket])
    test = (
        f"Gain from restoring {LEVEL} after the largest training less that after the smallest, and after the lowest "
        "bucket less that after the highest at the same size; the two errors as if independent."
    )
    return test, more_affected(sure[: len(by_size)], sure[len(by_size) :])


def word_entry(verdict: Verdict) -> Entry:
    """The word of a verdict, with its colour."""
    tone = {"holds": "up-mid", "does not hold": "down-mid"}.get(verdict.word, "")
    return Entry(text=verdict.word, strong=True, tone=tone)


def verdicts(report: Report) -> Table | None:
    """Table M: each claim with the word and what stands behind it."""
    judged = judge(report)
    if not judged:
        return None
    rows = [
        (
            words(j.title),
            word_entry(j.verdict),
            words(j.verdict.why),
            words(j.test),
            words(f"“{j.claim}”"),
        )
        for j in judged
    ]
    return Table(
        id="table-m-verdicts",
        title="Table M · The paper’s claims in this run",
        note="Rules fixed before the run: “holds” and “does not hold” need intervals that exclude the other; all else "
        "“cannot be told”. Intervals of one claim hold together with 95 % (Bonferroni). The sizes, levels and pairs "
        "compared are the paper’s, not picked by their results.",
        columns=tuple(Column(title=t) for t in ("Claim", "Here", "Why", "Test", "In the paper’s words")),
        rows=tuple(rows),
        words=True,
    )


def evidence(report: Report) -> Table | None:
    """Table N: the differences behind the verdicts with their intervals."""
    rows = []
    for j in judge(report):
        for e in j.verdict.effects:
            plain = j.nats or j.id == "token-finding-2"
            scale = 1 if plain else 100
            told = "above zero" if e.above else "below zero" if e.below else "not told from zero"
            interval = (
                f"{e.low:+.3f} to {e.high:+.3f}".replace("-", "−")
                if plain
                else f"{signed(e.low)} to {signed(e.high)}"
                if math.isfinite(e.low)
                else "unknown"
            )
            rows.append(
                (
                    words(j.title.partition(":")[0]),
                    words(e.name),
                    Entry(
                        text=f"{e.value:+.3f}".replace("-", "−") if plain else signed(e.value),
                        value=scale * e.value,
                        extra={"low": scale * e.low, "high": scale * e.high},
                    ),
                    words(interval),
                    words("nats" if j.nats else "coefficient" if plain else "points"),
                    Entry(text=f"{e.seeds:,}", value=e.seeds),
                    words(told),
                )
            )
    if not rows:
        return None
    return Table(
        id="table-n-evidence",
        title="Table N · The intervals behind the words",
        note="Simultaneous intervals: all of one claim hold together with 95 %. Student’s t where seeds decide the "
        f"error. A difference within {percent(0.01, 0)} point either way counts as none. For the rank correlation the "
        "number of trainings stands under “seeds”.",
        columns=tuple(
            Column(title=t) for t in ("Claim", "Compared", "Difference", "Interval", "Unit", "Seeds", "Reading")
        ),
        rows=tuple(rows),
        folded=True,
    )
