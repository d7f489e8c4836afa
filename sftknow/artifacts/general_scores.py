"""Scores on one general-ability task, and their files: ``<task>.json`` and ``<task>_answers.parquet``.

The JSON is written last: a task whose JSON is there is whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sftknow.artifacts.files import atomic_file, read_json, write_json
from sftknow.artifacts.scores import metrics_from_json, metrics_to_json
from sftknow.errors import RunError
from sftknow.records import to_json


@dataclass(frozen=True, kw_only=True)
class GeneralMetric:
    """One number of a task."""

    name: str
    """``rouge1``, ``rouge2``, ``rougeL``; ``acc`` (the number after ``####``, the paper's ACC), ``acc_flexible`` (the
    last number in the output)."""
    lm_eval_name: str
    """The same in lm-eval: ``metric,filter``."""
    value: float
    """Between 0 and 1."""
    stderr: float
    """NaN where there is a single row."""
    count: int


@dataclass(frozen=True, kw_only=True)
class GeneralAnswer:
    """One row, answered by the model."""

    row: int
    """Place in the test split, from 0."""
    prompt: str
    expected: str
    output: str
    scores: Mapping[str, float]
    """By our names of the metrics."""


@dataclass(frozen=True, kw_only=True)
class GeneralScores:
    """One model on one task."""

    model: str
    task: str
    lm_eval_task: str
    few_shot: int
    """Examples before each question."""
    limit: int | None
    """Only the first rows were scored; None for all."""
    data: str
    """Folder, or data set on the Hub."""
    data_sha256: str
    """Hash of the test rows."""
    metrics: tuple[GeneralMetric, ...]
    """The task's headline first."""
    answers: tuple[GeneralAnswer, ...] = ()

    def value(self, name: str) -> GeneralMetric:
        """The metric of that name. Raises KeyError where there is none."""
        for metric in self.metrics:
            if metric.name == name:
                return metric
        raise KeyError(name)


_SHOWN = pa.schema([("row", pa.int64()), ("prompt", pa.string()), ("expected", pa.string()), ("output", pa.string())])


def write_general(folder: Path, scores: GeneralScores) -> Path:
    """Write one task's scores and answers; return the JSON's path."""
    path = folder / f"{scores.task}.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    schema = pa.schema([*_SHOWN, *(pa.field(metric.name, pa.float64()) for metric in scores.metrics)])
    rows = [{**{name: getattr(a, name) for name in _SHOWN.names}, **a.scores} for a in scores.answers]
    with atomic_file(_answers(path)) as partial:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), partial)
    write_json(path, scores_json(scores))
    return path


def scores_json(scores: GeneralScores) -> dict[str, Any]:
    """The scores without the answers, JSON-ready: a standard error that does not exist is null."""
    content: dict[str, Any] = to_json(dataclasses.replace(scores, answers=()))
    del content["answers"]
    return {**content, "metrics": metrics_to_json(scores.metrics)}


def read_general(path: Path) -> GeneralScores:
    """Read what `write_general` wrote, by the JSON's path.

    Raises:
        RunError: a file is missing or damaged.
    """
    content = read_json(path)
    try:
        metrics = metrics_from_json(GeneralMetric, content["metrics"])
        answers = tuple(
            GeneralAnswer(
                **{name: row[name] for name in _SHOWN.names},
                scores={metric.name: row[metric.name] for metric in metrics},
            )
            for row in pq.read_table(_answers(path)).to_pylist()
        )
        return GeneralScores(**{**content, "metrics": metrics, "answers": answers})
    except (OSError, KeyError, TypeError, pa.ArrowException) as error:
        raise RunError(f"{path} is no whole evaluation ({error}); delete it and evaluate again") from None


def _answers(path: Path) -> Path:
    return path.with_name(f"{path.stem}_answers.parquet")
