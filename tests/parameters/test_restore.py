from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftknow.errors import CheckpointError
from sftknow.parameters.change import analyse
from sftknow.parameters.restore import restore
from sftknow.records import RestorePlan
from sftknow.storage.checkpoints import CheckpointWriter
from tests.parameters.checkpoint_pairs import read_checkpoint, stored, values_of, write_checkpoint

WEIGHT = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path, RestorePlan]:
    base = {WEIGHT: stored(np.arange(1, 9).reshape(2, 4), "BF16"), NORM: stored([1, 1], "BF16")}
    tuned = {WEIGHT: stored(np.arange(1, 9).reshape(2, 4) + 1, "BF16"), NORM: stored([2, 2], "BF16")}
    folders = write_checkpoint(tmp_path / "base", base), write_checkpoint(tmp_path / "tuned", tuned)
    return *folders, analyse(*folders, ["25%", "50%", "100%"]).plan


def leftovers(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"base", "tuned"}


def test_what_is_written(pair: tuple[Path, Path, RestorePlan], tmp_path: Path) -> None:
    base, tuned, plan = pair
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja", "modeling_own.py", "LICENSE"):
        (tuned / name).write_text(name)
    for name in ("sftknow.json", "loss.json", "README.md", "training_args.bin", "optimizer.pt", ".hidden.json"):
        (tuned / name).write_text("{}")
    (tuned / "additional_chat_templates").mkdir()
    (tuned / "additional_chat_templates" / "tools.jinja").write_text("x")
    (tuned / "checkpoint-10").mkdir()
    (tuned / "checkpoint-10" / "code.py").write_text("x")
    out = tmp_path / "deep" / "out"
    done = restore(base, tuned, plan, "1/4", out, manifest={"mastery_dataset": {"path": "../data"}})
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == {
        "model.safetensors", "config.json", "tokenizer.json", "generation_config.json", "chat_template.jinja",
        "modeling_own.py", "LICENSE", "additional_chat_templates/tools.jinja", "sftknow.json",
    }  # fmt: skip
    written = read_checkpoint(out)
    assert written[WEIGHT] == stored([1, 2, 4, 5, 6, 7, 8, 9], "BF16")[1].tobytes()  # r is largest for 1 and 2
    assert written[NORM] == stored([2, 2], "BF16")[1].tobytes()
    assert (done.checkpoint, done.level, done.restored) == (out, "25%", 2)
    manifest = json.loads((out / "sftknow.json").read_text())
    assert manifest["kind"] == "model"
    assert manifest["mastery_dataset"] == {"path": "../data"}
    assert manifest["restoration"]["selected"] == manifest["restoration"]["restored"] == 2
    assert manifest["restoration"]["base_sha256"] == plan.base_sha256


def test_signed_zeros_are_copied_too(tmp_path: Path) -> None:
    """r = 0 and nothing is counted as restored, but a selected −0 gets the base's bits."""
    base = write_checkpoint(tmp_path / "base", {WEIGHT: stored([0.0, -0.0, 1], "F32")})
    tuned = write_checkpoint(tmp_path / "tuned", {WEIGHT: stored([-0.0, 0.0, 2], "F32")})
    found = analyse(base, tuned, ["2/3", "100%"])
    assert found.change.changed == 1
    done = restore(base, tuned, found.plan, "2/3", tmp_path / "out", manifest={})
    assert done.restored == 1
    assert read_checkpoint(tmp_path / "out")[WEIGHT] == stored([0.0, 0.0, 1], "F32")[1].tobytes()
    restore(base, tuned, found.plan, "100%", tmp_path / "all", manifest={})
    assert read_checkpoint(tmp_path / "all") == read_checkpoint(base)


def test_base_values_are_rounded_to_the_tuned_dtype(tmp_path: Path) -> None:
    values = [1.001, 1.00390625, 0.1, 1e-42]
    base = write_checkpoint(tmp_path / "base", {WEIGHT: stored(values, "F32")})
    for dtype in ("BF16", "F16"):
        tuned = write_checkpoint(tmp_path / dtype, {WEIGHT: stored([7, 7, 7, 7], dtype)})
        plan = analyse(base, tuned, ["100%"]).plan
        restore(base, tuned, plan, "100%", tmp_path / f"{dtype}-out", manifest={})
        assert read_checkpoint(tmp_path / f"{dtype}-out")[WEIGHT] == stored(values, dtype)[1].tobytes()


def test_a_base_value_too_large_for_the_tuned_dtype(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {WEIGHT: stored([1, 1e6], "BF16")})
    tuned = write_checkpoint(tmp_path / "tuned", {WEIGHT: stored([3, 6e4], "F16")})
    plan = analyse(base, tuned, ["50%", "100%"]).plan
    restore(base, tuned, plan, "50%", tmp_path / "half", manifest={})  # that value is not selected
    with pytest.raises(CheckpointError, match="too large for F16"):
        restore(base, tuned, plan, "100%", tmp_path / "out", manifest={})
    assert leftovers(tmp_path) == {"half"}


def test_other_checkpoints_are_refused(pair: tuple[Path, Path, RestorePlan], tmp_path: Path) -> None:
    base, tuned, plan = pair
    one_bit = bytearray((tuned / "model.safetensors").read_bytes())
    one_bit[one_bit.index(stored([2, 3, 4], "BF16")[1].tobytes())] ^= 1
    (tuned / "model.safetensors").write_bytes(one_bit)
    with pytest.raises(CheckpointError, match="tuned is not the checkpoint that the plan was made from"):
        restore(base, tuned, plan, "50%", tmp_path / "out", manifest={})
    with pytest.raises(CheckpointError, match="base is not the checkpoint"):
        restore(base, tuned, dataclasses.replace(plan, base_sha256="0"), "50%", tmp_path / "out", manifest={})
    assert leftovers(tmp_path) == set()


def test_a_damaged_plan_is_noticed(pair: tuple[Path, Path, RestorePlan], tmp_path: Path) -> None:
    base, tuned, plan = pair
    cuts = tuple(dataclasses.replace(cut, ties=cut.ties + 5) for cut in plan.cuts)
    with pytest.raises(CheckpointError, match="damaged"):
        restore(base, tuned, dataclasses.replace(plan, cuts=cuts), "50%", tmp_path / "out", manifest={})
    with pytest.raises(CheckpointError, match="no level 30%, only 25%, 50%, 100%"):
        restore(base, tuned, plan, "30%", tmp_path / "out", manifest={})
    assert leftovers(tmp_path) == set()


def test_outputs_that_are_refused(pair: tuple[Path, Path, RestorePlan], tmp_path: Path) -> None:
    base, tuned, plan = pair
    link = tmp_path / "link"
    link.symlink_to(tuned)
    for out in (base, tuned, link, tuned / "restored", tmp_path):
        with pytest.raises(CheckpointError, match="give another folder"):
            restore(base, tuned, plan, "50%", out, manifest={})
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for out in (foreign, tmp_path / "file"):
        with pytest.raises(CheckpointError, match="no restored model"):
            restore(base, tuned, plan, "50%", out, manifest={})
    (foreign / "sftknow.json").write_text(json.dumps({"sftknow": 1, "kind": "model", "sft": {}}))
    with pytest.raises(CheckpointError, match="no restored model"):  # a fine-tuned model of ours is no output either
        restore(base, tuned, plan, "50%", foreign, manifest={})
    assert (foreign / "thesis.txt").read_text() == "years of work"


def test_an_earlier_output_is_replaced(pair: tuple[Path, Path, RestorePlan], tmp_path: Path) -> None:
    base, tuned, plan = pair
    out = tmp_path / "out"
    out.mkdir()
    restore(base, tuned, plan, "50%", out, manifest={})
    (out / "old.txt").write_text("x")
    restore(base, tuned, plan, "100%", out, manifest={})
    assert not (out / "old.txt").exists()
    assert read_checkpoint(out)[WEIGHT] == read_checkpoint(base)[WEIGHT]


def test_too_little_disk(pair: tuple[Path, Path, RestorePlan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned, plan = pair
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 1_000_000))
    with pytest.raises(CheckpointError, match=r"needs 0\.00 GB.*make room"):
        restore(base, tuned, plan, "50%", tmp_path / "some" / "out", manifest={})
    assert leftovers(tmp_path) == set()


def test_a_disk_that_fills_up_leaves_nothing(
    pair: tuple[Path, Path, RestorePlan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tuned, plan = pair

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CheckpointWriter, "write", full)
    with pytest.raises(CheckpointError, match="No space left"):
        restore(base, tuned, plan, "50%", tmp_path / "out", manifest={})
    assert leftovers(tmp_path) == set()


def test_a_kill_leaves_nothing_that_looks_finished(
    pair: tuple[Path, Path, RestorePlan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tuned, plan = pair
    child = os.fork()
    if not child:
        monkeypatch.setattr(CheckpointWriter, "finish", lambda _: os._exit(9))
        try:
            restore(base, tuned, plan, "50%", tmp_path / "out", manifest={})
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert leftovers(tmp_path) == {".out.partial"}
    restore(base, tuned, plan, "50%", tmp_path / "out", manifest={})
    assert leftovers(tmp_path) == {"out"}


def test_a_real_model(tiny_model: Path, tmp_path: Path) -> None:
    """Saved by transformers in shards, restored, loaded again, with its tokenizer."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    base = tmp_path / "base"
    model.save_pretrained(base)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(1 + 0.05 * torch.randn_like(value))
    tuned = tmp_path / "tuned"
    model.save_pretrained(tuned, max_shard_size="40KB")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tuned)
    assert len(list(tuned.glob("*.safetensors"))) > 1

    found = analyse(base, tuned, ["5%", "100%"])
    inside = [name for name in before if "layers" in name and "norm" not in name]
    assert found.change.elements == sum(before[name].numel() for name in inside)
    assert set(found.change.elements_by_layer) == {"0", "1"}
    assert set(found.change.elements_by_module) == {
        *(f"self_attn.{part}_proj" for part in "qkvo"),
        *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
    }
    restore(base, tuned, found.plan, "100%", tmp_path / "out", manifest={})
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    AutoTokenizer.from_pretrained(tmp_path / "out")
    for name, value in again.state_dict().items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, before[name] if name in inside else model.state_dict()[name])

    done = restore(base, tuned, found.plan, "5%", tmp_path / "five", manifest={})
    five = AutoModelForCausalLM.from_pretrained(tmp_path / "five", dtype="auto").state_dict()
    differing = sum(int((five[name] != model.state_dict()[name]).sum()) for name in inside)
    assert differing == done.restored == found.change.elements // 20


def test_values_of_helper_reads_what_stored_wrote() -> None:
    for dtype in ("BF16", "F16", "F32"):
        np.testing.assert_array_equal(values_of(stored([1.5, -2, 0], dtype)), np.float32([1.5, -2, 0]))
