"""The records that pass between rooms."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from sftknow import records
from sftknow.records import (
    EvalRun,
    Fact,
    LevelCut,
    Mastery,
    MetricValue,
    ModelRef,
    RestorePlan,
    TrainedModel,
    to_json,
)

ALL = [r for r in vars(records).values() if dataclasses.is_dataclass(r) and isinstance(r, type)]


def test_every_record_is_frozen_and_named() -> None:
    assert len(ALL) >= 18
    for record in ALL:
        parameters = record.__dataclass_params__
        assert parameters.frozen, record
        assert all(field.kw_only for field in dataclasses.fields(record)), record
        assert record.__doc__, record
        assert "(" not in record.__doc__.split("\n")[0][: len(record.__name__) + 1], (
            f"{record} has no docstring of its own"
        )


def test_answers_begin_with_the_object() -> None:
    fact = Fact(id="a", topic="P17", subject="S", object="UK", aliases=("Britain",), question="Q?", split="train")
    assert fact.answers == ("UK", "Britain")
    with pytest.raises(dataclasses.FrozenInstanceError):
        fact.object = "US"  # type: ignore[misc]


def test_rate_is_hits_by_tries() -> None:
    mastery = Mastery(
        fact_id="a",
        template_hits=(1, 2),
        template_tries=(10, 10),
        hits=3,
        tries=20,
        bucket=1,
        low=0,
        high=1,
        edge=False,
    )
    assert mastery.rate == 0.15


@pytest.mark.parametrize(
    ("text", "path", "revision"),
    [
        ("org/name", "org/name", None),
        ("org/name@main", "org/name", "main"),
        ("org/name@refs/pr/1", "org/name", "refs/pr/1"),
        ("runs/lab/models/base", "runs/lab/models/base", None),
    ],
)
def test_model_refs_by_text(text: str, path: str, revision: str | None) -> None:
    assert ModelRef.parse(text, dtype="bfloat16") == ModelRef(path=path, revision=revision, dtype="bfloat16")
    assert str(ModelRef.parse(text)) == text


def test_a_folder_with_an_at_sign_is_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "b2-n240-s0@20pct"
    assert ModelRef.parse(str(folder)).revision == "20pct"
    folder.mkdir()
    assert ModelRef.parse(str(folder)) == ModelRef(path=str(folder))


def test_values_of_an_eval_run_are_found_by_task_and_metric() -> None:
    metrics = tuple(
        MetricValue(task=task, metric=metric, value=i / 10, stderr=0.1, count=5)
        for i, (task, metric) in enumerate([("a", "acc"), ("a", "exact_match"), ("b", "acc")])
    )
    run = EvalRun(model="m", dataset_fingerprint="f", graded_by="g", metrics=metrics)
    assert run.value("a").value == 0.0
    assert run.value("a", "exact_match").value == 0.1
    assert run.value("b").value == 0.2
    with pytest.raises(KeyError, match="b/exact_match"):
        run.value("b", "exact_match")


def test_to_json_goes_all_the_way_down() -> None:
    plan = RestorePlan(
        strategy="top",
        seed=0,
        region="transformer",
        epsilon=1e-8,
        arithmetic="float32",
        base_sha256="b",
        tuned_sha256="t",
        cuts=(LevelCut(level="20%", selected=5, threshold_bits=7, ties=1),),
    )
    trained = TrainedModel(
        checkpoint=Path("x") / "y", base=ModelRef(path="p"), recipe={"nested": [plan, (1, 2)]}, steps=3, final_loss=0.5
    )
    value = to_json({"model": trained, 3: None})
    assert json.loads(json.dumps(value)) == value
    assert value["3"] is None
    assert value["model"]["checkpoint"] == str(Path("x") / "y")
    assert value["model"]["base"] == {"path": "p", "revision": None, "dtype": None}
    assert value["model"]["recipe"]["nested"][0]["cuts"] == [
        {"level": "20%", "selected": 5, "threshold_bits": 7, "ties": 1, "tie_end": None}
    ]
    assert value["model"]["recipe"]["nested"][1] == [1, 2]


def test_to_json_leaves_plain_values_alone() -> None:
    for value in (None, True, 1, 0.1, "x"):
        assert to_json(value) is value


def test_records_need_the_standard_library_only() -> None:
    code = (
        "import sys; before = set(sys.modules); import sftknow.records; "
        "new = {m.partition('.')[0] for m in set(sys.modules) - before}; "
        "print(sorted(new - set(sys.stdlib_module_names) - {'sftknow'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.stdout == "[]\n", done.stderr
