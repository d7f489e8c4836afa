"""Plain tables for the terminal, and the summary at the end of a run."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from sftknow.artifacts.choice import BESIDE, Measured
from sftknow.artifacts.mastery_data import MasteryData
from sftknow.records import BUCKETS, SPLITS, EvalRun, ParameterChange, Split
from sftknow.shown import wrapped

_SPLIT_NAMES = {
    "train": "training",
    "dev": "in-domain dev",
    "test": "in-domain test",
    "testood": "out-of-domain test",
}


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: bool = False) -> str:
    """Columns of text: the first flush left, the others flush right, or all of them flush left."""
    others = str.ljust if left else str.rjust
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *rest = cells
        return "  ".join(
            [first.ljust(widths[0]), *(others(c, w) for c, w in zip(rest, widths[1:], strict=True))]
        ).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *(line(row) for row in rows)])


def distribution_table(dataset: MasteryData) -> str:
    """Facts for each split and bucket (the paper's Table 1)."""
    rows = []
    for split in SPLITS:
        counts = [dataset.count(split, bucket) for bucket in BUCKETS]
        rows.append([_SPLIT_NAMES[split], *(f"{count:,}" for count in counts), f"{sum(counts):,}"])
    return text_table(["facts", *(f"bucket {bucket}" for bucket in BUCKETS), "all"], rows)


def topic_counts(data: MasteryData) -> dict[Split, dict[str, dict[int, int]]]:
    """Facts by split, topic and bucket, empty buckets included (the paper's Table 8). Topics in the order of names."""
    counts: dict[Split, dict[str, dict[int, int]]] = {split: {} for split in SPLITS}
    for split in SPLITS:
        found = {bucket: Counter(data.columns(split, bucket, ["topic"])["topic"].to_pylist()) for bucket in BUCKETS}
        for topic in sorted(set().union(*found.values()), key=_natural):
            counts[split][topic] = {bucket: found[bucket][topic] for bucket in BUCKETS}
    return counts


def topic_table(data: MasteryData) -> str:
    """Facts for each part, topic and bucket (the paper's Table 8), and the tries that R stands on in each topic."""
    tries = _tries(data)
    rows = []
    for split, topics in topic_counts(data).items():
        for topic, counts in topics.items():
            cells = [f"{count:,}" for count in counts.values()]
            rows.append(
                [f"{_SPLIT_NAMES[split]} {topic}", *cells, f"{sum(counts.values()):,}", _span(tries[split, topic])]
            )
    return text_table(["facts", *(f"bucket {bucket}" for bucket in BUCKETS), "all", "tries"], rows)


def standing(data: MasteryData) -> str:
    """Over how many tries R stands, and how sure the buckets are, in words."""
    tries: Counter[int] = sum(_tries(data).values(), Counter())
    if not tries:
        return "no fact was graded"
    edge = sum(sum(data.columns(split, bucket, ["edge"])["edge"].to_pylist()) for split in SPLITS for bucket in BUCKETS)
    total = tries.total()
    span = f"{_span(tries)} tries a fact"
    if len(tries) > 1:
        parts = [f"{t} for {n:,}{'' if place else ' facts'}" for place, (t, n) in enumerate(tries.most_common(4))]
        span += f" ({', '.join(parts)}{' …' if len(tries) > 4 else ''})"
    return (
        f"R stands on {span}. For {edge:,} of the {total:,} facts ({edge / total:.0%}) its 95 % interval reaches into\n"
        "another bucket, as it always does in bucket 0: a fact without a hit may have a small R above 0."
    )


def _tries(data: MasteryData) -> dict[tuple[Split, str], Counter[int]]:
    found: dict[tuple[Split, str], Counter[int]] = {}
    for split in SPLITS:
        for bucket in BUCKETS:
            table = data.columns(split, bucket, ["topic", "tries"])
            for topic, tries in zip(table["topic"].to_pylist(), table["tries"].to_pylist(), strict=True):
                found.setdefault((split, topic), Counter())[tries] += 1
    return found


def _span(tries: Counter[int]) -> str:
    low, high = min(tries), max(tries)
    return str(low) if low == high else f"{low} to {high}"


def _natural(topic: str) -> tuple[str, int, str]:
    """P36 before P131."""
    head = topic.rstrip("0123456789")
    digits = topic[len(head) :]
    return head, len(digits), digits


def accuracy_table(scores: EvalRun) -> str:
    """Accuracy in per cent for each split and bucket, the plain mean with its standard error, the stricter measures."""
    rows = []
    for split in SPLITS:
        group = f"cbqa_mastery_{split}"
        if not any(entry.task == group for entry in scores.metrics):
            continue
        cells = []
        for bucket in BUCKETS:
            task = f"{group}_bucket_{bucket}"
            cells.append("no facts" if task in scores.missing else f"{100 * scores.value(task).value:.1f}")
        mean = scores.value(group)
        cells.append(f"{100 * mean.value:.1f} ± {100 * mean.stderr:.1f}")
        found = Measured.of(scores, split)
        cells += ["–" if (v := getattr(found, name)) is None else f"{100 * v:.1f}" for name in BESIDE]
        rows.append([_SPLIT_NAMES[split], *cells])
    header = ["accuracy, %", *(f"bucket {bucket}" for bucket in BUCKETS), "mean", "whole word", "exact", "ends itself"]
    return text_table(header, rows)


def changes_table(change: ParameterChange) -> str:
    """How much of the region changed and how concentrated the change is (the paper's Table 3)."""
    rows = [
        [
            level.level,
            f"{level.selected:,}",
            f"{level.selected_unchanged:,}",
            f"{100 * level.concentration:.2f} %",
            f"{100 * level.concentration_nonzero_base:.2f} %",
        ]
        for level in change.levels
    ]
    share = change.changed / change.elements if change.elements else 0.0
    head = f"region {change.region}: {change.elements:,} parameters, {change.changed:,} changed ({share:.2%})"
    table = text_table(["top", "parameters", "not changed", "share of change", "without base = 0"], rows)
    return f"{head}\n{table}"


def places_table(change: ParameterChange, kind: str) -> str:
    """Share of the selected elements and enrichment by ``layer`` or ``module`` (the paper's Tables 9 and 10)."""
    levels = [level for level in change.levels if level.selected]
    sizes = change.elements_by_layer if kind == "layer" else change.elements_by_module
    rows = []
    for key, elements in sizes.items():
        part = elements / change.elements
        cells = []
        for level in levels:
            share = (level.by_layer if kind == "layer" else level.by_module).get(key, 0) / level.selected
            cells.append(f"{100 * share:.1f} ×{share / part:.2f}" if part else "0.0")
        rows.append([key, f"{100 * part:.1f}", *cells])
    head = f"by {kind}, % of the selected × enrichment (1 = as its size)"
    return f"{head}\n{text_table([kind, 'of region', *(level.level for level in levels)], rows)}"


def table_of_rows(rows: Sequence[Mapping[str, str | int | float | None]], titles: Mapping[str, str]) -> str:
    """Chosen columns of a table of plain values; fractions under a title with % are shown in per cent."""

    def text(key: str, value: str | int | float | None) -> str:
        if isinstance(value, float):
            return f"{100 * value:.2f}" if "%" in titles[key] else f"{value:.4g}"
        return f"{value:,}" if isinstance(value, int) else "–" if value is None else value

    return text_table(list(titles.values()), [[text(key, row[key]) for key in titles] for row in rows])


def print_summary(run: Path) -> None:
    """Print what a run found, in plain words."""
    from sftknow.report.collect import collect
    from sftknow.report.findings import findings
    from sftknow.report.summary import plain_words

    print()
    for sentence in plain_words(findings(collect(run))):
        print(wrapped(f"• {sentence}", sys.stdout))
