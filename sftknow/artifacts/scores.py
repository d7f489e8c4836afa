"""An evaluation on disk: ``scores.json`` (everything but the questions) and ``questions.parquet`` (one row a question).

The scores are written last: a folder with ``scores.json`` is whole. What an evaluation that goes on after a kill keeps
there meanwhile (`sftknow.artifacts.journal`) goes away with it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sftknow.artifacts.files import atomic_file, read_json, write_json
from sftknow.artifacts.journal import JOURNALS
from sftknow.artifacts.tables import schema_of, to_record, to_table
from sftknow.errors import RunError
from sftknow.records import EvalRun, MetricValue, QuestionResult, to_json

SCORES = "scores.json"
QUESTIONS = "questions.parquet"

SCHEMA = schema_of(QuestionResult, bucket=pa.int8())
"""Columns of ``questions.parquet``: the fields of `QuestionResult`."""


def write_eval(folder: Path, run: EvalRun) -> None:
    """Write an evaluation; each file is the old one or the whole new one.

    A standard error that does not exist (a bucket with a single question) is NaN in the record and null in the file.
    """
    scores: dict[str, Any] = to_json(replace(run, questions=()))
    del scores["questions"]
    for metric in scores["metrics"]:
        if math.isnan(metric["stderr"]):
            metric["stderr"] = None
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
    scores = read_json(folder / SCORES)
    try:
        table = pq.read_table(folder / QUESTIONS)
        questions = tuple(to_record(QuestionResult, row) for row in table.select(SCHEMA.names).to_pylist())
        metrics = tuple(
            MetricValue(**{**metric, "stderr": math.nan if metric["stderr"] is None else metric["stderr"]})
            for metric in scores["metrics"]
        )
        return to_record(EvalRun, {"missing": scores["missing"], **scores, "metrics": metrics, "questions": questions})
    except (OSError, KeyError, TypeError, pa.ArrowException) as error:
        raise RunError(f"{folder} holds no whole evaluation ({error}); delete it and evaluate again") from None
