from __future__ import annotations

import itertools
from collections import Counter

import pytest

from sftknow.facts.topics import load_topics
from sftknow.lab.world import WorldSize, build_world
from sftknow.records import Fact

SIZE = WorldSize(train=30, dev=4, test=6, testood=10)


@pytest.fixture(scope="module")
def world() -> list[Fact]:
    return build_world(load_topics(), size=SIZE, seed=0)


def test_parts_and_domains_are_as_in_the_paper(world: list[Fact]) -> None:
    topics = load_topics()
    counts = Counter((fact.topic, fact.split) for fact in world)
    for relation, topic in topics.items():
        if topic.domain == "in-domain":
            assert [counts[relation, s] for s in ("train", "dev", "test", "testood")] == [30, 4, 6, 0]
        else:
            assert [counts[relation, s] for s in ("train", "dev", "test", "testood")] == [0, 0, 0, 10]


def test_subjects_and_ids_are_unique(world: list[Fact]) -> None:
    assert len({fact.subject for fact in world}) == len({fact.id for fact in world}) == len(world)


def test_no_object_of_a_topic_contains_another(world: list[Fact]) -> None:
    for _, group in itertools.groupby(world, key=lambda fact: fact.topic):
        names = {fact.object.lower() for fact in group}
        assert not [(a, b) for a, b in itertools.permutations(names, 2) if a in b]


def test_objects_are_shared_as_in_the_real_data(world: list[Fact]) -> None:
    """Few countries, many founders."""
    per_topic = {
        topic: len({fact.object for fact in world if fact.topic == topic}) / sum(f.topic == topic for f in world)
        for topic in ("P17", "P413", "P112", "P26")
    }
    assert per_topic["P112"] > 0.9
    assert per_topic["P26"] > 0.9
    assert per_topic["P17"] < 0.8


def test_questions_name_the_subject(world: list[Fact]) -> None:
    assert all(fact.subject in fact.question for fact in world)


def test_the_seed_decides(world: list[Fact]) -> None:
    assert build_world(load_topics(), size=SIZE, seed=0) == world
    assert build_world(load_topics(), size=SIZE, seed=1) != world


def test_a_world_that_is_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match="smaller world"):
        build_world({"P276": load_topics()["P276"]}, size=WorldSize(train=20_000), seed=0)


def test_an_unknown_topic_is_refused() -> None:
    with pytest.raises(ValueError, match="P9999"):
        build_world({"P9999": load_topics()["P17"]}, size=SIZE, seed=0)
