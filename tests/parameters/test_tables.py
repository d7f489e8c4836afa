from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from sftknow.errors import CheckpointError
from sftknow.parameters.change import Analysis, analyse
from sftknow.parameters.restore import restore
from sftknow.parameters.tables import read_analysis, read_plan, write_analysis
from tests.parameters.checkpoint_pairs import read_checkpoint, stored, write_checkpoint

Q = "model.layers.0.self_attn.q_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


def analysis(folder: Path, epsilon: float = 1e-8) -> Analysis:
    base = {Q: stored([1, 2, 0, 4], "F16"), EMBEDDING: stored([1, 2], "F16")}
    tuned = {Q: stored([1, 3, 1, 5], "F16"), EMBEDDING: stored([1, 1], "F16")}
    write_checkpoint(folder / "base", base)
    write_checkpoint(folder / "tuned", tuned)
    return analyse(folder / "base", folder / "tuned", ["1/3", "50%"], region="all", epsilon=epsilon)


def test_there_and_back(tmp_path: Path) -> None:
    found = analysis(tmp_path)
    write_analysis(tmp_path / "changes", found)
    assert read_analysis(tmp_path / "changes") == found
    rows = pq.read_table(tmp_path / "changes" / "tensors.parquet").to_pylist()
    assert [(row["name"], row["layer"], row["selected 50%"]) for row in rows] == [(EMBEDDING, None, 1), (Q, 0, 2)]
    out = tmp_path / "out"
    restore(
        tmp_path / "base", tmp_path / "tuned", read_plan(tmp_path / "changes" / "plan.json"), "50%", out, manifest={}
    )
    assert read_checkpoint(out)[Q] == stored([1, 2, 0, 5], "F16")[1].tobytes()


def test_nan_and_infinity(tmp_path: Path) -> None:
    found = analysis(tmp_path, epsilon=0)
    write_analysis(tmp_path / "changes", found)
    again = read_analysis(tmp_path / "changes")
    assert repr(again) == repr(found)  # NaN differs from itself
    assert np.isnan(again.change.levels[0].concentration)
    text = json.loads(
        (tmp_path / "changes" / "changes.json").read_text(), parse_constant=lambda name: pytest.fail(name)
    )
    assert text["levels"][0]["concentration"] is None
    assert text["histogram"][-1] == ["inf", 1]


@pytest.mark.parametrize("name", ["changes.json", "plan.json", "tensors.parquet"])
def test_damage_is_named(tmp_path: Path, name: str) -> None:
    write_analysis(tmp_path / "changes", analysis(tmp_path))
    for text in ("[]", "{}", "{", "not"):
        (tmp_path / "changes" / name).write_text(text)
        with pytest.raises(CheckpointError, match=name):
            read_analysis(tmp_path / "changes")
    (tmp_path / "changes" / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        read_analysis(tmp_path / "changes")


def test_report_of_a_pair(tmp_path: Path) -> None:
    """Tables say what the records say, in three formats; figures are there; ranges of layers add up."""
    import csv

    from sftknow.run.change_report import range_changes, write_change_report

    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(4)]
    write_checkpoint(tmp_path / "base", {name: stored([1, 2, 4, 8], "F32") for name in names})
    write_checkpoint(tmp_path / "tuned", {name: stored([1, 2, 4, 8 + i], "F32") for i, name in enumerate(names)})
    found = analyse(tmp_path / "base", tmp_path / "tuned", ["1/16", "50%"])
    ranges = range_changes(found, "2")
    assert [entry.layers for entry in ranges] == ["0-1", "2-3"]
    assert [entry.changed for entry in ranges] == [1, 2]
    assert [entry.share for entry in ranges] == pytest.approx([1 / 6, 5 / 6])
    assert [entry.share for entry in range_changes(found, "0,1-3")] == pytest.approx([0, 1])
    with pytest.raises(CheckpointError, match="no layer 4"):
        range_changes(found, "2-5")
    write_change_report(tmp_path / "out", found, ranges)
    assert read_analysis(tmp_path / "out") == found
    with (tmp_path / "out" / "tables" / "modules.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["level"], row["selected"], row["enrichment"]) for row in rows] == [
        ("1/16", "1", "1.0"),
        ("50%", "8", "1.0"),
    ]
    layers = pq.read_table(tmp_path / "out" / "tables" / "layers.parquet").to_pylist()
    assert [row["selected"] for row in layers if row["level"] == "1/16"] == [0, 0, 0, 1]
    assert json.loads((tmp_path / "out" / "tables" / "layer_ranges.json").read_text())[1]["elements"] == 8
    pictures = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert {"concentration.svg", "histogram.png", "figure-d-layer.svg", "figure-d-module.png"} <= pictures
