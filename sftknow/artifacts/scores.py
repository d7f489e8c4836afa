"""An evaluation on disk: ``scores.json`` (everything but the questions) and ``questions.parquet`` (one row a question).

The scores are written last: a folder with ``scores.json`` is whole. What an evaluation that goes on after a kill keeps
there meanwhile (`sftknow.artifacts.journal`) goes away with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from sftknow.artifacts.choice import ENDED
from sftknow.artifacts.files import atomic_file, read_json, write_json
from sftknow.artifacts.journal import JOURNALS
from sftknow.artifacts.tables import schema_of, to_record, to_table
from sftknow.errors import RunError
from sftknow.records import EvalRun, MetricValue, QuestionResult, to_json

Metric = TypeVar("Metric")

SCORES = "scores.json"
QUESTIONS = "questions.parquet"
METRICS: tuple[str, ...] = ("acc", "acc_word", "exact_match")
"""The three readings of a correct answer, the headline first."""

SCHEMA = schema_of(QuestionResult, bucket=pa.int8())
"""Columns of ``questions.parquet``: the fields of `QuestionResult`."""


def write_eval(folder: Path, run: EvalRun) -> None:
    """Write an evaluation; each file is the old one or the whole new one.

    A standard error that does not exist (a bucket with a single question) is NaN in the record and null in the file.
    """
    scores: dict[str, Any] = to_json(replace(run, questions=()))
    del scores["questions"]
    scores["metrics"] = metrics_to_json(run.metrics)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SCORES).unlink(missing_ok=True)
    with atomic_file(folder / QUESTIONS) as partial:
        pq.write_table(to_table(run.questions, SCHEMA), partial)
    write_json(folder / SCORES, scores)
    for journal in folder.glob(JOURNALS):
        journal.unlink()


def read_eval(folder: Path) -> EvalRun:
    """Read what `write_eval` wrote.

    Raises:
        RunError: a file is missing or damaged.
    """
    try:
        questions = tuple(to_record(QuestionResult, row) for row in read_questions(folder).to_pylist())
    except (OSError, KeyError, TypeError, pa.ArrowException) as error:
        raise _not_whole(folder, error) from None
    return replace(read_scores(folder), questions=questions)


def read_questions(folder: Path) -> pa.Table:
    """The table of single answers, with the columns of `SCHEMA`. Earlier versions did not keep how answers ended.

    Raises:
        OSError, KeyError, pyarrow.ArrowException: the file is missing, damaged or lacks a column.
    """
    table = pq.read_table(folder / QUESTIONS)
    if ENDED not in table.column_names:
        table = table.append_column(SCHEMA.field(ENDED), pa.nulls(table.num_rows, pa.bool_()))
    return table.select(SCHEMA.names)


def read_scores(folder: Path) -> EvalRun:
    """The scores that `write_eval` wrote, without the single answers. Raises as `read_eval`."""
    scores = read_json(folder / SCORES)
    try:
        tuples = {name: tuple(scores.get(name) or ()) for name in ("missing", "notes")}
        return EvalRun(**{**scores, **tuples, "metrics": metrics_from_json(MetricValue, scores["metrics"])})
    except (KeyError, TypeError) as error:
        raise _not_whole(folder, error) from None


def _not_whole(folder: Path, error: Exception) -> RunError:
    return RunError(f"{folder} holds no whole evaluation ({error}); delete it and evaluate again")


def metrics_to_json(metrics: Iterable[Any]) -> list[dict[str, Any]]:
    """Metrics JSON-ready: a standard error that does not exist is null."""
    return [{**to_json(one), "stderr": None if math.isnan(one.stderr) else one.stderr} for one in metrics]


def metrics_from_json(kind: Callable[..., Metric], rows: Iterable[Mapping[str, Any]]) -> tuple[Metric, ...]:
    """The inverse of `metrics_to_json`. Raises KeyError or TypeError where fields are missing or unknown."""
    return tuple(kind(**{**row, "stderr": math.nan if row["stderr"] is None else row["stderr"]}) for row in rows)
