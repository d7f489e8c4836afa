"""Two evaluations compared question by question: what was found, and its files.

On disk it is for programs (JSON, Parquet) and for spreadsheets (CSV).

``comparison.json`` holds everything but the questions and is written last: a folder with it is whole.
``differences.csv`` is its table. ``questions.parquet`` has one row a question, ``changed.csv`` those gained or lost in
any of the three metrics.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from sftknow.artifacts.files import atomic_file, read_json, write_json
from sftknow.artifacts.scores import METRICS, QUESTIONS
from sftknow.errors import RunError
from sftknow.records import SPLITS, QuestionResult, Split, to_json
from sftknow.shown import Shown

COMPARISON = "comparison.json"
DIFFERENCES = "differences.csv"
CHANGED = "changed.csv"

SCHEMA = pa.schema(
    [
        ("fact_id", pa.string()),
        ("split", pa.string()),
        ("bucket", pa.int8()),
        ("question", pa.string()),
        ("answers", pa.list_(pa.string())),
        ("output_a", pa.string()),
        ("output_b", pa.string()),
        *((f"{metric}_{side}", pa.bool_()) for metric in METRICS for side in "ab"),
        *((f"change_{metric}", pa.string()) for metric in METRICS),
    ]
)
"""Columns of ``questions.parquet``; a change is ``gained``, ``lost`` or ``same``."""


Change = Literal["gained", "lost", "same"]


@dataclass(frozen=True, kw_only=True)
class PairedQuestion:
    """One question that both models answered."""

    a: QuestionResult
    b: QuestionResult
    """The same fact, split and bucket as `a`."""
    question: str = ""
    """Empty where the data set was not at hand; so is `answers`."""
    answers: tuple[str, ...] = ()
    """What counts as correct, the expected answer first."""

    def change(self, metric: str = "acc") -> Change:
        """``gained`` where only `b` is correct, ``lost`` where only `a` is."""
        before, after = getattr(self.a, metric), getattr(self.b, metric)
        return "same" if before == after else "gained" if after else "lost"


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """How the models differ on one task or group."""

    task: str
    """Task or group, such as ``cbqa_mastery_test_bucket_3`` or ``cbqa_mastery_test``."""
    metric: str
    """``acc``, ``acc_word`` or ``exact_match``."""
    count: int
    """Questions."""
    a: float
    """Share of correct answers, between 0 and 1; of a group the plain mean over its buckets."""
    b: float
    difference: float
    """b − a."""
    low: float
    """Lower end of the bootstrap interval of the difference."""
    high: float
    gained: int
    """Questions that only b answered correctly."""
    lost: int
    """Questions that only a answered correctly."""
    p_value: float
    """Two-sided, of McNemar's exact test; of a group see `sftknow.stats.stratified_mcnemar`."""


@dataclass(frozen=True, kw_only=True)
class Comparison(Shown):
    """Two models on the same questions."""

    a: str
    b: str
    dataset_fingerprint: str
    graded_by: str
    level: float
    """Of the intervals, such as 0.95."""
    resamples: int
    seed: int
    differences: tuple[PairedDifference, ...]
    """Split by split: the group, then its buckets; each in the three metrics."""
    missing: tuple[str, ...] = ()
    """Leaf tasks without a single question, which the means leave out."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Splits that were not compared, with the reason."""
    questions: tuple[PairedQuestion, ...] = ()

    def headline(self) -> str:
        """The difference on each group."""
        groups = [d for d in self.differences if d.metric == "acc" and "_bucket_" not in d.task]
        said = [
            f"{100 * d.difference:+.1f} points in {d.task} ({self.level:.0%} interval {100 * d.low:+.1f} to "
            f"{100 * d.high:+.1f})"
            for d in groups
        ]
        return f"{self.b} against {self.a}: {', '.join(said)}"

    def rows(self) -> list[dict[str, Any]]:
        """One row a task or group and metric."""
        return [dict(vars(entry)) for entry in self.differences]

    def value(self, task: str, metric: str = "acc") -> PairedDifference:
        """The difference on a task or group. Raises KeyError where it was not compared."""
        for entry in self.differences:
            if entry.task == task and entry.metric == metric:
                return entry
        raise KeyError(f"{task}/{metric}")

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that were compared."""
        there = {question.a.split for question in self.questions}
        return tuple(split for split in SPLITS if split in there)


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Write the four files; each is the old one or the whole new one."""
    content: dict[str, Any] = {
        name: to_json(getattr(comparison, name)) for name in Comparison.__dataclass_fields__ if name != "questions"
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / COMPARISON).unlink(missing_ok=True)
    rows = [_row(question) for question in comparison.questions]
    with atomic_file(folder / QUESTIONS) as partial:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), partial)
    changed = [row for row in rows if any(row[f"change_{metric}"] != "same" for metric in METRICS)]
    _write_csv(folder / CHANGED, SCHEMA.names, [{**row, "answers": " | ".join(row["answers"])} for row in changed])
    _write_csv(folder / DIFFERENCES, list(PairedDifference.__dataclass_fields__), content["differences"])
    write_json(folder / COMPARISON, content)


def read_comparison(folder: Path) -> Comparison:
    """Read what `write_comparison` wrote.

    Raises:
        RunError: a file is missing or damaged.
    """
    content = read_json(folder / COMPARISON)
    try:
        rows = pq.read_table(folder / QUESTIONS).select(SCHEMA.names).to_pylist()
        return Comparison(
            **{
                **content,
                "differences": tuple(PairedDifference(**entry) for entry in content["differences"]),
                "missing": tuple(content["missing"]),
                "questions": tuple(_question(row) for row in rows),
            }
        )
    except (OSError, KeyError, TypeError, pa.ArrowException) as error:
        raise RunError(f"{folder} holds no whole comparison ({error}); delete it and compare again") from None


def _row(question: PairedQuestion) -> dict[str, Any]:
    row: dict[str, Any] = {
        "fact_id": question.a.fact_id,
        "split": question.a.split,
        "bucket": question.a.bucket,
        "question": question.question,
        "answers": list(question.answers),
        "output_a": question.a.output,
        "output_b": question.b.output,
    }
    for metric in METRICS:
        row[f"{metric}_a"], row[f"{metric}_b"] = getattr(question.a, metric), getattr(question.b, metric)
        row[f"change_{metric}"] = question.change(metric)
    return row


def _question(row: dict[str, Any]) -> PairedQuestion:
    sides = [
        QuestionResult(
            fact_id=row["fact_id"],
            split=row["split"],
            bucket=row["bucket"],
            output=row[f"output_{side}"],
            **{metric: row[f"{metric}_{side}"] for metric in METRICS},
        )
        for side in "ab"
    ]
    return PairedQuestion(a=sides[0], b=sides[1], question=row["question"], answers=tuple(row["answers"]))


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    with atomic_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
