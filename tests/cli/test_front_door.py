"""What `check`, `repair` and `select` cannot use: one line that names it and the way out, and nothing is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from sftknow.artifacts.manifests import write_manifest
from sftknow.cli.main import main
from tests.checkpoints.test_adapters import adapter
from tests.tiny import tiny_llama, tiny_tokenizer

QUANTISED = "is quantised (config.json says so); its values are codes, not parameters: give the checkpoint in bf16"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a model made from it, facts, data, and models that cannot be used. Read only."""
    work = tmp_path_factory.mktemp("front-door")
    tokenizer = tiny_tokenizer()
    base = tiny_llama(work / "base", tokenizer)
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * weight.std() * torch.randn(weight.shape)
    model.save_pretrained(work / "tuned")
    tokenizer.save_pretrained(work / "tuned")
    model.resize_token_embeddings(len(tokenizer) + 64, mean_resizing=False)
    model.save_pretrained(work / "vocabulary")
    tokenizer.save_pretrained(work / "vocabulary")
    tiny_llama(work / "unrelated", tokenizer, seed=9)
    adapter(base, work / "orphan")
    settings = json.loads((work / "orphan" / "adapter_config.json").read_text())
    shutil.copytree(work / "orphan", work / "homeless")
    for name, there in (("orphan", "org/gone"), ("homeless", None)):
        settings["base_model_name_or_path"] = there
        (work / name / "adapter_config.json").write_text(json.dumps(settings))
    gguf = work / "gguf"
    gguf.mkdir()
    (gguf / "model-Q4_K_M.gguf").write_bytes(b"GGUF" + b"\0" * 100)

    def damaged(name: str, damage: Callable[[Path], object]) -> None:
        shutil.copytree(work / "tuned", work / name)
        damage(work / name)

    for method in ("bitsandbytes", "gptq", "awq"):
        damaged(method, lambda folder, method=method: _quantised(folder, method))  # type: ignore[misc]
    damaged("missing", lambda folder: (folder / "model.safetensors").unlink())
    damaged("cut", _cut)
    damaged("pointer", lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com\n"))
    damaged("shard", _one_shard)
    rows = [{"subject": f"s{i}", "relation": "P36", "object": f"object number {i}"} for i in range(60)]
    (work / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = [{"prompt": f"n{i}?", "completion": f"w{i}"} for i in range(8)]
    (work / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    return work


def _quantised(folder: Path, method: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": method}}))


def _cut(folder: Path) -> None:
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[: len(raw) // 2])


def _one_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    weights = {
        "model.embed_tokens.weight": "model-00001-of-00002.safetensors",
        "lm_head.weight": "model-00002-of-00002.safetensors",
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))


@pytest.fixture
def here(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SFTKNOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(models)
    return models


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def refused(capsys: pytest.CaptureFixture[str], here: Path, *words: str) -> str:
    """The one line of a command that is refused, which leaves everything as it was."""
    before = files(here)
    capsys.readouterr()
    assert main(list(words)) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("sftknow: ")
    assert files(here) == before
    return line


FACTS = ("--facts", "facts.jsonl", "--templates", "2", "--samples", "1", "--max-new-tokens", "3")
UNUSABLE = {
    "gguf": "is a GGUF file, not safetensors; give the checkpoint that it was made from, or write one",
    "gguf/model-Q4_K_M.gguf": "is a GGUF file, not safetensors",
    "orphan": "names org/gone as its base (org/gone is not in the cache",
    "homeless": "names nothing as its base; write the base's place into base_model_name_or_path of",
    "missing": "has no safetensors weights",
    "cut": "ends before model.embed_tokens.weight does; copy or download it again",
    "pointer": "is not a whole safetensors file; copy or download it again",
    "data.jsonl": "is a file, and a model is a folder; give",
    "nothing": "there is no model at nothing",
}
PAIRS = {
    **dict.fromkeys(("bitsandbytes", "gptq", "awq"), QUANTISED),
    "shard": "model-00002-of-00002.safetensors is missing, though the checkpoint needs it",
    "unrelated": "unrelated was not fine-tuned from base (their weights have a cosine of",
}


@pytest.mark.slow
@pytest.mark.parametrize("command", ["check", "repair"])
def test_pairs_that_cannot_be_used(command: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for tuned, words in (UNUSABLE | PAIRS).items():
        line = refused(capsys, here, command, "base", tuned, *FACTS)
        assert words in line, (tuned, line)
        assert ("--any-pair" in line) == (command == "check" and tuned == "unrelated")
    for base in ("gguf", "missing", "pointer"):
        assert UNUSABLE[base] in refused(capsys, here, command, base, "tuned", *FACTS)
    assert "is a LoRA adapter, and a whole model is needed here" in refused(
        capsys, here, command, "orphan", "tuned", *FACTS
    )


@pytest.mark.slow
def test_a_vocabulary_that_grew(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`repair` compares parameter by parameter and names the option; `check` asks both, whatever their tokens."""
    assert "--common-rows" in refused(capsys, here, "repair", "base", "vocabulary", *FACTS)
    assert main(["check", "base", "vocabulary", *FACTS]) == 3


@pytest.mark.parametrize("command", ["check", "repair"])
def test_a_swapped_pair(command: str, here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tuned = tmp_path / "made"
    shutil.copytree(here / "tuned", tuned)
    write_manifest(tuned, "model", {"base": {"path": str(here / "base")}, "sft": {"seed": 0}})
    line = refused(capsys, here, command, str(tuned), str(here / "base"), *FACTS)
    assert "BASE and TUNED are swapped; give them in that order" in line


@pytest.mark.slow
@pytest.mark.parametrize("command", ["check", "repair"])
def test_a_base_that_knows_none_of_the_facts(command: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "base", "tuned", *FACTS]) == 3
    assert "the base completes none of these facts, so nothing can be lost; ask facts that it knows" in (
        capsys.readouterr().out
    )


def test_models_that_select_cannot_ask(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model, words in UNUSABLE.items():
        line = refused(capsys, here, "select", "data.jsonl", "--model", model, "--samples", "1")
        assert words in line, (model, line)


def test_places_for_what_is_written(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    for command in (["check", "base", "tuned", *FACTS], ["repair", "base", "tuned", *FACTS]):
        for place in ("base", "base/x", "tuned"):
            line = refused(capsys, here, *command, "--out", place)
            assert "lies within" in line
            assert "give another folder" in line
    asked = ["select", "data.jsonl", "--model", "base", "--samples", "1"]
    assert "lies within" in refused(capsys, here, *asked, "--out", "base/x")
    assert "is there already and is no selection" in refused(capsys, here, *asked, "--out", str(mine))
    assert "no restored model" in refused(capsys, here, "repair", "base", "tuned", *FACTS, "--out", str(mine))
    for more in (["--patch"], ["--patch", "--out", "base"], ["--adapter", "--out", str(tmp_path / "a")]):
        refused(capsys, here, "repair", "base", "tuned", *FACTS, *more)
    assert (mine / "notes.txt").read_text() == "mine"
