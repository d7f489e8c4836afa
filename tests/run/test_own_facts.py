"""A person's own facts, topics and synonyms in a whole run: where they are recorded, what a change of them redoes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sftknow.artifacts.files import read_json, write_json
from sftknow.artifacts.stages import RunDirectory
from sftknow.errors import FactsError
from sftknow.recipes.load import load_recipe
from sftknow.run.experiment import Experiment
from sftknow.run.grading import describe_facts, grading_inputs

TOPICS: dict[str, Any] = {
    "RULES": {"question": "Who governs {subject}?", "templates": ["{subject} is governed by"] * 4}
}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    rows = [{"subject": f"Place {i}", "topic": "RULES" if i % 2 else "P17", "object": "South Korea"} for i in range(40)]
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "topics.json").write_text(json.dumps(TOPICS))
    (tmp_path / "synonyms.json").write_text(json.dumps({"South Korea": ["Hanguk"]}))
    return tmp_path


def experiment(own: Path, run: str, **settings: str) -> Experiment:
    chosen = {"facts.source": str(own / "facts.jsonl"), "facts.topics": str(own / "topics.json")} | {
        key.replace("__", "."): value for key, value in settings.items()
    }
    recipe = load_recipe("lab", [f"{key}={value}" for key, value in chosen.items()])
    return Experiment(recipe, RunDirectory(own / run), say=lambda _: None)


def test_the_hashes_are_in_the_provenance(own: Path) -> None:
    def recorded(run: str, **settings: str) -> dict[str, Any]:
        experiment(own, run, **settings).write_inputs()
        found: dict[str, Any] = read_json(own / run / "provenance.json")
        return found

    first = recorded("a", facts__limit="null")
    assert first == recorded("b", facts__limit="null")
    (own / "topics.json").write_text(json.dumps({"RULES": TOPICS["RULES"] | {"templates": ["{subject} obeys"]}}))
    other_topics = recorded("c", facts__limit="null")
    other_synonyms = recorded("d", facts__limit="null", facts__synonyms=str(own / "synonyms.json"))
    assert first["hashes"]["topics"] != other_topics["hashes"]["topics"]
    assert first["facts"]["sha256"] == other_topics["facts"]["sha256"], "templates are not part of a fact"
    assert other_topics["hashes"]["synonyms"] != other_synonyms["hashes"]["synonyms"]
    assert other_topics["facts"]["sha256"] != other_synonyms["facts"]["sha256"], "the answers are"
    assert first["facts"]["official_release"] is None


def test_a_run_that_went_on_elsewhere_says_where_it_began(own: Path) -> None:
    def recorded() -> dict[str, Any]:
        experiment(own, "moved", facts__limit="null").write_inputs()
        found: dict[str, Any] = read_json(own / "moved" / "provenance.json")
        return found

    here = recorded()
    assert recorded() == here
    assert "earlier" not in here
    for device in ("some card", "another card", "some card"):
        write_json(own / "moved" / "provenance.json", recorded() | {"device": device})
    moved = recorded()
    assert [start["device"] for start in moved["earlier"]] == ["some card", "another card"]
    assert moved["earlier"][0]["packages"] == here["packages"]
    assert moved["device"] == here["device"]
    assert recorded() == moved


def test_what_decides_about_a_hit_redoes_the_grading(own: Path) -> None:
    def inputs(**settings: str) -> dict[str, Any]:
        bench = experiment(own, "run", **settings).bench
        return grading_inputs(bench.base, bench.facts, bench.topics, bench.recipe.grading)

    first = inputs()
    assert inputs() == first
    for change in (
        {"grading__match": "word"},
        {"grading__case_sensitive": "false"},
        {"facts__synonyms": str(own / "synonyms.json")},
    ):
        assert inputs(**change) != first
    (own / "topics.json").write_text(json.dumps({"RULES": TOPICS["RULES"] | {"templates": ["{subject} obeys"]}}))
    assert inputs() != first


def test_a_new_person_is_told_what_is_graded(own: Path) -> None:
    work = experiment(own, "run", facts__limit="20", grading__match="word", grading__samples="10").bench
    lines = list(describe_facts(work.facts, work.topics, work.recipe.grading))
    assert lines[0].startswith("facts: ")
    counts = work.facts.counts()
    assert all(f"{count} {split}" in lines[0] for split, count in counts.items() if count)
    assert any(line.startswith("  left out: ") and "(train: beyond the limit)" in line for line in lines)
    assert "  R stands on 210 tries a fact: 21 statements × 10 samples; fewer: 40 in RULES (4 × 10)" in lines
    assert lines[-1] == "  a hit is a text that contains an answer as whole words, case as it is"
    fewer = experiment(own, "run", grading__templates="[0, 20, 99]", grading__samples="10").bench
    said = list(describe_facts(fewer.facts, fewer.topics, fewer.recipe.grading))
    assert "  R stands on 20 tries a fact: 2 statements × 10 samples; fewer: 10 in RULES (1 × 10)" in said


@pytest.mark.parametrize("key", ["topics", "synonyms"])
def test_a_file_that_is_not_there(own: Path, key: str) -> None:
    work = experiment(own, "run", **{f"facts__{key}": str(own / "none.json")})
    with pytest.raises(FactsError, match=f"the {key} file .*none.json cannot be read"):
        work.write_inputs()
