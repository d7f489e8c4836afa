"""What a GPU must not change. The same tests run on the CPU, so that they are known to work before a GPU sees them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sftknow.artifacts.files import read_json
from sftknow.cli.main import main
from sftknow.parameters.change import analyse
from sftknow.parameters.in_memory import ModelLevels
from sftknow.parameters.restore import restore_levels
from tests.tiny import tiny_llama, tiny_tokenizer

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
def test_a_loaded_model_reaches_each_level_of_the_files(tmp_path: Path, device: str) -> None:
    base = tiny_llama(tmp_path / "base", tiny_tokenizer(), dtype="bfloat16")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.01 * weight.abs() * torch.randn_like(weight)
    model.save_pretrained(tmp_path / "tuned")
    plan = analyse(base, tmp_path / "tuned", ["5%", "40%"]).plan
    outputs = {level: tmp_path / level.rstrip("%") for level in ("5%", "40%")}
    restore_levels(base, tmp_path / "tuned", plan, outputs)
    levels = ModelLevels(model.to(device), base, tmp_path / "tuned", plan)
    for level, folder in (*outputs.items(), ("5%", outputs["5%"])):
        assert levels.to(level) > 0
        stored = load_file(folder / "model.safetensors")
        for name, weight in model.named_parameters():
            assert torch.equal(weight.detach().cpu(), stored[name]), f"{name} at {level}"


@pytest.mark.parametrize("device", DEVICES)
def test_commands_work_on_the_device(tmp_path: Path, tiny_model: Path, tiny_dataset: Path, device: str) -> None:
    """Fine-tuning takes a GPU where there is one; scores are those of the CPU."""
    data = ["--mastery", str(tiny_dataset)]
    tuned = tmp_path / "tuned"
    made = ["--bucket", "2", "--size", "4", "--set", "learning_rate=1e-3", "--out", str(tuned)]
    assert main(["sft", "--model", str(tiny_model), *data, *made]) == 0
    scores = {}
    for where in ("cpu", device):
        out = tmp_path / f"scores-{where}"
        asked = ["--splits", "test", "--device", where, "--out", str(out)]
        assert main(["evaluate", str(tuned), *data, *asked]) == 0
        rows = read_json(out / "scores.json")["metrics"]
        scores[where] = {(row["task"], row["metric"]): row["value"] for row in rows}
    assert scores[device] == pytest.approx(scores["cpu"], abs=0.05)
