"""`sftknow grade` with a person's own facts, topics and synonyms."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sftknow.answers import MatchRule, Synonyms
from sftknow.artifacts.mastery_data import MasteryData, write_mastery_data
from sftknow.cli.main import main
from sftknow.facts.topics import load_topics
from sftknow.records import SPLITS
from sftknow.report.terminal import standing, topic_counts, topic_table
from tests.tiny import graded, tiny_facts

FACTS = [
    {"subject": "Oslo", "relation": "RULES", "object": "e", "alias": ["ignored"]},
    {"subject": "Paris", "relation": "RULES", "object": "Q", "aliases": ["qq"]},
    {"subject": "Seoul", "topic": "P17", "object": "South Korea", "split": "train"},
    {"subject": "Ann", "topic": "BORN", "object": "in"},
    {"subject": "Bo", "topic": "BORN", "object": "in", "split": "train"},
]
OWN_TOPICS = {
    "RULES": {"question": "Who governs {subject}?", "templates": [f"{{subject}} {i} is governed by" for i in range(3)]},
    "BORN": {
        "question": "Where was {subject} born?",
        "templates": [f"{{subject}} {i} was born in" for i in range(23)],
        "domain": "out-of-domain",
    },
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in FACTS))
    (tmp_path / "topics.json").write_text(json.dumps(OWN_TOPICS))
    (tmp_path / "synonyms.json").write_text(json.dumps({"e": ["a"], "South Korea": ["o"]}))
    return tmp_path


def grade(files: Path, model: Path, out: str, *more: str) -> MasteryData:
    arguments = ["--facts", str(files / "facts.jsonl"), "--topics", str(files / "topics.json"), "--samples", "2"]
    assert main(["grade", str(model), *arguments, "--out", str(files / out), "--temperature", "1.3", *more]) == 0
    return MasteryData(files / out)


def test_own_facts_topics_and_synonyms(files: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = grade(files, tiny_model, "graded", "--synonyms", str(files / "synonyms.json"), "--keep-texts")
    printed = capsys.readouterr()
    # Over how many tries R stands, before and after.
    assert "facts: 5 from" in printed.err
    assert "R stands on 46 tries a fact: 23 statements × 2 samples; fewer: 42 in P17 (21 × 2), 6 in RULES (3 × 2)" in (
        printed.err
    )
    assert "columns not used: alias" in printed.err
    assert "a hit is a text that contains an answer, case as it is" in printed.err
    assert "R stands on 6 to 46 tries a fact" in printed.out
    rows = {row.fact.subject: row for split in ("train", "dev", "test", "testood") for row in data.split(split)}
    assert {name: row.mastery.tries for name, row in rows.items()} == {
        "Oslo": 6, "Paris": 6, "Seoul": 42, "Ann": 46, "Bo": 46,
    }  # fmt: skip
    assert rows["Ann"].fact.split == "testood"
    assert rows["Bo"].fact.split == "train", "a split in the file is taken at its word"
    assert rows["Oslo"].fact.aliases == ("a",)
    assert rows["Seoul"].fact.aliases == ("o",)
    # Where everything comes from.
    assert data.manifest["synonyms_sha256"] == Synonyms.load(files / "synonyms.json").sha256
    assert data.manifest["match"] == {"match": "contains", "case_sensitive": True}
    assert data.manifest["facts"]["official_release"] is None
    assert f"{2 * (3 + 3 + 21 + 23 + 23):,} continuations kept" in printed.out
    assert not list(files.glob(".*")), "no shards are left behind"


def test_the_topics_hash_tells_other_templates_apart(files: Path, tiny_model: Path) -> None:
    (files / "facts.jsonl").write_text(json.dumps(FACTS[0]))
    first = grade(files, tiny_model, "first").manifest["topics_sha256"]
    changed = OWN_TOPICS | {"RULES": {**OWN_TOPICS["RULES"], "templates": ["{subject} obeys"]}}
    (files / "topics.json").write_text(json.dumps(changed))
    assert grade(files, tiny_model, "second").manifest["topics_sha256"] != first


def test_the_same_grading_again_is_nothing_to_do(
    files: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = grade(files, tiny_model, "graded")
    capsys.readouterr()
    written = (files / "graded" / "sftknow.json").stat().st_mtime_ns
    assert grade(files, tiny_model, "graded").fingerprint == first.fingerprint
    told = capsys.readouterr()
    assert "holds this very grading" in told.err
    assert "graded data set:" in told.out, "the tables are shown all the same"
    assert (files / "graded" / "sftknow.json").stat().st_mtime_ns == written
    # Anything that the counts depend on makes it another grading; --force does not ask.
    assert grade(files, tiny_model, "graded", "--force").fingerprint == first.fingerprint
    assert (files / "graded" / "sftknow.json").stat().st_mtime_ns != written
    for more in (("--seed", "1"), ("--match", "word")):
        capsys.readouterr()
        grade(files, tiny_model, "graded", *more)
        assert "nothing to do" not in capsys.readouterr().err, more


def test_rules_and_rescoring_agree(files: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ("--synonyms", str(files / "synonyms.json"))
    (files / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in FACTS[:2]))
    fresh = grade(files, tiny_model, "fresh", *own, "--match", "word", "--case", "ignore")
    assert "contains an answer as whole words, whatever the case" in capsys.readouterr().err
    kept = grade(files, tiny_model, "kept", "--keep-texts")
    out = ("--out", str(files / "again"), "--match", "word", "--case", "ignore")
    assert main(["grade", "--rescore", str(kept.folder), *own, *out]) == 0
    again = MasteryData(files / "again")
    assert again.fingerprint == fresh.fingerprint != kept.fingerprint
    assert again.manifest["match"] == {"match": "word", "case_sensitive": False}
    assert str(MatchRule(match="word", case_sensitive=False)) in capsys.readouterr().err
    # A data set of ours is replaced.
    assert main(["grade", "--rescore", str(kept.folder), "--out", str(files / "again")]) == 0
    assert MasteryData(files / "again").fingerprint == kept.fingerprint


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--out", "x"], "grading needs a model and --facts"),
        (["lab", "--out", "x"], "grading needs a model and --facts"),
        (["--rescore", "OLD", "--facts", "lab", "--out", "x"], "--facts and --rescore do not go together"),
        (["lab", "--rescore", "OLD", "--out", "x"], "MODEL and --rescore do not go together"),
        (["--rescore", "OLD", "--out", "x"], "OLD is not there"),
        (["lab", "--facts", "facts.jsonl", "--out", "."], "is no graded data set; give another --out"),
        (["lab", "--facts", "facts.jsonl", "--out", "x"], "facts.jsonl, row 1: no topic is named 'RULES'"),
        (["lab", "--facts", "facts.jsonl", "--topics", "bad.json", "--out", "x"], "{subject} is missing"),
        (["lab", "--facts", "facts.jsonl", "--synonyms", "none.json", "--out", "x"], "none.json cannot be read"),
    ],
)
def test_what_is_refused(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: Any, complaint: str
) -> None:
    monkeypatch.chdir(files)
    (files / "bad.json").write_text(json.dumps({"RULES": {"question": "Who?", "templates": ["x"]}}))
    assert main(["grade", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert complaint in line
    assert not (files / "x").exists()
    assert len(list(files.iterdir())) == 4, "nothing is lost"


def test_tables(tmp_path: Path) -> None:
    rows = [graded(fact, i % 5) for i, fact in enumerate(tiny_facts(10, topics=("P131", "P36")))]
    rows += [graded(fact, 4, templates=3) for fact in tiny_facts(2, split="testood", topics=("P40",))]
    write_mastery_data(tmp_path / "graded", rows, {})
    data = MasteryData(tmp_path / "graded")
    assert topic_counts(data) == {
        "train": {"P36": dict.fromkeys(range(5), 1), "P131": dict.fromkeys(range(5), 1)},
        "dev": {},
        "test": {},
        "testood": {"P40": {0: 0, 1: 0, 2: 0, 3: 0, 4: 2}},
    }
    lines = topic_table(data).splitlines()
    assert [line.split()[-7:] for line in lines[2:]] == [
        ["1", "1", "1", "1", "1", "5", "210"],
        ["1", "1", "1", "1", "1", "5", "210"],
        ["0", "0", "0", "0", "2", "2", "30"],
    ]
    assert "30 to 210 tries a fact (210 for 10 facts, 30 for 2)" in standing(data)
    write_mastery_data(tmp_path / "none", [], {})
    assert standing(MasteryData(tmp_path / "none")) == "no fact was graded"


def test_the_papers_topics_stand_in_a_persons_own(files: Path) -> None:
    merged = load_topics(files / "topics.json")
    assert list(merged)[:24] == list(load_topics())
    assert list(merged)[24:] == ["RULES", "BORN"]


def test_a_dry_run_measures_this_model_and_writes_nothing(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sftknow.grading.estimate.seconds_each.__kwdefaults__", {"seconds": 1.0, "statements": 50.0})
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    arguments = ["grade", str(tiny_model), "--facts", "lab", "--limit", "20", "--dry-run"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert re.search(
        r"^735 statements × 10 samples take about .*: measured just now, [\d,.]+ statements a second", said
    )
    assert list(Path().iterdir()) == []
    assert main([*arguments, "--force"]) == 2
    assert main(arguments[:-1]) == 2
    assert "grading needs --out DIR" in capsys.readouterr().err


def test_early_deciding_is_recorded_and_part_of_what_was_asked(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "graded"
    arguments = ["grade", str(tiny_model), "--facts", "lab", "--limit", "8", "--max-new-tokens", "2", "--out", str(out)]
    assert main([*arguments, "--certainty", "0.95"]) == 0
    assert "until its bucket is sure with probability 0.95" in capsys.readouterr().err
    data = MasteryData(out)
    assert data.manifest["certainty"] == 0.95
    tries = {row.mastery.tries for split in SPLITS for row in data.split(split)}
    assert tries <= {63, 126, 210}
    assert min(tries) < 210
    assert main([*arguments, "--certainty", "0.95"]) == 0
    assert "holds this very grading" in capsys.readouterr().err
    assert main([*arguments, "--certainty", "1"]) == 2
    assert "--certainty" in capsys.readouterr().err
