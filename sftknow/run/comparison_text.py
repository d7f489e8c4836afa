"""A comparison as text for the terminal: one table a split, a sentence on each, and questions gained and lost."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sftknow.artifacts.comparisons import Comparison, PairedDifference, PairedQuestion
from sftknow.artifacts.scores import METRICS
from sftknow.records import BUCKETS, Split
from sftknow.report.terminal import text_table
from sftknow.report.words import UNTOLD
from sftknow.stats import holm

_SPLITS: dict[str, str] = {
    "train": "training",
    "dev": "in-domain dev",
    "test": "in-domain test",
    "testood": "out-of-domain test",
}
_METRICS = {"acc": "contains the answer", "acc_word": "contains it as whole words", "exact_match": "exact match"}
_MINUS = "−"
_LONGEST = 70


def comparison_text(comparison: Comparison, *, metric: str = "acc", examples: int = 3) -> str:
    """All of it.

    Args:
        comparison: what to show.
        metric: the one that the buckets' rows, the sentences and the examples are about; the means come in all three.
        examples: gained and lost questions shown for each split; 0 for none.
    """
    compared = {question.a.fact_id for question in comparison.questions}
    parts = [
        f"A  {comparison.a}\nB  {comparison.b}",
        f"{len(compared):,} questions, answered by both; data set {comparison.dataset_fingerprint[:12]}, graded by "
        f"{comparison.graded_by}.\n"
        f"A and B in % of questions ({_METRICS[metric]}). B {_MINUS} A in points, with the {comparison.level:.0%} "
        f"interval of {comparison.resamples:,}\nbootstrap resamples within buckets. Gained: right with B only; lost: "
        "right with A only. p: McNemar's exact test.",
    ]
    for split in comparison.splits:
        parts.append(_table(comparison, split, metric))
        parts.append(_sentence(comparison, split, metric))
    parts += [f"Not compared: {_SPLITS[split]}: {reason}." for split, reason in comparison.left_out.items()]
    if examples:
        for split in comparison.splits:
            parts += [_examples(comparison, split, metric, change, examples) for change in ("gained", "lost")]
        if not any(question.question for question in comparison.questions):
            parts.append("The data set is not at hand: pass --mastery DATA to see the questions and expected answers.")
    return "\n\n".join(part for part in parts if part)


def _table(comparison: Comparison, split: Split, metric: str) -> str:
    group = f"cbqa_mastery_{split}"
    rows = []
    for bucket in BUCKETS:
        task = f"{group}_bucket_{bucket}"
        if task in comparison.missing:
            rows.append([f"bucket {bucket}", "0", *[""] * 7])
        else:
            rows.append(_row(f"bucket {bucket}", comparison.value(task, metric)))
    for name in (metric, *(other for other in METRICS if other != metric)):
        label = "mean over buckets" if name == metric else f"… {_METRICS[name]}"
        rows.append(_row(label, comparison.value(group, name)))
    header = [_SPLITS[split], "questions", "A", "B", f"B {_MINUS} A", "interval", "gained", "lost", "p"]
    return text_table(header, rows)


def _row(label: str, found: PairedDifference) -> list[str]:
    return [
        label,
        f"{found.count:,}",
        f"{100 * found.a:.1f}",
        f"{100 * found.b:.1f}",
        _points(found.difference),
        f"{_points(found.low)} to {_points(found.high)}" if found.gained or found.lost else "no change",
        f"{found.gained:,}",
        f"{found.lost:,}",
        _p(found.p_value),
    ]


def _sentence(comparison: Comparison, split: Split, metric: str) -> str:
    found = comparison.value(f"cbqa_mastery_{split}", metric)
    numbers = (
        f"{_points(found.difference)} points, {comparison.level:.0%} interval {_points(found.low)} to "
        f"{_points(found.high)}, p {'' if found.p_value < 0.001 else '= '}{_p(found.p_value)}"
    )
    p_values = [comparison.value(f"cbqa_mastery_{s}", metric).p_value for s in comparison.splits]
    adjusted = holm(p_values)[list(comparison.splits).index(split)]  # one sentence a split: they are judged together
    if len(p_values) > 1:
        numbers += f", {_p(adjusted)} after Holm"
    if found.gained == found.lost == 0:
        return f"{_SPLITS[split]}: A and B are right on the very same questions."
    if adjusted >= 1 - comparison.level:
        return f"{_SPLITS[split]}: A and B {UNTOLD} apart ({numbers})."
    return f"{_SPLITS[split]}: {'B' if found.difference > 0 else 'A'} is better ({numbers})."


def _examples(comparison: Comparison, split: Split, metric: str, change: str, wanted: int) -> str:
    found = [q for q in comparison.questions if q.a.split == split and q.change(metric) == change]
    if not found:
        return ""
    # Evenly spaced, so that every bucket with many of them is shown.
    count = min(wanted, len(found))
    shown = [found[(2 * place + 1) * len(found) // (2 * count)] for place in range(count)]
    of = "" if count == len(found) else f", {count} of {len(found):,}"
    return "\n".join([f"{change} on the {_SPLITS[split]}{of}:", *(_example(question) for question in shown)])


def _example(question: PairedQuestion) -> str:
    if question.question:
        expected: Sequence[str] = question.answers[:3]
        more = "" if len(question.answers) <= 3 else f" (and {len(question.answers) - 3} more)"
        asked = f"{_short(question.question)}  → {' | '.join(expected)}{more}"
    else:
        asked = question.a.fact_id
    answers = f"      A: {_quoted(question.a.output)}\n      B: {_quoted(question.b.output)}"
    return f"  bucket {question.a.bucket}  {asked}\n{answers}"


def _points(share: float) -> str:
    """A difference in points with its sign; no sign where it rounds to zero."""
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", _MINUS)


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _quoted(text: str) -> str:
    """An output on one line, as it is but for its length."""
    return json.dumps(_short(text.strip()), ensure_ascii=False)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
