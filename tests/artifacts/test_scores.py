"""An evaluation on disk."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sftknow.artifacts.scores import read_eval, write_eval
from sftknow.errors import RunError
from sftknow.records import EvalRun, MetricValue, QuestionResult


def evaluation(stderr: float = 0.25) -> EvalRun:
    return EvalRun(
        model="b2-n240-s0",
        dataset_fingerprint="ab" * 32,
        graded_by="base",
        metrics=(MetricValue(task="cbqa_mastery_test_bucket_0", metric="acc", value=0.5, stderr=stderr, count=2),),
        missing=("cbqa_mastery_test_bucket_3",),
        questions=(
            QuestionResult(
                fact_id="P36/test/1",
                split="test",
                bucket=0,
                output=" Çeşme\n",
                acc=True,
                acc_word=True,
                exact_match=False,
            ),
            QuestionResult(
                fact_id="P36/test/2", split="test", bucket=0, output="", acc=False, acc_word=False, exact_match=False
            ),
        ),
    )


def test_round_trip(tmp_path: Path) -> None:
    write_eval(tmp_path / "a" / "b", evaluation())
    assert read_eval(tmp_path / "a" / "b") == evaluation()
    scores = json.loads((tmp_path / "a" / "b" / "scores.json").read_text())
    assert "questions" not in scores
    assert scores["metrics"][0] == {
        "task": "cbqa_mastery_test_bucket_0",
        "metric": "acc",
        "value": 0.5,
        "stderr": 0.25,
        "count": 2,
    }
    assert pq.read_table(tmp_path / "a" / "b" / "questions.parquet")["output"].to_pylist() == [" Çeşme\n", ""]


def test_standard_error_that_does_not_exist_is_null(tmp_path: Path) -> None:
    write_eval(tmp_path, evaluation(math.nan))
    assert json.loads((tmp_path / "scores.json").read_text())["metrics"][0]["stderr"] is None
    assert math.isnan(read_eval(tmp_path).metrics[0].stderr)


def test_no_questions(tmp_path: Path) -> None:
    run = EvalRun(model="m", dataset_fingerprint="f", graded_by="g", metrics=())
    write_eval(tmp_path, run)
    assert read_eval(tmp_path) == run


@pytest.mark.parametrize("file", ["scores.json", "questions.parquet"])
def test_missing_or_damaged_file_is_named(tmp_path: Path, file: str) -> None:
    write_eval(tmp_path, evaluation())
    (tmp_path / file).write_bytes(b"{")
    with pytest.raises(RunError, match=str(tmp_path)):
        read_eval(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(RunError, match=str(tmp_path)):
        read_eval(tmp_path)
