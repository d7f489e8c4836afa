"""The base with solved examples, and R before and after, tell format from knowledge."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sftknow.artifacts.files import write_json
from sftknow.artifacts.knowledge import EXAMPLES, KNOWLEDGE
from sftknow.report.answer import answer
from sftknow.report.collect import collect
from sftknow.report.compose import write_report
from sftknow.report.findings import findings
from sftknow.report.summary import plain_words, say_format


@pytest.fixture(scope="module")
def told(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with the base shown examples, which make it as good as a tuned model, and the chosen model graded."""
    folder = tmp_path_factory.mktemp("told") / "made-up"
    shutil.copytree(run, folder)
    shutil.copytree(folder / "evaluation" / "b2-n60-s0", folder / "evaluation" / EXAMPLES)
    flow = [[9, 1, 0, 0, 0], [1, 8, 1, 0, 0], [0, 2, 7, 1, 0], [0, 0, 3, 6, 1], [0, 0, 0, 2, 8]]
    levels = [[bucket, 10, 0.2 * bucket, 0.19 * bucket] for bucket in range(5)]
    graded = {
        "model": "b0-n240-s0", "facts": 50, "before": 0.41, "after": 0.39, "flow": flow, "by_level": levels,
        "kept": 0.95, "low": 0.9, "high": 1.0,
    }  # fmt: skip
    write_json(folder / "knowledge" / "b0-n240-s0" / KNOWLEDGE, graded)
    return folder


def test_the_part_that_is_format_is_said(told: Path) -> None:
    report = collect(told)
    assert EXAMPLES not in report.other_models
    found = findings(report)
    part = found["format"]
    values = {name: report.models[name].score("test") for name in ("base", EXAMPLES, "b0-n240-s0")}
    base, shown, tuned = (score.value for score in values.values() if score)
    assert part["format"]["value"] == pytest.approx(shown - base)
    assert part["beyond"]["value"] == pytest.approx(tuned - shown)
    words = " ".join(plain_words(found))
    gain = f"of the +{100 * (tuned - base):.1f} points over the base +{100 * (shown - base):.1f} are format"
    assert f"{gain} (4 solved examples and no training give them)" in words
    assert gain in answer(report, found)
    assert "mean R over 50 test facts is 0.410 before and 0.390 after; it keeps 95.0 % of what the base knows" in words


def test_a_base_that_examples_confuse_tells_nothing_of_format() -> None:
    lower = {"value": -0.2, "stderr": 0.01, "sure": True}
    part = {"title": "60 facts", "examples": 4, "base": 0.3, "with_examples": 0.1, "tuned": 0.5, "format": lower}
    assert say_format({**part, "beyond": {"value": 0.4, "stderr": 0.02, "sure": True}}) == [
        "After 60 facts, how much of the +20.0 points over the base is format cannot be told: 4 solved examples do not "
        "help this base (10.0 % with them, 30.0 % without) (Table V)."
    ]


def test_without_them_nothing_is_said_of_format(run: Path) -> None:
    report = collect(run)
    found = findings(report)
    assert "format" not in found
    assert "format" not in answer(report, found)


def test_the_tables(told: Path, tmp_path: Path) -> None:
    page = write_report(told, tmp_path)
    tables = json.loads((page.parent / "results.json").read_text())["tables"]
    assert [row[0]["text"] for row in tables["table-v-format"]["rows"]] == [
        "base", "base, 4 solved examples before each question", "fine-tuned (240 facts of bucket 0 (seed 0))",
        "20% restored (240 facts of bucket 0 (seed 0))",
    ]  # fmt: skip
    moved = tables["table-u-before-after"]
    assert [entry["text"] for entry in moved["rows"][3][1:]] == ["bucket 3", "0", "0", "3", "6", "1", "0.60", "0.57"]
