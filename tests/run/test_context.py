"""A context too short for what is asked is said before anything is asked; so is a tokenizer without its files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sftknow.cli.main import main
from sftknow.errors import ModelError
from sftknow.models.loading import load_tokenizer
from sftknow.records import ModelRef


@pytest.mark.parametrize("command", ["grade", "check", "divergence"])
def test_a_short_context(
    command: str, tiny_model: Path, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = tmp_path / "short"
    shutil.copytree(tiny_model, short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 12}))
    arguments = {
        "grade": [str(short), "--facts", "quick", "--limit", "20"],
        "check": [str(short), str(short)],
        "divergence": [str(short), str(short), "--mastery", str(tiny_dataset), "--any-base"],
    }[command]
    assert main([command, *arguments, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"{short} takes 12 tokens, which" in said
    assert "the longest has " in said
    assert "longer context" in said
    assert ("--max-new-tokens" in said) == (command != "divergence")


@pytest.mark.parametrize(
    "kind", ["TokenizersBackend", "LlamaTokenizer", "GPT2Tokenizer", "Qwen2Tokenizer", "T5Tokenizer"]
)
def test_a_tokenizer_without_its_files(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    (base / "tokenizer.json").unlink()
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": kind}))
    with pytest.raises(ModelError) as said:
        load_tokenizer(ModelRef(path=str(base)))
    message = str(said.value)
    assert message.startswith(f"{base} has ")
    assert "save the tokenizer that the model was trained with" in message
    assert "\n" not in message
    if kind == "TokenizersBackend":  # what transformers says, to its end
        assert "(1)" in message
        assert "sentencepiece" in message
