"""What a partial run lacks is named: cells that were never trained, levels never scored, parts that were asked for."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from sftknow.report.advice import advice
from sftknow.report.collect import collect
from sftknow.report.findings import findings
from sftknow.report.gaps import asked_cells


def missing(run: Path) -> dict[str, str]:
    return {gap.what: gap.where for gap in collect(run).missing}


def partial(run: Path, folder: Path, *drop: str) -> Path:
    shutil.copytree(run, folder)
    for pattern in drop:
        for path in list(folder.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


RECIPE = {
    "grid": {"buckets": [0, 2], "sizes": [60, 240], "seeds": [0, 1], "mixed": False, "lora": False},
    "parameters": {"levels": ["1%", "5%", "20%", "60%"]},
    "restore": {"cells": "best", "levels": None, "layers": 0},
}


def test_the_cells_that_a_recipe_asks_for() -> None:
    grid = {"buckets": [4], "sizes": [60, "all"], "seeds": [3], "mixed": True, "lora": True}
    assert asked_cells({"grid": grid}) == ["b4-n60-s3", "b4-nall-s3", "mixed-n60-s3", "mixed-nall-s3", "lora-n60-s3",
                                           "lora-nall-s3"]  # fmt: skip
    assert asked_cells({"grid": {**grid, "mixed_sizes": [60]}}) == [
        "b4-n60-s3", "b4-nall-s3", "mixed-n60-s3", "lora-n60-s3",
    ]  # fmt: skip
    assert asked_cells({"grid": {"sizes": [60]}}) == asked_cells(None) == []


def test_a_run_that_was_cut_off(run: Path, tmp_path: Path) -> None:
    lost = ("*/b2-n240-s1*", "evaluation/*@60pct", "changes/b0-n60-s1", "evaluation/b0-n60-s1/scores.json")
    cut = partial(run, tmp_path / "cut", *lost, "divergence/b2-n60-s0/divergence.json", "choice.json")
    (cut / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    assert missing(cut) == {
        "the chosen restoration level": "choice.json",
        "the training of b2-n240-s1": "models/<cell>/",
        "the accuracy of b0-n60-s1": "evaluation/<cell>/scores.json",
        "the token divergence of b2-n60-s0": "divergence/<cell>/divergence.json",
        "the change of parameters of b0-n60-s1": "changes/<cell>/changes.json",
        "the accuracy after restoring b0-n240-s0 (60%)": "evaluation/<cell>@<level>/scores.json",
    }
    report = collect(cut)
    level = next(line for line in advice(report, findings(report)) if line.startswith("Which level"))
    assert "no level was chosen yet" in level


def test_a_whole_run_lacks_nothing(run: Path, tmp_path: Path) -> None:
    whole = partial(run, tmp_path / "whole")
    (whole / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    assert missing(whole) == {}


def test_what_was_asked_for_beside_the_grid(run: Path, tmp_path: Path) -> None:
    asked = partial(run, tmp_path / "asked")
    more = {"restore": {**RECIPE["restore"], "layers": 2}, "general": {"tasks": ["gsm8k"]}}
    (asked / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, **more}))
    assert set(missing(asked)) == {"the accuracy after restoring whole layers of b0-n240-s0", "other tasks: gsm8k"}
    unasked = " ".join(gap.what for gap in collect(asked).unasked)
    assert "Table 5" not in unasked
    assert "Table 11" not in unasked
