"""The level is chosen on dev, confirmed on test, and the model that is written says so."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftknow.artifacts.choice import Measured, choose_level as choose_from
from sftknow.cli.main import main
from sftknow.cli.restore import _choice_lines
from sftknow.errors import CheckpointError, MasteryDataError
from sftknow.evaluation import generation
from sftknow.evaluation.harness import Harness
from sftknow.parameters.options import PairOptions
from sftknow.parameters.restore import restore
from sftknow.records import ModelRef
from sftknow.run import moving
from sftknow.run.checkpoint_pairs import Restoration, analyse_pair
from sftknow.run.choosing import Answers, Choice, ScoringOptions, choose_level
from tests.parameters.checkpoint_pairs import read_checkpoint


def test_the_best_of_equals_restores_least() -> None:
    scores = {"dev": {"20%": 0.5, "5%": 0.5, "0%": 0.4}, "test": {"20%": 0.1, "5%": 0.2, "0%": 0.3}}
    choice = Choice(level="5%", chosen_on="dev", accuracy=scores)
    assert choice.best_on("dev") == "5%"
    assert choice.best_on("test") == "0%"


def test_what_is_printed_names_every_measure_and_what_was_not_chosen() -> None:
    levels = {
        "0%": Measured(acc=0.29, acc_word=0.28, exact_match=0.435, ended=0.99),
        "40%": Measured(acc=0.366, acc_word=0.33, exact_match=0.143, ended=0.6),
    }
    scores = {"dev": levels, "test": levels}
    accuracy = {split: {level: found.acc for level, found in levels.items()} for split in scores}
    choice = Choice(level="0%", chosen_on="dev", accuracy=accuracy, chosen_by="both", scores=scores)
    said = " ".join(" ".join(_choice_lines(choice)).split())
    assert "dev contains whole word exact match end by themselves" in said
    assert "40% 36.60% 33.00% 14.30% 60.00% breaks the form" in said
    assert "chosen on dev by containment, among those whose exact match and share of answers" in said
    assert "not chosen, because these fall: 40% (exact match and answers that end by themselves)" in said
    assert "chosen on test itself by containment, as in the paper: 40%, 36.60% (exact match 14.30%)" in said
    by_accuracy = dataclasses.replace(choice, level="40%", chosen_by="acc")
    assert "levels that break the answers' form, these fall: 40%" in " ".join(_choice_lines(by_accuracy))


def of_pair(pair: tuple[Path, Path], *levels: str, out: Path, order: PairOptions | None = None) -> Restoration:
    return Restoration(base=str(pair[0]), tuned=str(pair[1]), levels=levels, out=out, order=order or PairOptions())


@pytest.fixture
def pair(tiny_model: Path, tmp_path: Path) -> tuple[Path, Path]:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "tuned")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "tuned")
    return tiny_model, tmp_path / "tuned"


def test_choosing(pair: tuple[Path, Path], tiny_dataset: Path, tmp_path: Path) -> None:
    base, tuned = pair
    scoring = ScoringOptions(mastery=tiny_dataset, device="cpu")
    levels = ["20%", "60%"]
    choice, restored = choose_level(of_pair(pair, *levels, out=tmp_path / "best"), scoring)
    assert list(choice.accuracy) == ["dev", "test", "testood"]
    assert list(choice.accuracy["dev"]) == ["0%", "20%", "60%"]
    assert choice.level == choose_from(choice.scores["dev"]) == restored.level
    assert all(found.ended is not None for levels in choice.scores.values() for found in levels.values())
    made = json.loads((tmp_path / "best" / "sftknow.json").read_text())["restoration"]
    assert made["chosen_on"] == "dev"
    assert made["choice"]["accuracy"] == choice.accuracy
    assert made["choice"]["by"] == "both"
    assert made["choice"]["exact_match"]["dev"] == {k: m.exact_match for k, m in choice.scores["dev"].items()}
    plan = analyse_pair(str(base), str(tuned), ["0%", *levels], PairOptions()).plan
    restore(base, tuned, plan, choice.level, tmp_path / "alone", manifest={})
    assert read_checkpoint(tmp_path / "alone") == read_checkpoint(tmp_path / "best")
    # What was scored in memory is what lies on disk.
    harness = Harness(tiny_dataset, splits=["dev"], device="cpu")
    restore(base, tuned, plan, "60%", tmp_path / "sixty", manifest={})
    scored = harness.score_path(ModelRef(path=str(tmp_path / "sixty"), dtype="float32"), name="sixty")
    assert scored.value("cbqa_mastery_dev").value == choice.accuracy["dev"]["60%"]


def test_levels_are_written_where_they_cannot_be_reached_in_memory(
    pair: tuple[Path, Path], tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scoring = ScoringOptions(mastery=tiny_dataset, device="cpu", limit=2)
    expected, _ = choose_level(of_pair(pair, "20%", "60%", out=tmp_path / "moved"), scoring)
    said: list[str] = []
    monkeypatch.setattr(moving, "unplaced", lambda *_: ["model.layers.0.experts.gate_up_proj"])
    asked = dataclasses.replace(of_pair(pair, "20%", "60%", out=tmp_path / "written"), say=said.append)
    choice, _ = choose_level(asked, scoring)
    assert choice.accuracy == expected.accuracy
    assert any("cannot be moved between levels in memory" in line for line in said)
    assert read_checkpoint(tmp_path / "written") == read_checkpoint(tmp_path / "moved")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_a_second_start_asks_only_what_is_left(
    pair: tuple[Path, Path], tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, answers = tmp_path / "best", tmp_path / ".best.answers"
    scoring = ScoringOptions(mastery=tiny_dataset, device="cpu", batch_size=4, limit=1)
    asked: list[int] = []
    generate = generation._generate

    def choose(stop_after: int = 10**6) -> Choice:
        asked.clear()

        def counted(*arguments: Any) -> list[str]:
            if len(asked) == stop_after:
                raise KeyboardInterrupt
            asked.append(1)
            return generate(*arguments)

        monkeypatch.setattr(generation, "_generate", counted)
        return choose_level(of_pair(pair, "20%", out=out), scoring)[0]

    whole = choose()
    batches = len(asked)
    assert batches >= 8
    assert not answers.exists(), "what is written needs no answers"
    shutil.rmtree(out)
    stop = batches // 2
    with pytest.raises(KeyboardInterrupt):
        choose(stop)
    assert not out.exists()
    journal = max(answers.rglob("answers.*.partial.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    with journal.open("a") as file:
        file.write('{"batch": 99, "outp')  # what a kill tears off
    with pytest.raises(KeyboardInterrupt):
        choose(2)
    assert choose() == whole
    assert len(asked) == batches - stop - 2
    assert not answers.exists()
    assert json.loads((out / "sftknow.json").read_text())["restoration"]["choice"]["accuracy"] == whole.accuracy


def test_answers_of_other_weights_do_not_count(
    pair: tuple[Path, Path], tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scoring = ScoringOptions(mastery=tiny_dataset, device="cpu", limit=1)
    out = tmp_path / "best"

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sftknow.run.checkpoint_pairs.restore_levels", stop)  # all scored, nothing written
        with pytest.raises(KeyboardInterrupt):
            choose_level(of_pair(pair, "20%", out=out), scoring)
    assert (tmp_path / ".best.answers").exists()
    asked = []
    generate = generation._generate
    monkeypatch.setattr(generation, "_generate", lambda *a: asked.append(1) or generate(*a))
    options = PairOptions(strategy="bottom")
    mixed = choose_level(of_pair(pair, "20%", out=out, order=options), scoring)[0]
    assert asked
    shutil.rmtree(out)
    assert mixed == choose_level(of_pair(pair, "20%", out=out, order=options), scoring)[0]


def test_two_at_once_and_nothing_left_behind(pair: tuple[Path, Path], tiny_dataset: Path, tmp_path: Path) -> None:
    scoring = ScoringOptions(mastery=tiny_dataset, device="cpu")
    out = tmp_path / "best"
    with Answers(out), pytest.raises(CheckpointError, match="another process is choosing"):
        choose_level(of_pair(pair, "20%", out=out), scoring)
    assert not (tmp_path / ".best.answers").exists()
    with pytest.raises(CheckpointError, match="lies within the checkpoint"):
        choose_level(of_pair(pair, "20%", out=pair[1] / "in"), scoring)


def test_from_the_command_line(
    pair: tuple[Path, Path], tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, tuned = map(str, pair)
    out = tmp_path / "best"
    arguments = ["--top", "30%", "--choose-on", "test", "--mastery", str(tiny_dataset), "--device", "cpu"]
    assert main(["restore", base, tuned, *arguments, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "chosen on test, as in the paper" in said
    assert json.loads((out / "sftknow.json").read_text())["restoration"]["chosen_on"] == "test"


def test_a_split_without_questions(pair: tuple[Path, Path], tmp_path: Path) -> None:
    from sftknow.artifacts.mastery_data import write_mastery_data
    from tests.tiny import graded, tiny_facts

    rows = [graded(fact, 0) for fact in tiny_facts(4, split="test")]
    write_mastery_data(tmp_path / "data", rows, {"graded_by": "tiny", "policy": {}})
    scoring = ScoringOptions(mastery=tmp_path / "data", device="cpu")
    with pytest.raises(MasteryDataError, match="no question in dev"):
        choose_level(of_pair(pair, "5%", out=tmp_path / "out"), scoring)
    assert not (tmp_path / "out").exists()
