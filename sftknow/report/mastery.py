"""What the base model knows: facts by mastery, R against true exposure, and how sure the buckets are.

Every function gives None where the run does not hold what the table or figure needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from sftknow.records import BUCKETS, SPLITS
from sftknow.report.blocks import report_block
from sftknow.report.contents import BASE, SPLIT_TITLES, Exposed, Floats, Report
from sftknow.report.entries import number_entry, plus_minus, share_entry
from sftknow.report.layout import Entry, Field, Figure, Panel, Table, figure, tabulate
from sftknow.report.paper import distributions
from sftknow.report.style import BUCKET, ON_PALE, ON_STRONG, PAPER, PLAIN, RED, chart, line_with_bars
from sftknow.stats import spearman


@report_block("table-1", section="mastery")
def distribution(report: Report) -> Table | None:
    """Table 1: facts in each split and bucket."""
    graded = report.graded
    if graded is None:
        return None

    def total(split: str) -> int:
        return sum(graded.counts[split].values())

    def near_edge(split: str) -> Entry | None:
        inside = np.array([s == split for s in graded.splits])
        return share_entry(float(graded.edge[inside].mean())) if total(split) else None

    def count(bucket: int, split: str) -> Entry:
        return _count_of(report, graded.counts[split][bucket], total(split), split, bucket)

    return tabulate(
        SPLITS,
        Field("Split", lambda split: SPLIT_TITLES[split]),
        *(Field(f"Bucket {b}", partial(count, b), unit="facts") for b in BUCKETS),
        Field("All", total, unit="facts"),
        Field("Near an edge", near_edge, unit="%", absent="no facts"),
        id="table-1-distribution",
        title="Table 1 · Facts by mastery",
        note="Facts in each bucket. Bucket 0: the base model never completed a statement with the answer. Bucket i: "
        "it did in more than (i−1)/4 and at most i/4 of the samples. “Near an edge”: facts whose 95 % interval "
        "of R crosses a bucket’s edge, so that another draw of samples might have put them elsewhere."
        + report.beside.legend(1),
    )


def _count_of(report: Report, count: int, total: int, split: str, bucket: int) -> Entry:
    """Facts of a bucket with their share; beside it the paper's count for its own models, else the paper's share."""
    share = 100 * count / total if total else 0.0
    entry = Entry(text=f"{count:,}", value=count, note=f"{share:.0f} %", extra={"share (%)": share})
    printed = distributions()[report.beside.shown(1)].get(split)
    if printed is None:
        return entry
    if report.beside.has(1):
        return report.beside.entry(entry, printed[bucket], number=1, digits=0)
    part = 100 * printed[bucket] / sum(printed)
    return replace(entry, paper=f"pattern {part:.0f} %", extra={**entry.extra, "paper's share (%)": part})


@report_block("table-8", section="mastery")
def other_models(report: Report) -> Table | None:
    """Table 8: shares of the buckets for this run's base and for the paper's five models."""
    graded = report.graded
    if graded is None:
        return None
    own = {s: [counts[b] for b in BUCKETS] for s, counts in graded.counts.items() if sum(counts.values())}
    splits = [s for s in ("train", "test", "testood") if s in own]
    if not splits:
        return None
    this = f"this run: {report.base_name or graded.graded_by}"
    lines = [(this, own), *((f"paper: {n}", dict(c)) for n, c in sorted(distributions().items(), key=_by_size))]

    def share(split: str, bucket: int, line: tuple[str, dict[str, list[int]]]) -> Entry:
        found = line[1]
        value = 100 * found[split][bucket] / sum(found[split])
        extra = {"facts": float(found[split][bucket])}
        return Entry(text=f"{value:.1f}", value=value, extra=extra, strong=found is own)

    return tabulate(
        lines,
        Field("Base model", lambda line: line[0]),
        *(
            Field(f"{b}", partial(share, s, b), group=f"{SPLIT_TITLES[s].capitalize()}, bucket (%)")
            for s in splits
            for b in BUCKETS
        ),
        id="table-8-models",
        title="Table 8 · Mastery of this base model and of the paper’s",
        note="Share of a split’s facts in each bucket. The paper’s are of EntityQuestions (75,944, 9,555 and 11,613 "
        "facts); a run on other facts is not to be compared number by number.",
        stacked=True,
        folded=True,
    )


def _by_size(model: tuple[str, object]) -> tuple[str, int]:
    """Sort key: the family, then the size in its name, such as ``LLaMA-2-13B``."""
    family, _, size = model[0].rpartition("-")
    return family, int(size.rstrip("B"))


@report_block("figure-a", section="mastery")
def shares_of_buckets(report: Report) -> Figure | None:
    """Figure A: share of each bucket for each split."""
    graded = report.graded
    splits = [s for s in SPLITS if graded and sum(graded.counts[s].values())]
    if graded is None or not splits:
        return None
    shares = {s: [100 * graded.counts[s][b] / sum(graded.counts[s].values()) for b in BUCKETS] for s in splits}
    title = "Share of facts in each mastery bucket"
    xlabel = "share of the split’s facts (%)"
    with chart(id="figure-a-distribution", title=title, xlabel=xlabel, lead=", 0 to 4.", height=3.3) as made:
        left = [0.0] * len(splits)
        for bucket in BUCKETS:
            widths = [shares[s][bucket] for s in splits]
            bars = made.axes.barh(
                [SPLIT_TITLES[s] for s in splits],
                widths,
                left=left,
                color=BUCKET[bucket],
                edgecolor=PAPER,
                label=f"bucket {bucket}",
                height=0.68,
            )
            labels = [f"{w:.0f}" if w >= 6 else "" for w in widths]
            made.axes.bar_label(
                bars, labels=labels, label_type="center", fontsize=9.5, color=ON_STRONG if bucket > 2 else ON_PALE
            )
            left = [a + b for a, b in zip(left, widths, strict=True)]
        made.said += [f"{SPLIT_TITLES[s]}: {', '.join(f'{share:.0f} %' for share in shares[s])}" for s in splits]
        made.axes.invert_yaxis()
        made.axes.set_xlim(0, 100)
        made.axes.grid(visible=False, axis="y")
    return figure(
        [made.panel],
        id="figure-a-distribution",
        title=f"Figure A · {title}",
        note="Bucket 0: never completed with the answer. Bucket 4: completed with it in more than three quarters of "
        "the samples.",
        columns=("split", "bucket", "facts", "share (%)"),
        rows=[(s, b, graded.counts[s][b], shares[s][b]) for b in BUCKETS for s in splits],
    )


def bucket_of(rate: float) -> int:
    """The bucket of a rate between 0 and 1 (paper, 3.1)."""
    return 0 if rate <= 0 else min(4, int(np.ceil(4 * rate)))


@report_block("table-j", section="mastery")
def edges(report: Report) -> Table | None:
    """Table J: how sure each bucket is, and the base's accuracy without the facts near an edge."""
    graded = report.graded
    if graded is None or not len(graded.fact_ids):
        return None
    own, lowest, highest = (np.array([bucket_of(r) for r in side]) for side in (graded.rate, graded.low, graded.high))
    sure_ids = {f for f, near in zip(graded.fact_ids, graded.edge, strict=True) if not near}
    base = report.models.get(BASE)
    asked = base.questions.split("test") if base is not None and base.questions is not None else None
    sure = np.array([f in sure_ids for f in asked.fact_ids]) if asked is not None else np.array([])

    def share(where: np.ndarray, bucket: int) -> Entry | None:
        inside = own == bucket
        return share_entry(float(where[inside].mean())) if inside.any() else None

    def accuracy(sure_ones: bool, bucket: int) -> Entry | None:
        if asked is None or not (own == bucket).any():
            return None
        right = asked.right[(asked.buckets == bucket) & sure if sure_ones else asked.buckets == bucket]
        if not right.size:
            return Entry(text="no questions")
        return replace(share_entry(float(right.mean())), note=f"of {right.size:,}")

    group = f"Base, {SPLIT_TITLES['test']}"
    of_base = [("All", False), ("Sure ones", True)] if asked is not None else []
    return tabulate(
        BUCKETS,
        Field("Bucket", lambda b: f"bucket {b}"),
        Field("Facts", lambda b: int((own == b).sum())),
        Field("Surely here", partial(share, ~graded.edge), unit="%", absent="no facts"),
        Field("May be lower", partial(share, lowest < own), unit="%", absent="no facts"),
        Field("May be higher", partial(share, highest > own), unit="%", absent="no facts"),
        *(Field(t, partial(accuracy, sure_ones), group=group, unit="%", absent="no facts") for t, sure_ones in of_base),
        id="table-j-edges",
        title="Table J · How sure the buckets are",
        note="From each fact’s 95 % interval of R (Wilson). A fact without a hit may have a small R above 0, so bucket "
        "0 always reaches up. “Sure ones”: the same accuracy over the facts whose interval stays in their bucket.",
        folded=True,
    )


@dataclass(frozen=True, kw_only=True)
class ExposureBin:
    """Facts seen about equally often in pretraining (lab)."""

    title: str
    facts: int
    mean: float
    """Mean R."""
    quartiles: tuple[float, float]
    """R of the facts at one and at three quarters of the bin."""
    wrong_share: float
    """Mean share of the statements seen that named another object."""


def exposure_bins(exposed: Exposed) -> list[ExposureBin]:
    """R by the number of statements seen in pretraining; empty bins are left out."""
    return _binned(exposed, exposed.exposures, (0, 1, 3, 6, 11, 21, 51, 101))


def wrong_bins(exposed: Exposed, at_least: int = 6) -> list[ExposureBin]:
    """R by the share of wrong statements (in percent), among facts that were seen at least that often."""
    often = exposed.exposures >= at_least
    kept = Exposed(exposures=exposed.exposures[often], wrong_share=exposed.wrong_share[often], rate=exposed.rate[often])
    return _binned(kept, np.round(100 * kept.wrong_share), (0, 1, 11, 21, 31, 41, 51))


def _binned(exposed: Exposed, values: Floats, edges: Sequence[int]) -> list[ExposureBin]:
    bins = []
    for low, high in zip(edges, [*(e - 1 for e in edges[1:]), None], strict=True):
        inside = (values >= low) & (values <= (math.inf if high is None else high))
        if inside.any():
            rate = exposed.rate[inside]
            bins.append(
                ExposureBin(
                    title=f"> {low - 1}" if high is None else str(low) if high == low else f"{low}–{high}",
                    facts=int(inside.sum()),
                    mean=float(rate.mean()),
                    quartiles=(float(np.quantile(rate, 0.25)), float(np.quantile(rate, 0.75))),
                    wrong_share=float(exposed.wrong_share[inside].mean()),
                )
            )
    return bins


def _exposure_panel(bins: Sequence[ExposureBin], *, id: str, title: str, xlabel: str, wrong: bool) -> Panel:
    ylabel = "share (0 to 1)" if wrong else "mean R (0 to 1)"
    with chart(id=id, title=title, xlabel=xlabel, ylabel=ylabel, lead=f". By {xlabel}:") as made:
        axes, places = made.axes, range(len(bins))
        low = [b.mean - min(b.quartiles[0], b.mean) for b in bins]
        high = [max(b.quartiles[1], b.mean) - b.mean for b in bins]
        line_with_bars(axes, places, [b.mean for b in bins], (low, high), PLAIN, "mean R, quartiles")
        if wrong:
            shares = [b.wrong_share for b in bins]
            axes.plot(places, shares, color=RED, marker="v", linestyle="--", label="wrong statements")
        axes.set_xticks(list(places), [b.title for b in bins])
        axes.set_ylim(-0.03, 1.03)
        made.said += [f"{b.title}: mean R {b.mean:.2f} over {b.facts:,} facts" for b in bins]
    return made.panel


@report_block("figure-b", section="lab")
def rate_by_exposure(report: Report) -> Figure | None:
    """Figure B: R against what the lab's model really saw."""
    if report.exposed is None:
        return None
    seen, wrong = exposure_bins(report.exposed), wrong_bins(report.exposed)
    id, xlabel = "figure-b-exposure-seen", "statements about the fact in pretraining"
    panels = [_exposure_panel(seen, id=id, title="R against statements seen", xlabel=xlabel, wrong=True)]
    if len(wrong) > 1:
        id, xlabel = "figure-b-exposure-wrong", "statements naming another answer (%)"
        title = "R against wrong statements, facts seen 6 times or more"
        panels.append(_exposure_panel(wrong, id=id, title=title, xlabel=xlabel, wrong=False))
    related = spearman(report.exposed.exposures, report.exposed.rate)
    strength = ""
    if related:
        strength = f" Rank correlation of exposure and R: {plus_minus(related.rho)} over {related.count:,} facts."
    kinds = (("statements seen", seen), ("wrong statements (%)", wrong))
    return figure(
        panels,
        id="figure-b-exposure",
        title="Figure B · Measured mastery against true exposure",
        note=f"Points: mean R; bars: from the lower to the upper quartile of R over a bin’s facts.{strength}",
        columns=("binned by", "bin", "facts", "mean R", "lower quartile", "upper quartile", "wrong share"),
        rows=[(kind, b.title, b.facts, b.mean, *b.quartiles, b.wrong_share) for kind, bins in kinds for b in bins],
    )


@report_block("table-a", section="lab")
def exposure(report: Report) -> Table | None:
    """Table A: R by how often the lab's model saw a fact."""
    if report.exposed is None:
        return None

    def quartiles(found: ExposureBin) -> Entry:
        low, high = found.quartiles
        return Entry(text=f"{low:.2f} to {high:.2f}", extra={"low": low, "high": high})

    return tabulate(
        exposure_bins(report.exposed),
        Field("Statements seen", lambda b: b.title),
        Field("Facts", lambda b: b.facts),
        Field("Mean R", lambda b: number_entry(b.mean)),
        Field("Quartiles of R", quartiles),
        Field("Wrong", lambda b: share_entry(b.wrong_share), unit="%"),
        id="table-a-exposure",
        title="Table A · Measured mastery against true exposure",
        note="How often the pretraining text stated a fact is known in the lab. R is the share of sampled "
        "continuations that contain the answer; half of a line’s facts lie between its quartiles. “Wrong”: the "
        "mean share of the statements about a fact that named another answer.",
    )
