"""The facts in the box."""

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sftknow.answers import Synonyms
from sftknow.facts.sources import load_facts
from sftknow.facts.topics import load_topics
from sftknow.resources import quick_facts_file
from tests.quick_facts import draw, table


def test_balanced_and_small() -> None:
    topics = load_topics()
    facts = load_facts("quick", topics=topics, synonyms=Synonyms.load())
    assert facts.counts() == {"train": 300, "dev": 80, "test": 120, "testood": 700}
    assert not facts.removed
    assert Counter(fact.topic for fact in facts.facts) == dict.fromkeys(topics, 50)
    assert all(fact.subject in fact.question for fact in facts.facts)
    assert any("EntityQuestions" in note and "MIT" in note for note in facts.notes)
    folder = quick_facts_file().parent
    assert sum(file.stat().st_size for file in folder.iterdir()) < 150_000
    assert "Princeton" in (folder / "LICENSE").read_text()


@pytest.mark.entity_questions
def test_drawn_anew(entity_questions: Path) -> None:
    release = load_facts(str(entity_questions), topics=load_topics(), synonyms=Synonyms.load())
    assert table(draw(release)).equals(pq.read_table(quick_facts_file()))
    kept = {fact.id: fact for fact in release.facts}
    quick = load_facts("quick", topics=load_topics(), synonyms=Synonyms.load())
    assert all(kept[fact.id] == fact for fact in quick.facts)
