"""The benchmark for GPUs, tried small on the CPU; counting pairs on a device against the compiled kernels."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sftknow.parameters.change import analyse
from tests.benchmarks import gpu
from tests.benchmarks.device_ranking import cuts_on

ROOT = Path(__file__).resolve().parents[2]
LEVELS = ("1%", "5%", "20%", "60%", "100%")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_pairs_counted_on_a_device_give_the_cuts_of_the_kernels(tmp_path: Path, device: str) -> None:
    """Ties, zeros that move, signs that change, steps beyond the table, and most values unchanged."""
    generator = torch.Generator().manual_seed(0)
    base = {f"model.layers.{i}.mlp.up_proj.weight": torch.randn(64, 96, generator=generator) for i in range(3)}
    base = {name: (0.02 * value).bfloat16() for name, value in base.items()}
    tuned = {name: value.clone() for name, value in base.items()}
    first = tuned["model.layers.0.mlp.up_proj.weight"].view(-1)
    before = base["model.layers.0.mlp.up_proj.weight"].view(-1)
    before[:40], first[:20], first[20:40] = 0.0, -0.0, 1e-3
    first[40:60] *= -1
    first[60:80] *= 1000
    for value in tuned.values():
        moved = torch.rand(value.shape, generator=generator) < 0.4
        value += torch.where(moved, 1e-4 * torch.randn(value.shape, generator=generator), 0).bfloat16()
    for name, weights in (("base", base), ("tuned", tuned)):
        (tmp_path / name).mkdir()
        save_file(weights, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
        (tmp_path / name / "config.json").write_text("{}")
    plan = analyse(tmp_path / "base", tmp_path / "tuned", LEVELS).plan
    found = cuts_on([(base[name], tuned[name]) for name in sorted(base)], LEVELS, device)
    assert [tuple(cut) for cut in found] == [(c.level, c.selected, c.threshold_bits, c.ties) for c in plan.cuts]
    broken = torch.full((4,), float("nan")).bfloat16()
    with pytest.raises(ValueError, match="NaN or infinite"):
        cuts_on([(broken, broken)], LEVELS, device)


def test_ranking_and_sweep_work_on_the_cpu(tmp_path: Path) -> None:
    """In this process; what each keeps is checked against something else within it."""
    asked, figures = argparse.Namespace(device="cpu", small=True), {}
    for part in (gpu.models, gpu.ranking, gpu.sweep):
        part(tmp_path, asked, figures.__setitem__)
    assert figures["the same cuts"] is True
    assert figures["each level bit by bit that of its file"] is True
    assert all(value >= 0 for value in figures.values())
    rows = gpu.lines("ranking", {"figures": figures, "failed": None})
    assert ("ranking", "the same cuts", "yes") in rows


@pytest.mark.slow
def test_all_parts_work_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--dry-run", "--json", str(tmp_path / "gpu.json")]) == 0
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert set(report["parts"]) == set(gpu.PARTS)
    assert all(part["failed"] is None for part in report["parts"].values())
    said = capsys.readouterr().out
    assert "no figures" in said
    assert "| ranking | the same cuts | yes |" in said
    assert "| run | said |" in said
    assert "samples a second" in said


def test_a_part_that_fails_is_named_and_takes_no_other_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "LIMITS", dict.fromkeys(gpu.PARTS, 0.001))
    assert gpu.main(["--dry-run", "--parts", "models,run", "--json", str(tmp_path / "gpu.json")]) == 1
    said = capsys.readouterr().out
    assert "| models | not done | not done within 0.02 s |" in said
    assert "| run | not done | not done within 0.02 s |" in said


def test_parts_of_several_calls_are_joined_and_of_several_machines_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    at = {"card": "A", "cores": 2, "versions": {"torch": "2"}, "date": "2026-01-01"}
    done = {"seconds": 1.0, "failed": None}
    first = {"machine": at, "small": False, "parts": {"sweep": {**done, "figures": {"x": 1.0}}}}
    later = {"machine": {**at, "date": "2026-01-02"}, "small": False, "parts": {"tests": {**done, "figures": {}}}}
    assert list(gpu.joined([first, later])["parts"]) == ["tests", "sweep"]
    assert gpu.joined([first, later])["machine"]["date"] == "2026-01-02"
    with pytest.raises(ValueError, match="different machines"):
        gpu.joined([first, {**later, "machine": {**at, "card": "B"}}])
    with pytest.raises(ValueError, match="no figures"):
        gpu.joined([{**first, "small": True}])


def test_together_the_parts_end_within_eight_minutes() -> None:
    assert sum(gpu.LIMITS.values()) < 8 * 60


def test_figures_of_a_cpu_never_reach_the_docs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--dry-run", "--docs"])
    assert "figures of a GPU only" in capsys.readouterr().err
    text = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    assert "<!-- from gpu -->\n" in text
