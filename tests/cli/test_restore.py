"""`sftknow restore` from the command line: what it writes, what it says, what it refuses before anything is written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftknow.artifacts.changes import read_change
from sftknow.cli.main import main
from tests.parameters.checkpoint_pairs import read_checkpoint


@pytest.fixture(scope="module")
def tuned_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with half of its parameters moved."""
    folder = tmp_path_factory.mktemp("tuned") / "tuned"
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.1 * (torch.rand_like(parameter) < 0.5))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["restore", *map(str, arguments)]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("sftknow: ")
    return last


def test_levels_plan_and_patch_agree(
    tiny_model: Path, tuned_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = (str(tiny_model), str(tuned_model))
    assert main(["restore", *pair, "--top", "5%, 40%", "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["40pct", "5pct"]
    said = capsys.readouterr().out
    assert f"restored model: {tmp_path / 'out' / '5pct'}" in said
    manifest = json.loads((tmp_path / "out" / "40pct" / "sftknow.json").read_text())
    assert manifest["restoration"]["level"] == "40%"
    card = (tmp_path / "out" / "40pct" / "README.md").read_text()
    assert "40% of the parameters" in card
    assert main(["changes", *pair, "--levels", "5%,40%", "--out", str(tmp_path / "changes")]) == 0
    plan = str(tmp_path / "changes" / "plan.json")
    assert main(["restore", *pair, "--plan", plan, "--top", "5%", "--out", str(tmp_path / "planned")]) == 0
    wanted = read_checkpoint(tmp_path / "out" / "5pct")
    assert read_checkpoint(tmp_path / "planned") == wanted
    patch = str(tmp_path / "five.safetensors")
    assert main(["restore", *pair, "--top", "5%", "--patch", "--out", patch]) == 0
    assert main(["restore", pair[1], "--apply-patch", patch, "--out", str(tmp_path / "patched")]) == 0
    assert read_checkpoint(tmp_path / "patched") == wanted
    capsys.readouterr()
    assert main(["restore", str(tmp_path / "patched"), "--apply-patch", patch, "--out", str(tmp_path / "back")]) == 0
    assert "taken back" in capsys.readouterr().out
    assert read_checkpoint(tmp_path / "back") == read_checkpoint(tuned_model)
    line = refused(capsys, tuned_model, tiny_model, "--plan", plan, "--out", tmp_path / "swapped")
    assert "is not the checkpoint that the plan was made from" in line
    assert not (tmp_path / "swapped").exists()


def test_layer_sweep(tiny_model: Path, tuned_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, tuned = read_checkpoint(tiny_model), read_checkpoint(tuned_model)
    for spec in ("1", "0-0,1-1"):
        out = tmp_path / spec
        assert main(["restore", str(tiny_model), str(tuned_model), "--layer-sweep", spec, "--out", str(out)]) == 0
        assert sorted(os.listdir(out)) == ["layers-0-0", "layers-1-1"]
        found = read_checkpoint(out / "layers-1-1")
        for name, bits in found.items():
            inside = name.startswith("model.layers.1.") and "norm" not in name
            assert bits == (base if inside else tuned)[name]
    assert "no layer 2" in refused(capsys, tiny_model, tuned_model, "--layer-sweep", "0-2", "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "say what to restore"),
        (("--top", "5"), "cannot read the level '5'"),
        (("--top", "5%,5%"), "asked for twice"),
        (("--top", "5%, "), "cannot read the level ''"),
        (("--top", "5%", "--layer-sweep", "1"), "do not go together"),
        (("--top", "5%", "--apply-patch", "p"), "do not go together"),
        (("--layer-sweep", "0"), "cannot make ranges of 0 layers"),
        (("--top", "5%", "--choose-on", "dev"), "--choose-on does nothing without --mastery"),
        (("--top", "5%", "--mastery", "x"), "--mastery does nothing without --choose-on"),
        (("--top", "5%", "--memory", "lots"), "cannot read the size 'lots'"),
        (("--top", "5%", "--memory", "1MB"), "memory"),
        (("--top", "5%", "--shard-size", "0"), "cannot read the size '0'"),
        (("--plan", "/no/such/plan.json"), "plan.json is missing"),
        (("--top", "5%", "--region", "nowhere"), "unknown region"),
    ],
)
def test_what_is_refused(
    options: tuple[str, ...],
    words: str,
    tiny_model: Path,
    tuned_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert words in refused(capsys, tiny_model, tuned_model, *options, "--out", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_pairs_that_are_refused(
    tiny_model: Path, tuned_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert "are one folder" in refused(capsys, tuned_model, tuned_model, "--top", "5%", "--out", out)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.save_pretrained(tmp_path / "twin")
    for what in (("--top", "5%"), ("--layer-sweep", "1")):
        assert "nothing to restore" in refused(capsys, tiny_model, tmp_path / "twin", *what, "--out", out)
    assert main(["restore", str(tiny_model), str(tuned_model), "--top", "5%", "--out", str(tmp_path / "restored")]) == 0
    capsys.readouterr()
    line = refused(capsys, tmp_path / "restored", tiny_model, "--top", "5%", "--out", out)
    assert "swapped" in line
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    line = refused(capsys, tiny_model, tmp_path / "adapter", "--top", "5%", "--out", out)
    assert "merge it where it was trained" in line
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "model.gguf").write_bytes(b"GGUF")
    assert "GGUF" in refused(capsys, tiny_model, tmp_path / "packed", "--top", "5%", "--out", out)
    assert "give both checkpoints" in refused(capsys, tuned_model, "--top", "5%", "--out", out)
    assert "takes one model" in refused(capsys, tiny_model, tuned_model, "--apply-patch", "p", "--out", out)
    assert "lies within the checkpoint" in refused(
        capsys, tiny_model, tuned_model, "--top", "5%", "--out", tuned_model / "restored"
    )
    assert not out.exists()


def test_rounding_to_another_dtype_is_no_change(
    tiny_model: Path, tuned_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A float32 base that was saved in bfloat16 with nothing trained: both numbers are said, and nothing is written."""
    saved = tmp_path / "saved"
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    model.save_pretrained(saved)
    pair = (str(tiny_model), str(saved))
    assert main(["changes", *pair, "--out", str(tmp_path / "changes")]) == 0
    shown = capsys.readouterr()
    assert "F32 to BF16" in shown.err
    assert "0 (0.00%) changed beyond rounding" in shown.err
    assert ", 0 changed (0.00%)" in shown.out
    for more in (["--top", "5%,20%"], ["--plan", str(tmp_path / "changes" / "plan.json")]):
        assert "nothing to restore" in refused(capsys, *pair, *more, "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists()
    asked = ["changes", *pair, "--compare-in", "stored", "--levels", "5%", "--out", str(tmp_path / "rounding")]
    assert main(asked) == 0
    plan = ["--plan", str(tmp_path / "rounding" / "plan.json")]
    for more in (["--top", "5%", "--compare-in", "stored"], plan, [*plan, "--patch"], ["--layer-sweep", "1"]):
        assert "nothing to restore" in refused(capsys, *pair, *more, "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    trained = tmp_path / "trained"
    AutoModelForCausalLM.from_pretrained(tuned_model, dtype=torch.bfloat16).save_pretrained(trained)
    found = {}
    for way in ("coarser", "stored"):
        asked = ["changes", str(tiny_model), str(trained), "--compare-in", way, "--out", str(tmp_path / way)]
        assert main(asked) == 0
        found[way] = read_change(tmp_path / way)
    assert (
        found["coarser"].changed == found["coarser"].changed_beyond_rounding == found["stored"].changed_beyond_rounding
    )
    assert found["stored"].changed == found["coarser"].changed_as_stored > 1.8 * found["coarser"].changed
    assert f"{found['stored'].changed:,}" in capsys.readouterr().err
    assert main(["restore", str(tiny_model), str(trained), "--top", "100%", "--out", str(tmp_path / "all")]) == 0
    assert f"{found['coarser'].changed:,} parameters set back" in capsys.readouterr().out
