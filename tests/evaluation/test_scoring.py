"""What the YAML names: reading a bucket and scoring an answer."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from sftknow.errors import MasteryDataError, SftknowError
from sftknow.evaluation.scoring import TaskDataError, load_bucket, process_results
from sftknow.prompts import question_prompt
from sftknow.resources import task_folder
from sftknow.storage.manifests import write_manifest
from sftknow.storage.mastery_data import MasteryData, write_mastery_data
from tests.tiny import graded, tiny_facts, tiny_tokenizer


def model_folder(folder: Path, content: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tiny_tokenizer(folder=folder)
    write_manifest(folder, "model", content)
    return folder


def document(*answers: str, placeholder: bool = False) -> dict[str, Any]:
    return {"answers": list(answers), "placeholder": placeholder}


@pytest.mark.parametrize(
    ("output", "answers", "expected"),
    [
        (" Paris", ("Paris",), (1, 1, 1)),
        (" the Paris.", ("Paris",), (1, 1, 1)),
        (" Romania", ("Oman",), (0, 0, 0)),
        (" Romania, Oman", ("Oman",), (1, 1, 0)),
        (" Newark", ("New",), (1, 0, 0)),
        (" not Mark Twain", ("Mark Twain",), (1, 1, 0)),
        (" St. Petersburg", ("St. Petersburg",), (1, 1, 1)),
        (" South Korea", ("Republic of Korea", "South Korea"), (1, 1, 1)),
        ("", ("Paris",), (0, 0, 0)),
    ],
)
def test_process_results(output: str, answers: tuple[str, ...], expected: tuple[int, int, int]) -> None:
    scores = process_results(document(*answers), [output])
    assert (scores["acc"], scores["acc_word"], scores["exact_match"]) == expected


def test_placeholder_has_no_score() -> None:
    assert process_results(document(placeholder=True), ["anything"]) == {}


def test_bucket_as_documents(tiny_dataset: Path) -> None:
    rows = load_bucket(
        mastery_split="test", mastery_bucket=2, mastery_dataset=str(tiny_dataset), version=1.0, config_source="x"
    )["test"]
    facts = [row.fact for row in MasteryData(tiny_dataset).bucket("test", 2)]
    assert rows["fact_id"] == [fact.id for fact in facts]
    assert rows["prompt"] == [question_prompt(fact.question) for fact in facts]
    assert rows["answers"] == [list(fact.answers) for fact in facts]
    assert not any(prompt.endswith(" ") for prompt in rows["prompt"])


def test_empty_bucket_is_one_placeholder(tmp_path: Path) -> None:
    rows = [graded(fact, 4) for fact in tiny_facts(3, split="test")]
    write_mastery_data(tmp_path / "data", rows, {"graded_by": "m"})
    empty = load_bucket(mastery_split="test", mastery_bucket=0, mastery_dataset=str(tmp_path / "data"))["test"]
    assert empty["placeholder"] == [True]


def test_asked_for_beats_what_the_model_names(tiny_dataset: Path, tmp_path: Path) -> None:
    rows = [graded(fact, 1) for fact in tiny_facts(3, split="test")]
    write_mastery_data(tmp_path / "run" / "dataset", rows, {"graded_by": "m"})
    model = model_folder(tmp_path / "run" / "models" / "a", {"mastery_dataset": {"path": "../../dataset"}})
    own = load_bucket(mastery_split="test", mastery_bucket=1, pretrained=str(model))["test"]
    assert own["fact_id"] == [row.fact.id for row in rows]
    asked = load_bucket(
        mastery_split="test", mastery_bucket=1, pretrained=str(model), mastery_dataset=str(tiny_dataset)
    )["test"]
    assert asked["fact_id"] == [row.fact.id for row in MasteryData(tiny_dataset).bucket("test", 1)]


def test_train_is_the_models_own_facts(tiny_dataset: Path, tmp_path: Path) -> None:
    model = model_folder(
        tmp_path,
        {"mastery_dataset": {"path": str(tiny_dataset)}, "sft": {"fact_ids": ["P36/train/1", "P17/train/0", "x"]}},
    )
    first = load_bucket(mastery_split="train", mastery_bucket=0, pretrained=str(model))["test"]
    assert first["fact_id"] == ["P17/train/0", "P36/train/1"]
    second = load_bucket(mastery_split="train", mastery_bucket=1, pretrained=str(model))["test"]
    assert second["placeholder"] == [True]


def damaged(tiny_dataset: Path, folder: Path) -> Path:
    """A data set whose bucket is a whole Parquet file, but not its own."""
    for file in tiny_dataset.rglob("*"):
        target = folder / file.relative_to(tiny_dataset)
        if file.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    (folder / "test" / "bucket_0.parquet").write_bytes((folder / "test" / "bucket_1.parquet").read_bytes())
    return folder


def test_bad_input_is_one_line_that_says_what_to_do(tiny_dataset: Path, tmp_path: Path) -> None:
    nameless = model_folder(tmp_path / "nameless", {})
    moved = model_folder(tmp_path / "moved", {"mastery_dataset": {"path": "../gone"}})
    bare = tmp_path / "bare"
    bare.mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "sftknow.json").write_text("{")
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "--metadata mastery_dataset="),
        ({"pretrained": str(nameless)}, "names no graded data set"),
        ({"pretrained": str(bare)}, "names no graded data set"),
        ({"pretrained": str(moved)}, "which is not there"),
        ({"mastery_dataset": str(bare)}, "has no sftknow.json"),
        ({"mastery_dataset": str(nameless)}, "holds a model"),
        ({"mastery_dataset": str(tmp_path / "nowhere")}, "is not there"),
        ({"mastery_dataset": str(tmp_path / "broken")}, "is damaged"),
        ({"mastery_dataset": "no-such-org/no-such-data"}, "no folder no-such-org/no-such-data"),
        ({"mastery_dataset": str(damaged(tiny_dataset, tmp_path / "damaged"))}, "grade or pull it again"),
        ({"mastery_dataset": str(tiny_dataset), "pretrained": str(bare)}, "the tokenizer of"),
        ({"mastery_dataset": str(tiny_dataset), "mastery_split": "train"}, "pretrained="),
        (
            {"mastery_dataset": str(tiny_dataset), "mastery_split": "train", "pretrained": str(nameless)},
            "names no training facts",
        ),
    ]
    for arguments, message in cases:
        with pytest.raises(TaskDataError) as caught:
            load_bucket(**{"mastery_split": "test", "mastery_bucket": 0, **arguments})
        assert message in str(caught.value), arguments
        assert "\n" not in str(caught.value)


def test_error_ends_a_command_with_its_line_alone() -> None:
    assert issubclass(TaskDataError, MasteryDataError)
    assert issubclass(TaskDataError, SftknowError)
    code = "from sftknow.evaluation.scoring import load_bucket; load_bucket(mastery_split='test', mastery_bucket=0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("cbqa_mastery: no graded data set is named; pass --metadata mastery_dataset=")
    assert done.stderr.count("\n") == 1


def test_lm_eval_leaves_an_empty_bucket_out_and_says_so(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    facts = tiny_facts(9, split="test")
    rows = [graded(fact, bucket) for fact, bucket in zip(facts, (0, 0, 0, 1, 1, 3, 3, 4, 4), strict=True)]
    write_mastery_data(tmp_path / "data", rows, {"graded_by": "m"})
    manager = TaskManager(
        include_path=str(task_folder()),
        include_defaults=False,
        metadata={"pretrained": str(tiny_model), "mastery_dataset": str(tmp_path / "data")},
    )
    lm = HFLM(pretrained=str(tiny_model), device="cpu", batch_size=8)
    with caplog.at_level(logging.WARNING, logger="lm_eval"):
        results = simple_evaluate(lm, tasks=["cbqa_mastery"], task_manager=manager, bootstrap_iters=1)
    leaves = results["results"]
    assert "acc,none" not in leaves["cbqa_mastery_test_bucket_2"]
    present = [leaves[f"cbqa_mastery_test_bucket_{bucket}"]["acc,none"] for bucket in (0, 1, 3, 4)]
    assert results["groups"]["cbqa_mastery_test"]["acc,none"] == sum(present) / 4
    assert "Missing in: cbqa_mastery_test_bucket_2" in caplog.text
    assert "acc,none" not in results["groups"]["cbqa_mastery_testood"]
    assert json.dumps(results["n-samples"]["cbqa_mastery_test_bucket_2"]) == '{"original": 1, "effective": 0}'
