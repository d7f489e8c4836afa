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
