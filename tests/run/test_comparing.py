"""`sftknow compare`: what A and B may be, what is scored now, what is refused, what is printed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sftknow.artifacts.manifests import write_manifest
from sftknow.artifacts.scores import read_eval, write_eval
from sftknow.cli.main import main
from sftknow.errors import MasteryDataError, ModelError, RunError
from sftknow.evaluation.harness import Harness
from sftknow.models.identity import weights_sha256
from sftknow.models.options import ModelOptions
from sftknow.records import ModelRef
from sftknow.run.comparing import compare_models
from sftknow.run.comparison_text import comparison_text
from tests.tiny import tiny_llama, tiny_mastery_data, tiny_tokenizer

CPU = ModelOptions(device="cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with three models, of which two are scored; the third's weights are those of a restored level."""
    folder = tmp_path_factory.mktemp("runs") / "lab"
    data = tiny_mastery_data(folder / "mastery" / "dataset")
    tokenizer = tiny_tokenizer()
    harness = Harness(data, splits=("test", "testood"), device="cpu")
    places = {"base": "models/base", "b2": "models/b2", "b2@5pct": "restored/b2/5pct", "b4": "models/b4"}
    for seed, (name, place) in enumerate(places.items()):
        model = tiny_llama(folder / place, tokenizer, seed=seed)
        depth = "../" * (place.count("/") + 1)
        write_manifest(model, "model", {"mastery_dataset": {"path": f"{depth}mastery/dataset"}})
        if name == "b4":
            continue
        write_eval(folder / "evaluation" / name, harness.score_path(ModelRef(path=str(model)), name=name))
        mark = folder / "stages" / "evaluation" / f"{name}.json"
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(json.dumps({"inputs": {"weights": weights_sha256(model)}}))
    return folder


def test_names_folders_and_models_are_the_same_thing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sftknow.evaluation.harness.Harness.score_path", lambda *_, **__: pytest.fail("scored again"))
    by_name = compare_models("base", "b2", run=run, resamples=200)
    assert (by_name.a, by_name.b) == ("base", "b2")
    assert all(question.question and question.answers for question in by_name.questions)
    folders = [str(run / "evaluation" / name) for name in ("base", "b2")]
    models = [str(run / "models" / name) for name in ("base", "b2")]
    for one, two in ((folders[0], folders[1]), (models[0], folders[1]), (models[0], models[1])):
        assert compare_models(one, two, resamples=200) == by_name
    for name in ("b2@5pct", "b2@5%", str(run / "restored" / "b2" / "5pct")):
        assert compare_models("b2", name, run=run, resamples=200).b == "b2@5pct"


def test_what_has_no_evaluation_is_scored_now(run: Path, tmp_path: Path) -> None:
    found = compare_models("base", "b4", run=run, resamples=200, out=tmp_path / "out", scoring=CPU)
    assert (found.a, found.b) == ("base", "b4")
    assert not (tmp_path / "out" / "a").exists()
    scores = read_eval(tmp_path / "out" / "b")
    assert [q.output for q in scores.questions] == [q.b.output for q in found.questions]
    again = compare_models(str(run / "evaluation" / "base"), str(tmp_path / "out" / "b"), resamples=200)
    assert again.differences == found.differences
    # Other weights under the old name: the evaluation there is not theirs.
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    shutil.copy(run / "models" / "b4" / "model.safetensors", moved / "models" / "b2" / "model.safetensors")
    fresh = compare_models(str(moved / "models" / "base"), str(moved / "models" / "b2"), resamples=200, scoring=CPU)
    assert [q.b.output for q in fresh.questions] == [q.b.output for q in found.questions]


def test_a_model_that_names_no_data_takes_the_other_ones(run: Path, tmp_path: Path) -> None:
    bare = tiny_llama(tmp_path / "bare", tiny_tokenizer(), seed=7)
    for other in (str(run / "evaluation" / "base"), str(run / "models" / "b4")):
        found = compare_models(other, str(bare), resamples=100, scoring=CPU)
        assert found.b == str(bare)
        assert len(found.questions) == 40
    with pytest.raises(MasteryDataError, match=r"neither .* names a graded data set .* pass --mastery DATA"):
        compare_models(str(bare), str(bare))


def test_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    other = tiny_mastery_data(tmp_path / "other", per_bucket=3)
    base, lonely = str(run / "evaluation" / "base"), tiny_llama(tmp_path / "lonely", tiny_tokenizer())
    write_manifest(lonely, "model", {"mastery_dataset": {"path": "../other"}})
    shutil.copytree(run / "evaluation" / "base", tmp_path / "broken")
    (tmp_path / "broken" / "questions.parquet").unlink()
    (tmp_path / "hollow").mkdir()
    for one, two, more, kind, said in (
        ("base", "b9", {"run": run}, RunError, "has no model b9; it scored: b2, b2@5pct, base"),
        ("base", "b2", {"run": tmp_path / "no"}, RunError, "no run directory"),
        (base, str(tmp_path / "hollow"), {}, ModelError, "neither a model"),
        (base, str(tmp_path / "nothing"), {}, ModelError, "there is no model at"),
        (base, str(tmp_path / "broken"), {}, RunError, "no whole evaluation"),
        (base, base, {"dataset": other}, MasteryDataError, "another graded data set"),
        (str(run / "models" / "b4"), str(lonely), {}, MasteryDataError, "name different graded data sets"),
        (base, base, {"splits": ("dev",)}, MasteryDataError, "cannot be compared on dev"),
    ):
        with pytest.raises(kind, match=said) as caught:
            compare_models(one, two, scoring=CPU, **more)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_without_the_data_set(run: Path, tmp_path: Path) -> None:
    for name in ("base", "b2"):
        shutil.copytree(run / "evaluation" / name, tmp_path / name)
    found = compare_models(str(tmp_path / "base"), str(tmp_path / "b2"), resamples=100)
    assert not any(question.question for question in found.questions)
    with_data = compare_models(
        str(tmp_path / "base"), str(tmp_path / "b2"), dataset=run / "mastery" / "dataset", resamples=100
    )
    assert with_data.differences == found.differences
    assert with_data.questions[0].question
    assert "pass --mastery DATA to see the questions" in comparison_text(found)


def test_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["compare", "base", "b2", "--run", str(run), "--resamples", "500", "--out", str(out)]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert text.startswith("A  base\nB  b2\n\n40 questions, answered by both")
    # The last line names the folder, whose length is not ours.
    assert max(map(len, text.splitlines()[:-1])) <= 120
    for line in ("in-domain test ", "out-of-domain test ", "mean over buckets", "… exact match"):
        assert sum(row.startswith(line) for row in text.splitlines()) >= 1
    gained = json.loads((out / "comparison.json").read_text())["differences"][0]["gained"]
    assert (f"gained on the in-domain test{'' if gained <= 3 else f', 3 of {gained}'}:" in text) == bool(gained)
    assert {path.name for path in out.iterdir()} == {
        "comparison.json", "differences.csv", "questions.parquet", "changed.csv"
    }  # fmt: skip
    assert main([*command, "--splits", "tset"]) == 2
    assert "--splits should be 'train', 'dev', 'test' or 'testood', not 'tset'" in capsys.readouterr().err
    assert main(["compare", "base", "base", "--run", str(run), "--resamples", "10"]) == 0
    assert "A and B are right on the very same questions" in capsys.readouterr().out
