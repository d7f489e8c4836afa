"""Tables of token divergence: every model, every bucket, every topic, and the facts that moved most.

Every function gives None where the run does not hold what the table needs. Divergences are in nats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from sftknow.records import GroupDivergence
from sftknow.report.contents import Report
from sftknow.report.entries import MANY_ROWS, cell_title, share_entry, whole, words
from sftknow.report.examples import MovedExample
from sftknow.report.layout import Column, Entry, Table


def divergence(report: Report) -> Table | None:
    """Table E: token divergence of each cell."""
    if not report.divergences:
        return None
    rows = []
    for name in sorted(report.divergences, key=report.order):
        d = report.divergences[name]
        rows.append(
            (
                words(cell_title(report, name)),
                Entry(
                    text=f"{d.mean:.3f}",
                    note=f"[{d.low:.3f}, {d.high:.3f}]",
                    value=d.mean,
                    extra={"low": d.low, "high": d.high},
                ),
                Entry(text=f"{d.full_mean:.3f}", value=d.full_mean),
                Entry(text=f"{d.full_reverse_mean:.3f}", value=d.full_reverse_mean),
                share_entry(d.tuned_mass),
                share_entry(d.base_mass),
                share_entry(d.top_changed),
                whole(d.count),
                words("; ".join(f"{n:,} {reason}" for reason, n in d.skipped.items())),
            )
        )
    ten = "Ten likeliest tokens"
    return Table(
        id="table-e-divergence",
        title="Table E · Token divergence",
        note="Kullback–Leibler divergence (nats) of the first predicted token on bucket-4 test facts, with a 95 % "
        "bootstrap interval. The headline compares the fine-tuned model’s ten largest logits with the base’s "
        "at the same tokens, each set through its own softmax; “mass” is what those ten carry before that. "
        "“Top changed”: facts whose likeliest first token is another one after fine-tuning.",
        columns=(
            Column(title="Trained on"),
            Column(title="tuned ‖ base", group=ten, unit="nats"),
            Column(title="tuned ‖ base", group="Whole vocabulary", unit="nats"),
            Column(title="base ‖ tuned", group="Whole vocabulary", unit="nats"),
            Column(title="tuned", group="Mass of the ten", unit="%"),
            Column(title="base", group="Mass of the ten", unit="%"),
            Column(title="Top changed", unit="%"),
            Column(title="Facts"),
            Column(title="Left out"),
        ),
        rows=tuple(rows),
        folded=len(rows) > MANY_ROWS,
    )


def extent(report: Report) -> tuple[str, ...]:
    """The model that moved least and the one that moved most; one name where there is one model only."""
    ranked = sorted(report.divergences, key=lambda name: (report.divergences[name].mean, report.order(name)))
    return tuple(dict.fromkeys((ranked[0], ranked[-1]))) if ranked else ()


def _groups(report: Report, name: str, by: Literal["bucket", "topic"]) -> Mapping[str, GroupDivergence]:
    found = report.divergences[name]
    return found.by_bucket if by == "bucket" else found.by_topic


def groups(report: Report, by: Literal["bucket", "topic"]) -> Table | None:
    """Divergence by mastery bucket for every model, or by topic for the least and the most moved one."""
    names = sorted(report.divergences, key=report.order) if by == "bucket" else extent(report)
    shown = [(name, _groups(report, name, by)) for name in names]
    if not any(found for _, found in shown):
        return None
    rows = []
    for name, found in shown:
        for key, group in found.items():
            rows.append(
                (
                    words(cell_title(report, name)),
                    words(f"bucket {key}" if by == "bucket" else key),
                    Entry(
                        text=f"{group.mean:.3f}",
                        note=f"[{group.low:.3f}, {group.high:.3f}]",
                        value=group.mean,
                        extra={"low": group.low, "high": group.high},
                    ),
                    Entry(text=f"{group.full_mean:.3f}", value=group.full_mean),
                    share_entry(group.top_changed),
                    whole(group.count),
                    whole(group.skipped),
                )
            )
    what = (
        "Test facts of each bucket. Where the base knows little, few of its completions begin with the answer, so few "
        "facts are left; bucket 4 is the paper’s."
        if by == "bucket"
        else "The same facts as above by topic (Wikidata relation), for the models that moved least and most."
    )
    return Table(
        id=f"table-e-divergence-by-{by}",
        title=f"Table E · Token divergence by {by}",
        note=f"{what} Brackets: 95 % bootstrap interval.",
        columns=(
            Column(title="Trained on"),
            Column(title=by.capitalize()),
            Column(title="tuned ‖ base", group="Ten likeliest tokens", unit="nats"),
            Column(title="tuned ‖ base", group="Whole vocabulary", unit="nats"),
            Column(title="Top changed", unit="%"),
            Column(title="Facts"),
            Column(title="Left out"),
        ),
        rows=tuple(rows),
        folded=True,
    )


def moved_most(report: Report) -> Table | None:
    """The facts whose first token moved most, in words, for the least and the most moved model."""
    rows = [
        (
            words(cell_title(report, name)),
            words(example.prompt),
            words(example.completion),
            words(f"{_token(example.base_top)} → {_token(example.tuned_top)}"),
            _rank(example),
            Entry(text=f"{example.kl:.3f}", value=example.kl),
        )
        for name in extent(report)
        for example in report.moved.get(name, ())
    ]
    if not rows:
        return None
    return Table(
        id="table-e-moved-most",
        title="Table E · The facts whose first token moved most",
        note="What the base was shown and how it went on; the likeliest first token before and after fine-tuning; the "
        "place of the right answer’s first token among all tokens before and after; the divergence. For the models "
        "that moved least and most.",
        columns=(
            Column(title="Trained on"),
            Column(title="Shown"),
            Column(title="The base’s completion"),
            Column(title="Likeliest token"),
            Column(title="Place of the answer"),
            Column(title="Divergence", unit="nats"),
        ),
        rows=tuple(rows),
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
