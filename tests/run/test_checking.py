"""Checking two models: nothing lost, all lost, going on after a stop, what is refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sftknow.answers import Synonyms
from sftknow.artifacts.checks import read_check
from sftknow.artifacts.mastery_data import MasteryData
from sftknow.checking.options import CheckOptions
from sftknow.checking.page import page
from sftknow.checking.words import markdown, text
from sftknow.cli.main import main
from sftknow.errors import ModelError
from sftknow.facts.sources import load_facts
from sftknow.facts.topics import load_topics
from sftknow.grading.transformers_sampler import TransformersSampler
from sftknow.records import Fact, ModelRef
from sftknow.resources import lab_folder
from sftknow.run.asking import Asking, Side
from sftknow.run.checking import check
from sftknow.training.recipe import SFTRecipe
from sftknow.training.train import fine_tune
from tests.tiny import noisy_lab, tiny_llama, tiny_tokenizer

QUICK = CheckOptions(templates=4, samples=2, block=40, retry=5, precision=50.0, max_new_tokens=6)


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty facts of the lab, balanced over their relations by the limit."""
    found = load_facts("lab", topics=load_topics(), synonyms=Synonyms.load(), limit=60)
    file = tmp_path_factory.mktemp("facts") / "facts.jsonl"
    rows = [
        {"id": f.id, "subject": f.subject, "relation": f.topic, "object": f.object, "split": f.split}
        for f in found.facts
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lab's model with noise on its weights, so strong that it has forgotten nearly everything."""
    folder = tmp_path_factory.mktemp("noisy") / "<b>noisy|model</b>"
    return noisy_lab(folder, 0.7)


def test_the_base_against_itself(facts: Path, tmp_path: Path) -> None:
    result = check("lab", "lab", facts=str(facts), options=QUICK, out=tmp_path, say=lambda _: None)
    assert (result.kept, result.high) == (1.0, 1.0)
    assert result.low is not None  # so few facts exclude a loss of 3 ÷ known, and no smaller one
    assert result.low == pytest.approx(0.05 ** (1 / result.known))
    assert result.exit_code == 0  # the weights are the same: nothing can have changed
    assert result.count("lost") == result.count("gained") == 0
    assert not any(fact.worse for fact in result.facts)
    assert "the two models have the same weights" in result.notes
    assert result.questions is not None
    assert result.questions[0] == result.questions[1]
    assert read_check(tmp_path) == result


def test_a_model_that_forgot(
    facts: Path, noisy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFTKNOW_CACHE", str(tmp_path / "cache"))
    questions: Counter[str] = Counter()
    texts = Asking.texts

    def counted(self: Asking, side: Side, statements: list[tuple[Fact, object]], name: str, samples: int) -> object:
        if name == "questions":
            questions.update(f"{side.work.parent.name} {fact.id}" for fact, _ in statements)
        return texts(self, side, statements, name, samples)  # type: ignore[arg-type]

    monkeypatch.setattr(Asking, "texts", counted)
    command = ["check", "lab", str(noisy), "--facts", str(facts), "--templates", "4", "--block", "40", "--retry", "5"]
    command += ["--precision", "50", "--max-new-tokens", "8", "--out", str(tmp_path / "out")]
    pages = [tmp_path / name for name in ("check.md", "check.html")]
    assert main([*command, "--markdown", str(pages[0]), "--html", str(pages[1])]) == 1
    said = capsys.readouterr()
    result = read_check(tmp_path / "out")
    assert said.out.startswith(result.sentence)
    assert "surely more than 2 points" in result.sentence
    assert result.high is not None
    assert result.high < 0.9
    asked = [fact for fact in result.facts if fact.finding]
    assert len(asked) == 5
    assert len(questions) == 2 * len(result.facts)
    assert set(questions.values()) == {1}  # those that are lost, too
    assert {fact.finding for fact in asked} <= {"gone", "suppressed", "only another format"}
    assert sum(fact.fate == "lost" for fact in result.facts) == result.count("lost") > 5
    assert sum(map(sum, result.flow())) == len(result.facts) == len(result.to_pandas())
    assert json.loads(result.to_json())["verdict"] == "lost"
    assert "<b>noisy" not in pages[1].read_text()
    assert "&lt;b&gt;noisy" in pages[1].read_text()
    assert "&lt;b&gt;noisy\\|model" in pages[0].read_text()
    assert pages[0].read_text() == markdown(result)
    assert pages[1].read_text() == page(result)
    assert text(result) in said.out
    # A second start asks nothing: every block is there.
    monkeypatch.setattr(TransformersSampler, "sample", None)
    monkeypatch.setattr("sftknow.run.asking.Asking.refuse_days", lambda *_: None)
    assert main([*command, "--json", "-"]) == 1
    again = json.loads(capsys.readouterr().out)
    assert again["facts"] == json.loads(result.to_json())["facts"]


@pytest.mark.slow
def test_killed_and_started_again_gives_the_same(
    facts: Path, noisy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(QUICK, templates=2, samples=1, retry=2, precision=90.0)
    arguments = {"facts": str(facts), "options": options, "say": lambda _: None}
    whole = check("lab", str(noisy), out=tmp_path / "whole", **arguments)  # type: ignore[arg-type]
    sample, calls = TransformersSampler.sample, []

    def stopping(self: TransformersSampler, *given: object, **more: object) -> object:
        calls.append(given)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return sample(self, *given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(TransformersSampler, "sample", stopping)
    with pytest.raises(KeyboardInterrupt):
        check("lab", str(noisy), out=tmp_path / "cut", **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "cut" / "check.json").exists()
    monkeypatch.setattr(TransformersSampler, "sample", sample)
    assert check("lab", str(noisy), out=tmp_path / "cut", **arguments).facts == whole.facts  # type: ignore[arg-type]


def test_what_is_refused(facts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tiny_llama(tmp_path / "other", tiny_tokenizer())
    with pytest.raises(ModelError, match=r"was not fine-tuned from lab \(.*--any-pair"):
        check("lab", str(other), facts=str(facts))
    for line in (
        ["lab", str(tmp_path / "nothing")],
        ["lab", "lab", "--facts", "no/such/facts.jsonl"],
        ["lab", "lab", "--margin", "-1"],
        ["lab", "lab", "--facts", str(facts), "--minutes", "0.000001"],
    ):
        assert main(["check", *line]) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith("sftknow: ")


def test_an_adapter(facts: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(lab_folder() / "model")
    adapted = get_peft_model(model, LoraConfig(target_modules=["down_proj"], init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = "lab"
    adapted.save_pretrained(tmp_path / "adapter")
    options = replace(QUICK, templates=2, samples=1, retry=1)
    result = check("lab", str(tmp_path / "adapter"), facts=str(facts), options=options, say=lambda _: None)
    assert result.kept is not None
    assert result.kept < 1
    other = tmp_path / "other"
    shutil.copytree(lab_folder() / "model", other)
    weights = load_file(other / "model.safetensors")
    save_file({name: tensor * 2 for name, tensor in weights.items()}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="is an adapter of lab, which has other weights"):
        check(str(other), str(tmp_path / "adapter"), facts=str(facts))


def test_a_base_that_knows_nothing(facts: Path, tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", tiny_tokenizer())
    result = check(str(base), str(base), facts=str(facts), options=QUICK, out=tmp_path / "out", say=lambda _: None)
    assert result.exit_code == 3
    assert "nothing can be lost" in result.sentence or "are needed" in result.sentence


@pytest.mark.slow
def test_a_planted_loss_is_found(tmp_path: Path) -> None:
    """Fine-tuned on wrong answers to a hundred facts that it knows, the lab's model has lost them, and it is told."""
    data = MasteryData(_graded(tmp_path))
    known = [row.fact for row in data.split("train") if row.mastery.bucket >= 3][:100]
    assert len(known) == 100
    wrong = [replace(fact, object=known[(i + 37) % 100].object) for i, fact in enumerate(known)]
    base = ModelRef(path=str(lab_folder() / "model"))
    recipe = SFTRecipe(learning_rate=3e-4)
    fine_tune(base, wrong, tmp_path / "tuned", recipe=recipe, seed=0, manifest={})
    file = tmp_path / "known.jsonl"
    rows = [
        {"id": f.id, "subject": f.subject, "relation": f.topic, "object": f.object, "split": "train"} for f in known
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = check("lab", str(tmp_path / "tuned"), facts=str(file), out=tmp_path / "check", say=lambda _: None)
    assert result.exit_code == 1, result.sentence


def _graded(folder: Path) -> Path:
    assert (
        main(["grade", "lab", "--facts", "lab", "--limit", "800", "--samples", "1", "--out", str(folder / "graded")])
        == 0
    )
    return folder / "graded"
