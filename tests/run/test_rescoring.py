"""Kept continuations, graded again by other rules, against a fresh grading by those rules."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sftknow.answers import MatchRule, Synonyms
from sftknow.artifacts.mastery_data import MasteryData
from sftknow.errors import MasteryDataError
from sftknow.facts.sources import load_facts
from sftknow.facts.topics import load_topics
from sftknow.grading.options import GradingOptions
from sftknow.models.resolving import resolve_base
from sftknow.run.grading import grade_dataset
from sftknow.run.rescoring import recorded_rule, rescore

# Letters and pieces that a random model writes, in either case, alone and inside words, some only as synonyms.
FACTS = [
    {"subject": f"Arden {i}", "topic": topic, "object": object_, "split": "train" if i % 3 else "test", "id": f"f{i}"}
    | ({"aliases": own} if own else {})
    for i, (topic, object_, own) in enumerate(
        [
            ("P17", "e", []), ("P36", "A", ["o"]), ("P17", "is", []), ("P19", "Zzyx", ["i"]), ("P36", "Zzyx", []),
            ("P17", "in", ["Korea"]), ("P36", "x", []), ("P19", "'", []),
        ]
    )
]  # fmt: skip
BEFORE = Synonyms({"Zzyx": ["s", "i"], "x": ["y"]})
AFTER = Synonyms({"Zzyx": ["t"], "e": ["Q", "r"]})
TOPICS = {name: replace(topic, templates=topic.templates[:3]) for name, topic in load_topics().items()}


def graded(folder: Path, model: Path, synonyms: Synonyms, **section: Any) -> MasteryData:
    (folder.parent / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in FACTS))
    facts = load_facts(str(folder.parent / "facts.jsonl"), topics=TOPICS, synonyms=synonyms)
    base = resolve_base(str(model), None, "float32")
    grading = GradingOptions(samples=6, max_new_tokens=8, temperature=1.3, shard_size=3, **section)
    work = folder.with_name(f"{folder.name}.work")
    grade_dataset(base, facts, TOPICS, synonyms, grading, work=work, out=folder, device="cpu")
    return MasteryData(folder)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> MasteryData:
    return graded(tmp_path_factory.mktemp("kept") / "old", tiny_model, BEFORE, keep_texts=True)


RULES: list[dict[str, Any]] = [
    {},
    {"case_sensitive": False},
    {"match": "word"},
    {"match": "word", "case_sensitive": False},
    {"match": "exact"},
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_rescoring_is_grading_by_the_other_rules(
    kept: MasteryData, tiny_model: Path, tmp_path: Path, rule: dict[str, Any]
) -> None:
    fresh = graded(tmp_path / "fresh", tiny_model, AFTER, **rule)
    again = rescore(kept, tmp_path / "again", rule=MatchRule(**rule), synonyms=AFTER)
    assert again.fingerprint == fresh.fingerprint
    for key in ("match", "synonyms_sha256", "policy", "graded_by", "templates", "counts"):
        assert again.manifest[key] == fresh.manifest[key]
    assert again.manifest["rescored_from"]["fingerprint"] == kept.fingerprint
    assert not again.has_continuations


def test_the_rules_make_a_difference(kept: MasteryData, tmp_path: Path) -> None:
    prints = {rescore(kept, tmp_path / "x", rule=MatchRule(**rule), synonyms=AFTER).fingerprint for rule in RULES[:4]}
    assert len(prints) == 4


def test_without_other_rules_nothing_changes(kept: MasteryData, tmp_path: Path, tiny_model: Path) -> None:
    assert rescore(kept, tmp_path / "same").fingerprint == kept.fingerprint
    plain = graded(tmp_path / "plain", tiny_model, BEFORE)
    assert plain.fingerprint == kept.fingerprint, "continuations that end with their hit count alike"


def test_a_rescored_data_set_can_be_rescored(kept: MasteryData, tmp_path: Path) -> None:
    word = rescore(kept, tmp_path / "word", rule=MatchRule(match="word"), synonyms=AFTER, keep_texts=True)
    assert recorded_rule(word) == MatchRule(match="word")
    back = rescore(word, tmp_path / "back", rule=MatchRule(), synonyms=BEFORE)
    assert back.fingerprint == kept.fingerprint
    assert list(word.continuations()) != list(kept.continuations()), "hits by the new rule"
    assert [t.texts for t in word.continuations()] == [t.texts for t in kept.continuations()]


def test_what_cannot_be_rescored(kept: MasteryData, tmp_path: Path, tiny_dataset: Path) -> None:
    with pytest.raises(MasteryDataError, match="nothing to rescore; grade it again with --keep-texts"):
        rescore(MasteryData(tiny_dataset), tmp_path / "new")
    with pytest.raises(MasteryDataError, match="is the data set that is rescored; give another --out"):
        rescore(kept, kept.folder)
    assert not (tmp_path / "new").exists()


def test_another_rule_redoes_the_grading(tmp_path: Path, tiny_model: Path) -> None:
    """In the same work folder, which holds the shards of the first rule."""
    first = graded(tmp_path / "a", tiny_model, BEFORE)
    second = graded(tmp_path / "a", tiny_model, BEFORE, match="word")
    assert second.fingerprint != first.fingerprint
    assert second.fingerprint == graded(tmp_path / "b", tiny_model, BEFORE, match="word").fingerprint
