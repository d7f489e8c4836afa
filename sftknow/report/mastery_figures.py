"""Figures of what the base model knows: facts in each bucket, and R against what the lab's model really saw."""

from __future__ import annotations

from collections.abc import Sequence

from sftknow.records import BUCKETS, SPLITS
from sftknow.report.aggregate import SPLIT_TITLES, ExposureBin, exposure_bins, spearman, wrong_bins
from sftknow.report.contents import Report
from sftknow.report.entries import plus_minus
from sftknow.report.layout import Figure, Panel, Value
from sftknow.report.style import LOOKS, PAPER, RED, drawing, legend_below, line_with_bars, sentence, to_panel


def distribution(report: Report) -> Figure | None:
    """Figure A: share of each bucket for each split."""
    graded = report.graded
    splits = [s for s in SPLITS if graded and sum(graded.counts[s].values())]
    if graded is None or not splits:
        return None
    title = "Share of facts in each mastery bucket"
    rows: list[tuple[Value, ...]] = []
    said = []
    with drawing(height=3.3) as (figure, axes):
        left = [0.0] * len(splits)
        names = [SPLIT_TITLES[s] for s in splits]
        for bucket in BUCKETS:
            widths = [100 * graded.counts[s][bucket] / sum(graded.counts[s].values()) for s in splits]
            bars = axes.barh(
                names,
                widths,
                left=left,
                color=LOOKS[bucket].colour,
                edgecolor=PAPER,
                label=f"bucket {bucket}",
                height=0.68,
            )
            labels = [f"{w:.0f}" if w >= 6 else "" for w in widths]
            # Dark text on all five colours: it reads on the lightest and on the darkest of them alike.
            axes.bar_label(bars, labels=labels, label_type="center", fontsize=9.5, color="#000000")
            left = [a + b for a, b in zip(left, widths, strict=True)]
            rows += [(s, bucket, graded.counts[s][bucket], w) for s, w in zip(splits, widths, strict=True)]
        for split in splits:
            total = sum(graded.counts[split].values())
            parts = ", ".join(f"{100 * graded.counts[split][b] / total:.0f} %" for b in BUCKETS)
            said.append(f"{SPLIT_TITLES[split]}: {parts}")
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("share of the split’s facts (%)")
        axes.grid(visible=False, axis="y")
        legend_below(figure, axes)
        panel = to_panel(figure, id="figure-a-distribution", title=title, alt=f"{title}, 0 to 4. {sentence(said)}")
    return Figure(
        id="figure-a-distribution",
        title=f"Figure A · {title}",
        note="Bucket 0: never completed with the answer. Bucket 4: completed with it in more than three quarters of "
        "the samples.",
        panels=(panel,),
        columns=("split", "bucket", "facts", "share (%)"),
        rows=tuple(rows),
    )


def _exposure_panel(bins: Sequence[ExposureBin], *, id: str, title: str, xlabel: str, wrong: bool) -> Panel:
    places = range(len(bins))
    with drawing() as (figure, axes):
        low = [b.mean - min(b.quartiles[0], b.mean) for b in bins]
        high = [max(b.quartiles[1], b.mean) - b.mean for b in bins]
        means = [b.mean for b in bins]
        line_with_bars(axes, places, means, (low, high), LOOKS[0], "mean R, quartiles")
        if wrong:
            axes.plot(
                places, [b.wrong_share for b in bins], color=RED, marker="v", linestyle="--", label="wrong statements"
            )
        axes.set_xticks(list(places), [b.title for b in bins])
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel(xlabel)
        axes.set_ylabel("share (0 to 1)" if wrong else "mean R (0 to 1)")
        legend_below(figure, axes)
        said = (f"{b.title}: mean R {b.mean:.2f} over {b.facts:,} facts" for b in bins)
        return to_panel(figure, id=id, title=title, alt=f"{title}. By {xlabel}: {sentence(said)}")


def exposure(report: Report) -> Figure | None:
    """Figure B: R against what the lab's model really saw."""
    if report.exposed is None:
        return None
    seen, wrong = exposure_bins(report.exposed), wrong_bins(report.exposed)
    panels = [
        _exposure_panel(
            seen,
            id="figure-b-exposure-seen",
            title="R against statements seen",
            xlabel="statements about the fact in pretraining",
            wrong=True,
        )
    ]
    if len(wrong) > 1:
        panels.append(
            _exposure_panel(
                wrong,
                id="figure-b-exposure-wrong",
                title="R against wrong statements, facts seen 6 times or more",
                xlabel="statements naming another answer (%)",
                wrong=False,
            )
        )
    related = spearman(report.exposed.exposures, report.exposed.rate)
    strength = (
        f" Rank correlation of exposure and R: {plus_minus(related.rho)} over {related.count:,} facts."
        if related
        else ""
    )
    kinds = (("statements seen", seen), ("wrong statements (%)", wrong))
    return Figure(
        id="figure-b-exposure",
        title="Figure B · Measured mastery against true exposure",
        note=f"Points: mean R; bars: from the lower to the upper quartile of R over a bin’s facts.{strength}",
        panels=tuple(panels),
        columns=("binned by", "bin", "facts", "mean R", "lower quartile", "upper quartile", "wrong share"),
        rows=tuple((kind, b.title, b.facts, b.mean, *b.quartiles, b.wrong_share) for kind, bins in kinds for b in bins),
    )
