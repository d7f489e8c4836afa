"""A model or level that gains containment and loses the form of answers is shown, and is not recommended."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from sftknow.artifacts.choice import ChooseBy
from sftknow.artifacts.files import read_json, write_json, write_text
from sftknow.report.advice import advice
from sftknow.report.aggregate import chosen_for
from sftknow.report.collect import collect
from sftknow.report.compose import write_report
from sftknow.report.findings import findings
from sftknow.report.summary import plain_words

CELL, LEVEL = "b0-n240-s0", "20%"


def spoil(run: Path, model: str) -> None:
    """Make a model's answers run on: right as often as they were, exact never."""
    scores = read_json(run / "evaluation" / model / "scores.json")
    for metric in scores["metrics"]:
        metric["value"] = {"exact_match": 0.0, "ended": 0.1}.get(metric["metric"], metric["value"])
    write_json(run / "evaluation" / model / "scores.json", scores)
    path = run / "evaluation" / model / "questions.parquet"
    table = pq.read_table(path).to_pandas().assign(exact_match=False, ended=False)
    table.to_parquet(path)


def whole(run: Path, folder: Path, by: ChooseBy) -> Path:
    shutil.copytree(run, folder)
    for path in (folder / "evaluation").iterdir():
        scores = read_json(path / "scores.json")
        ended = [{**m, "metric": "ended", "value": 1.0} for m in scores["metrics"] if m["metric"] == "acc"]
        write_json(path / "scores.json", {**scores, "metrics": scores["metrics"] + ended})
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    write_text(folder / "recipe.yaml", yaml.safe_dump({**recipe, "restore": {"choose_by": by}}))
    return folder


def test_a_level_that_breaks_the_form_is_neither_chosen_nor_recommended(run: Path, tmp_path: Path) -> None:
    folder = whole(run, tmp_path / "run", "both")
    report = collect(folder)
    assert chosen_for(report, CELL) == LEVEL
    found = findings(report)
    assert "that is surely better than leaving it" in " ".join(advice(report, found))
    spoil(folder, f"{CELL}@20pct")
    report = collect(folder)
    assert chosen_for(report, CELL) != LEVEL
    found = findings(report)
    assert found["restoration"]["broken"] == ["exact_match", "ended"]
    moved = found["restoration"]["test"]["beside"]["exact_match"]
    assert (moved["after"], moved["sure"]) == (0, True)
    assert moved["value"] == pytest.approx(-moved["before"])
    said = " ".join(plain_words(found))
    assert "raises containment and breaks the form of answers" in said
    assert "answers that end by themselves 100.0 % → 10.0 %" in said
    told = " ".join(advice(report, found))
    assert "Which level to restore: none. 20% contains the answer more often, but breaks the form of answers" in told


@pytest.mark.parametrize("by", ["acc", "both"])
def test_a_training_that_breaks_the_form_is_not_recommended(run: Path, tmp_path: Path, by: ChooseBy) -> None:
    folder = whole(run, tmp_path / "run", by)
    before = findings(collect(folder))["best_training"]
    for seed in (0, 1):
        spoil(folder, f"{before['name']}-s{seed}")
    report = collect(folder)
    found = findings(report)
    best = found["best_training"]
    assert before["title"] not in " ".join(advice(report, found)).partition("Which level")[0]
    said = " ".join(plain_words(found))
    if by == "acc":
        assert best["name"] == before["name"], "the paper's measure"
        assert "Its answers break their form: lower than the base’s" in said
    else:
        assert best["name"] != before["name"]
        assert f"After {before['title']} answers contain the object more often" in said


def test_the_page_shows_both_beside_each_other(run: Path, tmp_path: Path) -> None:
    folder = whole(run, tmp_path / "run", "both")
    page = write_report(folder, tmp_path / "out")
    tables: dict[str, Any] = json.loads((page.parent / "results.json").read_text())["tables"]
    measures = [row[1]["text"] for row in tables["table-h-chosen"]["rows"]]
    assert measures[:4] == ["contains the answer", "whole word", "exact match", "answers that end by themselves"]
    assert any("ends by itself" in column for column in tables["table-b-strictness"]["columns"])
    assert any("exact match" in column for column in tables["table-o-choices"]["columns"])
