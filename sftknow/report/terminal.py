"""Plain tables for the terminal, and the summary at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sftknow.artifacts.mastery_data import MasteryData
from sftknow.records import BUCKETS, SPLITS, EvalRun, ParameterChange

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
        cells += [f"{100 * scores.value(group, metric).value:.1f}" for metric in ("acc_word", "exact_match")]
        rows.append([_SPLIT_NAMES[split], *cells])
    header = ["accuracy, %", *(f"bucket {bucket}" for bucket in BUCKETS), "mean", "whole word", "exact"]
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
        print(f"• {sentence}")
