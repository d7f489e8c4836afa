"""`sftknow evaluate`: several models with one harness, results that are kept, and mistakes in one line."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from sftknow.artifacts.manifests import write_manifest
from sftknow.artifacts.scores import read_eval
from sftknow.cli.main import main
from sftknow.errors import MasteryDataError, ModelError
from sftknow.evaluation.harness import Harness
from sftknow.records import ModelRef
from sftknow.run.scoring import score_models


def score(models: list[Path], dataset: Path | None, out: Path | None = None, **options: Any) -> list[Any]:
    given: dict[str, Any] = {"splits": ("test",), "batch_size": 32, "device": "cpu", "limit": 1, **options}
    refs = [ModelRef(path=str(model)) for model in models]
    return list(score_models(refs, str(dataset) if dataset else None, out=out, **given))


def test_several_models_are_kept_and_not_scored_again(
    tiny_model: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    made, scored = [], []
    init, score_path = Harness.__init__, Harness.score_path

    def counted_init(self: Harness, *arguments: Any, **options: Any) -> None:
        made.append(1)
        init(self, *arguments, **options)

    def counted_score(self: Harness, ref: ModelRef, **options: Any) -> Any:
        scored.append(options["name"])
        return score_path(self, ref, **options)

    monkeypatch.setattr(Harness, "__init__", counted_init)
    monkeypatch.setattr(Harness, "score_path", counted_score)
    first = score([tiny_model, other], tiny_dataset, tmp_path / "out")
    assert (len(made), len(scored)) == (1, 2), "tasks are built once"
    assert [one.out.name for one in first] == ["model", "other"]
    assert sorted(file.name for file in (tmp_path / "out" / "other").iterdir()) == [
        "inputs.json",
        "questions.parquet",
        "scores.json",
    ]
    again = score([tiny_model, other], tiny_dataset, tmp_path / "out")
    assert len(scored) == 2
    assert [one.scores for one in again] == [one.scores for one in first]
    assert read_eval(tmp_path / "out" / "model") == first[0].scores
    score([tiny_model, other], tiny_dataset, tmp_path / "out", limit=2)
    assert len(scored) == 4, "other questions"
    with pytest.raises(MasteryDataError, match="two of the models would write to"):
        score([tiny_model, tiny_model], tiny_dataset, tmp_path / "out")


def test_default_of_a_recipe_comes_last(tiny_model: Path, tiny_dataset: Path) -> None:
    with pytest.raises(MasteryDataError, match="pass --mastery FOLDER"):
        score([tiny_model], None)
    (one,) = score([tiny_model], None, default=str(tiny_dataset))
    assert one.questions.named_by == "the recipe's default"


def test_model_without_all_its_layers_is_refused(tiny_model: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    config = tiny_model / "config.json"
    shutil.copytree(tiny_model, tmp_path / "deeper")
    text = config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3')
    (tmp_path / "deeper" / "config.json").write_text(text)
    with pytest.raises(ModelError, match="no weights for layer 2"):
        score([tmp_path / "deeper"], tiny_dataset)


def test_command_says_where_the_questions_come_from(
    tiny_model: Path, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "tuned"
    shutil.copytree(tiny_model, model)
    write_manifest(model, "model", {"base": {"path": "org/base"}, "mastery_dataset": {"path": str(tiny_dataset)}})
    assert main(["evaluate", str(model), "--limit", "1", "--device", "cpu", "--splits", "test,train"]) == 0
    said = capsys.readouterr().out
    assert f"data set: {tiny_dataset} (named by the sftknow.json of {model}), graded by tiny, fingerprint" in said
    assert "note: the data set was graded by tiny, and the model's base is org/base" in said
    assert "note: the model names no training facts: the split train is the data set's whole training part" in said
