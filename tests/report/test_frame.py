"""The frame of scores says what the artifacts say, one line for each score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import sftknow
from sftknow.errors import RunError
from sftknow.report.frame import COLUMNS


@pytest.fixture(scope="module")
def frame(rich: Path) -> pd.DataFrame:
    return sftknow.results(rich)


def test_every_column_is_explained_and_every_line_is_one_score(frame: pd.DataFrame) -> None:
    assert list(frame.columns) == list(COLUMNS)
    assert all(name in (sftknow.results.__doc__ or "") for name in COLUMNS)
    assert not frame.duplicated(["model", "task", "split", "bucket", "topic", "metric"]).any()
    assert frame[["model", "source", "task", "metric", "value"]].notna().all().all()
    assert set(frame["source"]) == {"base", "baseline", "b0", "b2", "b4", "mixed", "lora", "xsum"}


def test_accuracies_are_those_of_the_files(rich: Path, frame: pd.DataFrame) -> None:
    mine = frame[frame["task"] == "cbqa_mastery"].set_index("model")
    for folder in (rich / "evaluation").iterdir():
        lines = mine.loc[[folder.name]].reset_index()
        found = {
            f"cbqa_mastery_{line.split}" + ("" if pd.isna(line.bucket) else f"_bucket_{line.bucket}"): line
            for line in lines[lines["metric"] == "acc"].itertuples()
        }
        written = {
            m["task"]: m for m in json.loads((folder / "scores.json").read_text())["metrics"] if m["metric"] == "acc"
        }
        assert set(found) == set(written)
        for task, line in found.items():
            assert (line.value, line.stderr, line.count) == tuple(
                written[task][k] for k in ("value", "stderr", "count")
            )


def test_what_a_model_is_comes_with_its_scores(frame: pd.DataFrame) -> None:
    def about(model: str) -> dict[str, object]:
        line = frame[frame["model"] == model].iloc[0]
        names = ("cell", "source", "trained_bucket", "size", "seed", "level", "layers")
        return {name: line[name] for name in names if not pd.isna(line[name])}

    cell = {"cell": "b0-n240-s0", "source": "b0", "trained_bucket": 0, "size": 240, "seed": 0}
    assert about("base") == {"source": "base"}
    assert about("instruct") == {"source": "baseline"}
    assert about("b0-n240-s0") == {**cell, "level": "0%"}
    assert about("b0-n240-s0@20pct") == {**cell, "level": "20%"}
    assert about("b0-n240-s0@layers-0-1") == {**cell, "layers": "0-1"}
    assert about("mixed-n60-s0") == {"cell": "mixed-n60-s0", "source": "mixed", "size": 60, "seed": 0, "level": "0%"}


def test_a_table_is_a_pivot_of_it(frame: pd.DataFrame, rich_results: Any) -> None:
    """Table 2 as pandas makes it: means over seeds by training and test bucket at the largest size."""
    here = frame[
        (frame["metric"] == "acc") & (frame["split"] == "test") & (frame["level"] == "0%") & (frame["size"] == 1920)
    ]
    table = here.pivot_table(index="trained_bucket", columns="bucket", values="value", aggfunc="mean")
    rows = {row[0]["text"]: row for row in rich_results["tables"]["table-2-accuracy"]["rows"]}
    for bucket, line in table.iterrows():
        shown = [entry["value"] for entry in rows[f"bucket {bucket}"][2:7]]
        assert shown == [pytest.approx(100 * value) for value in line]


def test_divergences_and_other_tasks(rich: Path, frame: pd.DataFrame) -> None:
    written = json.loads((rich / "divergence" / "b4-n60-s1" / "divergence.json").read_text())
    mine = frame[(frame["model"] == "b4-n60-s1") & (frame["task"] == "token_divergence") & (frame["metric"] == "kl")]
    whole = mine[mine["topic"].isna() & (mine["bucket"] == 4)].iloc[0]
    assert (whole["value"], whole["count"]) == (written["mean"], written["count"])
    assert whole["stderr"] == pytest.approx((written["high"] - written["low"]) / 3.92, rel=1e-3)
    assert mine[mine["topic"] == "P36"]["value"].item() == written["by_topic"]["P36"]["mean"]
    assert mine[mine["bucket"] == 2]["value"].item() == written["by_bucket"]["2"]["mean"]
    xsum = frame[(frame["task"] == "xsum") & (frame["metric"] == "rouge1")]
    assert dict(zip(xsum["level"].fillna("base"), xsum["value"], strict=True)) == {
        "base": pytest.approx(0.04), "0%": 0.4, "5%": pytest.approx(0.44),
    }  # fmt: skip


def test_no_run(tmp_path: Path, rich: Path) -> None:
    with pytest.raises(RunError, match="is not there"):
        sftknow.results(tmp_path / "nowhere")
    assert len(sftknow.results(str(rich))) == len(sftknow.results(rich))
