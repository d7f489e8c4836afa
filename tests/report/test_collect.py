"""Reading run directories, whole, partial and damaged."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from sftknow.errors import RunError
from sftknow.report.collect import collect


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may spoil."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_a_whole_run_lacks_nothing(run: Path) -> None:
    report = collect(run)
    assert report.missing == ()
    assert report.name == "made-up"
    assert sorted(report.cells) == sorted(f"b{b}-n{n}-s{s}" for b in (0, 2) for n in (60, 240) for s in (0, 1))
    assert report.restored_cells == ("b0-n240-s0",)
    assert list(report.restored("b0-n240-s0")) == ["0%", "1%", "5%", "20%", "60%"]
    assert report.graded is not None
    assert report.graded.counts["test"] == dict.fromkeys(range(5), 20)
    assert report.exposed is not None
    assert report.exposed.rate.size == len(report.graded.fact_ids)
    assert report.choice is not None
    assert (report.choice.cell, report.choice.level) == ("b0-n240-s0", "20%")
    assert report.seconds == {"mastery": 12.5}


@pytest.mark.parametrize(
    ("folder", "what"),
    [
        ("evaluation", "the base model's accuracy"),
        ("mastery", "the mastery grading"),
        ("changes", "the change of parameters"),
        ("divergence", "the token divergence"),
        ("models", "the training loss"),
        ("choice.json", "the chosen restoration level"),
        ("provenance.json", "versions, seeds and hashes"),
    ],
)
def test_what_is_absent_is_named(copy: Path, folder: str, what: str) -> None:
    target = copy / folder
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    assert what in {gap.what for gap in collect(copy).missing}


def test_a_cell_not_yet_scored_is_named(copy: Path) -> None:
    shutil.rmtree(copy / "evaluation" / "b2-n60-s1")
    assert "the accuracy of b2-n60-s1" in {gap.what for gap in collect(copy).missing}


def test_folders_still_being_written_are_not_read(copy: Path) -> None:
    shutil.copytree(copy / "evaluation" / "base", copy / "evaluation" / ".b4-n60-s0.partial")
    assert not any(name.startswith(".") for name in collect(copy).models)


def test_numbers_that_json_lacks(copy: Path) -> None:
    scores = copy / "evaluation" / "base" / "scores.json"
    content = json.loads(scores.read_text())
    content["metrics"][0]["stderr"] = None
    scores.write_text(json.dumps(content))
    changes = copy / "changes" / "b0-n60-s0" / "changes.json"
    content = json.loads(changes.read_text())
    content["levels"][0]["concentration"] = None
    changes.write_text(json.dumps(content))
    report = collect(copy)
    first = report.frame[(report.frame["model"] == "base") & report.frame["bucket"].notna()].iloc[0]
    assert math.isnan(first["stderr"])
    assert math.isnan(report.changes["b0-n60-s0"].levels[0].concentration)


@pytest.mark.parametrize(
    "name",
    ["evaluation/base/scores.json", "changes/b0-n60-s0/changes.json", "choice.json", "models/b0-n60-s0/loss.json"],
)
def test_a_damaged_file_is_named(copy: Path, name: str) -> None:
    (copy / name).write_text('{"half')
    with pytest.raises(RunError, match=Path(name).name):
        collect(copy)


def test_a_file_of_another_version_is_named(copy: Path) -> None:
    (copy / "divergence" / "b0-n60-s0" / "divergence.json").write_text('{"mean": 1.0}')
    with pytest.raises(RunError, match=r"divergence\.json lacks a field"):
        collect(copy)


def test_no_run_directory(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not there"):
        collect(tmp_path / "nowhere")
    with pytest.raises(RunError, match="holds nothing of a run"):
        collect(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        [3.0, 2.0],
        [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}],
        {"step": [1, 2], "loss": [3.0, 2.0]},
        [[1, 3.0], [2, 2.0]],
    ],
)
def test_forms_of_loss_curves(copy: Path, content: object) -> None:
    (copy / "models" / "b0-n60-s0" / "loss.json").write_text(json.dumps(content))
    assert collect(copy).losses["b0-n60-s0"] == ((1.0, 3.0), (2.0, 2.0))


def test_all_counts_the_facts_that_the_model_says(copy: Path) -> None:
    for kind in ("evaluation", "models"):
        (copy / kind / "b2-n240-s0").rename(copy / kind / "b2-nall-s0")
    manifest = copy / "models" / "b2-nall-s0" / "sftknow.json"
    content = json.loads(manifest.read_text())
    content["sft"]["size"] = 57
    manifest.write_text(json.dumps(content))
    cell = collect(copy).cells["b2-nall-s0"]
    assert (cell.size, cell.all, cell.bucket) == (57, True, 2)
    manifest.unlink()
    assert collect(copy).cells["b2-nall-s0"].size == 60  # the bucket's training facts
