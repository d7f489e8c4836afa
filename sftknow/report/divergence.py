"""How far trainings moved the first token: means over seeds, differences, and how that goes with accuracy.

A training is a kind of data and a size; its seeds are taken together. Divergences are KL(tuned ‖ base) in nats over the
ten likeliest tokens (paper, 4.1), with the fine-tuned model shown what the recipe says; the other prompt, where it was
measured, stands beside. Every table and figure is None where the run does not hold what it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from sftknow.artifacts.divergence import reading_of
from sftknow.records import BUCKETS, GroupDivergence, TokenDivergence
from sftknow.report.accuracy import error_words, size_panel
from sftknow.report.aggregate import Estimate, estimate, over_runs, pooled
from sftknow.report.blocks import report_block
from sftknow.report.by_fact import MovedExample
from sftknow.report.contents import BASE, Report, Training
from sftknow.report.entries import MANY_ROWS, interval_entry, number_entry, plus_minus, share_entry
from sftknow.report.frame import interval_error
from sftknow.report.layout import Entry, Field, Figure, Panel, Table, figure, tabulate
from sftknow.report.style import chart, look
from sftknow.report.words import Difference
from sftknow.stats import RankCorrelation, spearman


def bucket_of(report: Report) -> int:
    """The mastery bucket whose test facts the divergences are of; the paper's is 4, the facts known best."""
    return next((found.bucket for found in report.divergences.values()), BUCKETS[-1])


def reading(report: Report) -> str:
    """How the divergences were measured, in a sentence; empty where there are none."""
    said = "; or ".join(dict.fromkeys(reading_of(found) for found in report.divergences.values()))
    return f"{said[:1].upper()}{said[1:]}." if said else ""


def _other(report: Report) -> str | None:
    """What the fine-tuned models were shown in the reading beside; None where it was not measured."""
    return next((found.beside.tuned_prompt for found in report.divergences.values() if found.beside), None)


def measured(report: Report, training: Training, *, beside: bool = False) -> list[TokenDivergence]:
    """The divergences of a training, one a seed; or those with the other prompt, where they were measured."""
    found = [report.divergences[c.name] for c in training.cells if c.name in report.divergences]
    return [d.beside for d in found if d.beside is not None] if beside else found


def divergence_estimate(report: Report, training: Training, *, beside: bool = False) -> Estimate | None:
    """Mean divergence of a training: behind ±, the spread over its seeds, or the bootstrap error where it has one."""
    found = measured(report, training, beside=beside)
    return over_runs([d.mean for d in found], _error(found[0]), found[0].count) if found else None


def _error(found: TokenDivergence) -> float:
    return interval_error(found.low, found.high)


def compare_divergence(report: Report, first: Training, second: Training) -> Difference | None:
    """First minus second in mean divergence (nats), with the error of paired facts and of seeds.

    Each fact's divergence is averaged over seeds and paired; the variance between seeds is added to it. Where single
    facts were not kept the two are taken as independent, which makes the error too large.
    """
    a, b = divergence_estimate(report, first), divergence_estimate(report, second)
    if a is None or b is None:
        return None
    within = _paired_variance(report, first, second)
    if within is None:
        within = sum(float(np.mean([_error(d) ** 2 for d in measured(report, side)])) for side in (first, second))
    return pooled(a.value - b.value, [*a.between, *b.between], within)


def _paired_variance(report: Report, first: Training, second: Training) -> float | None:
    """Variance of the mean difference over facts that all models of both have; None where facts were not kept."""
    kept = [
        [report.fact_divergences[c.name].values for c in group.cells if c.name in report.divergences]
        for group in (first, second)
    ]
    every = [facts for side in kept for facts in side]
    if not all(every):
        return None
    shared = sorted(set(every[0]).intersection(*every[1:]))
    if len(shared) < 2:
        return None
    one, two = (np.mean([[facts[f] for f in shared] for facts in side], axis=0) for side in kept)
    return float(np.var(one - two, ddof=1)) / len(shared)


@dataclass(frozen=True, kw_only=True)
class DivergencePoint:
    """A training or a single model, by its divergence and what it still knows."""

    name: str
    nats: float
    accuracy: float
    """On the test questions of the same bucket, between 0 and 1."""


def model_points(report: Report) -> list[DivergencePoint]:
    """Every fine-tuned model that has both."""
    bucket = bucket_of(report)
    return [
        DivergencePoint(name=name, nats=report.divergences[name].mean, accuracy=known.value)
        for name in sorted(report.divergences, key=report.order)
        if name in report.models and (known := report.models[name].score("test", bucket)) is not None
    ]


def training_points(report: Report, *, beside: bool = False) -> list[DivergencePoint]:
    """Every training that has both, as means over its seeds."""
    bucket = bucket_of(report)
    return [
        DivergencePoint(name=training.title, nats=moved.value, accuracy=known.value)
        for training in report.trainings
        if (moved := divergence_estimate(report, training, beside=beside))
        and (known := estimate(training.models, "test", bucket))
    ]


def rank_correlation(points: Sequence[DivergencePoint]) -> RankCorrelation | None:
    """Spearman's coefficient of divergence and accuracy; see `spearman`."""
    return spearman([point.nats for point in points], [point.accuracy for point in points])


@report_block("figure-4-5", section="divergence")
def divergence_by_size(report: Report) -> Figure | None:
    """Figures 4 and 5, and the two against each other."""
    moved = [(t, e) for t in report.every_training if (e := divergence_estimate(report, t))]
    if not moved:
        return None
    bucket, other = bucket_of(report), _other(report)
    nats, accuracy = "divergence (nats)", f"bucket-{bucket} accuracy (%)"
    known = [(t, e) for t in report.trainings if (e := estimate(t.models, "test", bucket))]
    panels = []
    if known:
        title = f"Figure 4: accuracy on bucket-{bucket} test facts"
        base = estimate([report.models[BASE]], "test", bucket) if BASE in report.models else None
        id = f"figure-4-bucket-{bucket}"
        panels.append(size_panel(known, id=id, title=title, ylabel=accuracy, base=base, scale=100))
    title = "Figure 5: divergence of the first token"
    panels.append(size_panel(moved, id="figure-5-divergence", title=title, ylabel="KL(tuned ‖ base) (nats)"))
    points = model_points(report)
    if len(points) > 2:
        panels.append(_scatter(report, points, accuracy))
    beside = [(t, e) for t in report.every_training if (e := divergence_estimate(report, t, beside=True))]
    if beside:
        title = f"Figure 5 once more: fine-tuned models shown the {other}"
        panels.append(size_panel(beside, id="figure-5-beside", title=title, ylabel="KL(tuned ‖ base) (nats)"))
    return figure(
        panels,
        id="figure-4-5-divergence",
        title="Figures 4 and 5 · Divergence from the base, and what the base knew best",
        note=f"{reading(report)} {error_words(e for _, e in known or moved)} {_correlation_words(report, points)}",
        columns=("what", "trained on", "facts", "seeds", "value", "error"),
        rows=[
            *((nats, t.trained_on, t.size, e.runs, e.value, e.error) for t, e in moved),
            *((f"{nats}, shown the {other}", t.trained_on, t.size, e.runs, e.value, e.error) for t, e in beside),
            *((accuracy, t.trained_on, t.size, e.runs, 100 * e.value, 100 * e.error) for t, e in known),
        ],
    )


def _correlation_words(report: Report, models: Sequence[DivergencePoint]) -> str:
    """The rank correlation over trainings, whose seeds are one point, and over single models where they are more."""
    trainings = training_points(report)
    related = rank_correlation(trainings)
    if related is None:
        return "Too few trainings for a rank correlation."
    words = f"Spearman’s rank correlation of the two: {correlation_words(related)}"
    single = rank_correlation(models)
    if single is not None and len(models) != len(trainings):
        words += (
            f" (seeds taken together); over the {single.count} single models {plus_minus(single.rho)}, where the seeds "
            "of a training are not independent of each other"
        )
    return f"{words}.{beside_words(report)}"


def correlation_words(related: RankCorrelation) -> str:
    """A rank correlation with its interval, where it has one."""
    words = f"{plus_minus(related.rho)} over {related.count} trainings"
    if related.low is None or related.high is None:
        return words
    return f"{words}, 95 % interval {plus_minus(related.low)} to {plus_minus(related.high)}"


def beside_words(report: Report) -> str:
    """The rank correlation with the other prompt, as a further sentence; empty where that was not measured."""
    related = rank_correlation(training_points(report, beside=True))
    if related is None:
        return ""
    return f" With the fine-tuned model shown the {_other(report)} instead: {correlation_words(related)}."


def _scatter(report: Report, points: Sequence[DivergencePoint], accuracy: str) -> Panel:
    with chart(
        id="figure-5-scatter",
        title="Divergence and accuracy, model by model",
        xlabel="KL(tuned ‖ base) (nats)",
        ylabel=accuracy,
    ) as made:
        seen: set[str] = set()
        for point in points:
            cell = report.cells.get(point.name)
            source, trained_on = (cell.source, cell.trained_on) if cell else (point.name, point.name)
            style = look(cell.bucket if cell else None, source)
            label = None if source in seen else trained_on
            seen.add(source)
            made.axes.plot([point.nats], [100 * point.accuracy], style.marker, color=style.colour, label=label)
            made.said.append(f"{point.name}: {point.nats:.3f} nats, {100 * point.accuracy:.1f} %")
    return made.panel


TEN, ALL, MASS = "Ten likeliest tokens", "Whole vocabulary", "Mass of the ten"


@report_block("table-e", section="divergence")
def divergence(report: Report) -> Table | None:
    """Table E: token divergence of each cell."""

    def left_out(found: TokenDivergence) -> str:
        return "; ".join(f"{n:,} {reason}" for reason, n in found.skipped.items())

    def shown_otherwise(found: TokenDivergence | None) -> Entry | None:
        return interval_entry(found.mean, found.low, found.high) if found else None

    other = _other(report)
    beside: list[Field[tuple[str, TokenDivergence]]] = [
        Field(f"shown the {other}", lambda line: shown_otherwise(line[1].beside), TEN, "nats", absent="not measured")
    ]
    return tabulate(
        ((report.title(name), report.divergences[name]) for name in sorted(report.divergences, key=report.order)),
        Field("Trained on", lambda line: line[0]),
        Field("tuned ‖ base", lambda line: interval_entry(line[1].mean, line[1].low, line[1].high), TEN, "nats"),
        *(beside if other else []),
        Field("tuned ‖ base", lambda line: number_entry(line[1].full_mean, 3), ALL, "nats"),
        Field("base ‖ tuned", lambda line: number_entry(line[1].full_reverse_mean, 3), ALL, "nats"),
        Field("tuned", lambda line: share_entry(line[1].tuned_mass), MASS, "%"),
        Field("base", lambda line: share_entry(line[1].base_mass), MASS, "%"),
        Field("Top changed", lambda line: share_entry(line[1].top_changed), unit="%"),
        Field("Facts", lambda line: line[1].count),
        Field("Left out", lambda line: left_out(line[1])),
        id="table-e-divergence",
        title="Table E · Token divergence",
        note="Kullback–Leibler divergence (nats) of the first predicted token on test facts of bucket "
        f"{bucket_of(report)}, with a 95 % bootstrap interval. {reading(report)} The paper says what the base is "
        "shown, not what the fine-tuned model is shown. The fine-tuned model’s ten largest logits are compared with "
        "the base’s at the same tokens, each set through its own softmax; “mass” is what those ten carry before that. "
        "“Top changed”: facts whose likeliest first token is another one after fine-tuning.",
        folded=len(report.divergences) > MANY_ROWS,
    )


def extent(report: Report) -> tuple[str, ...]:
    """The model that moved least and the one that moved most; one name where there is one model only."""
    ranked = sorted(report.divergences, key=lambda name: (report.divergences[name].mean, report.order(name)))
    return tuple(dict.fromkeys((ranked[0], ranked[-1]))) if ranked else ()


def groups(report: Report, by: Literal["bucket", "topic"]) -> Table | None:
    """Divergence by mastery bucket for every model, or by topic for the least and the most moved one."""
    names = sorted(report.divergences, key=report.order) if by == "bucket" else extent(report)
    lines: list[tuple[str, str, GroupDivergence]] = [
        (report.title(name), f"bucket {key}" if by == "bucket" else key, group)
        for name in names
        for key, group in getattr(report.divergences[name], f"by_{by}").items()
    ]
    what = (
        "Test facts of each bucket. Where the base knows little, few of its completions begin with the answer, so few "
        "facts are left; bucket 4 is the paper’s."
        if by == "bucket"
        else "The same facts as above by topic (Wikidata relation), for the models that moved least and most."
    )
    return tabulate(
        lines,
        Field("Trained on", lambda line: line[0]),
        Field(by.capitalize(), lambda line: line[1]),
        Field("tuned ‖ base", lambda line: interval_entry(line[2].mean, line[2].low, line[2].high), TEN, "nats"),
        Field("tuned ‖ base", lambda line: number_entry(line[2].full_mean, 3), ALL, "nats"),
        Field("Top changed", lambda line: share_entry(line[2].top_changed), unit="%"),
        Field("Facts", lambda line: line[2].count),
        Field("Left out", lambda line: line[2].skipped),
        id=f"table-{'r' if by == 'bucket' else 's'}-divergence-by-{by}",
        title=f"Table {'R' if by == 'bucket' else 'S'} · Token divergence by {by}",
        note=f"{what} Brackets: 95 % bootstrap interval.",
        folded=True,
    )


report_block("table-e-by-bucket", section="divergence")(partial(groups, by="bucket"))
report_block("table-e-by-topic", section="divergence")(partial(groups, by="topic"))


@report_block("table-e-moved-most", section="divergence")
def moved_most(report: Report) -> Table | None:
    """The facts whose first token moved most, in words, for the least and the most moved model."""
    return tabulate(
        ((report.title(name), example) for name in extent(report) for example in report.moved.get(name, ())),
        Field("Trained on", lambda line: line[0]),
        Field("Shown", lambda line: line[1].prompt),
        Field("The base’s completion", lambda line: line[1].completion),
        Field("Likeliest token", lambda line: f"{_token(line[1].base_top)} → {_token(line[1].tuned_top)}"),
        Field("Place of the answer", lambda line: _rank(line[1])),
        Field("Divergence", lambda line: number_entry(line[1].kl, 3), unit="nats"),
        id="table-t-moved-most",
        title="Table T · The facts whose first token moved most",
        note="What the base was shown and how it went on; the likeliest first token before and after fine-tuning; the "
        "place of the right answer’s first token among all tokens before and after; the divergence. For the models "
        "that moved least and most.",
        folded=True,
        words=True,
    )


def _token(text: str) -> str:
    return f"“{text}”" if text.strip() else repr(text)


def _rank(example: MovedExample) -> Entry:
    before, after = example.base_answer_rank, example.tuned_answer_rank
    return Entry(
        text=f"{_token(example.answer_token)}: {before:,} → {after:,}",
        value=after,
        extra={"before": before, "after": after},
    )
