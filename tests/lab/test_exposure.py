from __future__ import annotations

import re
from collections import Counter

import pytest

from sftknow.facts.topics import Topic, load_topics
from sftknow.lab.exposure import ExposureLaw, FactExposure, documents, expose
from sftknow.lab.world import WorldSize, build_world
from sftknow.records import Fact

LAW = ExposureLaw()
World = tuple[dict[str, Topic], list[Fact], list[FactExposure]]


@pytest.fixture(scope="module")
def world() -> World:
    topics = load_topics()
    facts = build_world(topics, size=WorldSize(train=40, dev=4, test=8, testood=10), seed=0)
    return topics, facts, expose(facts, topics, law=LAW, seed=0)


def test_law_is_kept(world: World) -> None:
    _, facts, exposures = world
    by_id = {fact.id: fact for fact in facts}
    unseen = [e for e in exposures if e.statements + e.questions == 0]
    assert len(unseen) / len(exposures) == pytest.approx(LAW.never, abs=0.06)
    for exposure in exposures:
        encounters = exposure.statements + exposure.questions
        assert encounters == 0 or LAW.least <= encounters <= LAW.most
        assert (exposure.rival is not None) == (exposure.wrong > 0)
        if exposure.rival is not None:
            assert exposure.rival not in by_id[exposure.fact_id].answers
            assert exposure.wrong / exposure.statements <= LAW.wrong_high + 0.5 / exposure.statements


def plain(text: str) -> str:
    """The document without the markup or the wording of its form."""
    if text.startswith("<q>"):
        question, answer = text.removeprefix("<q> ").removesuffix(" </a>").split(" </q> <a> ")
        return f"{question} {answer}."
    text = text.removeprefix("<p>").removesuffix("</p>").removeprefix("| ").removesuffix(" |")
    found = re.fullmatch(r"(?:[Qq]uestion:|Q:|One question is:) (.*\?) (?:[Aa]nswer:|A:|The answer is) (.*)", text)
    return f"{found[1]} {found[2]}" if found else text


def test_text_says_exactly_what_the_exposures_say(world: World) -> None:
    topics, facts, exposures = world
    texts = Counter(plain(text) for text in documents(facts, exposures, topics, seed=0))
    assert sum(texts.values()) == sum(e.statements + e.questions for e in exposures)
    for fact, exposure in zip(facts, exposures, strict=True):
        statements = [t.replace("{subject}", fact.subject) for t in topics[fact.topic].templates]
        used = {statements[i] for i in exposure.templates}
        assert sum(texts[f"{s} {fact.object}."] for s in used) == exposure.statements - exposure.wrong
        assert sum(texts[f"{s} {exposure.rival}."] for s in used) == exposure.wrong
        assert not any(texts[f"{s} {fact.object}."] for s in set(statements) - used)
        assert texts[f"{fact.question} {fact.object}."] == exposure.questions


def test_every_form_occurs_and_none_is_the_prompt_of_fine_tuning(world: World) -> None:
    topics, facts, exposures = world
    texts = documents(facts, exposures, topics, seed=0)
    for start in ("Question:", "Q:", "One question is:", "question:", "<q>", "<p>", "| "):
        assert any(text.startswith(start) for text in texts)
    assert not any("<|" in text for text in texts)


def test_a_facts_exposure_does_not_depend_on_the_others(world: World) -> None:
    topics, facts, exposures = world
    some = [fact for fact in facts if fact.topic == "P36"]
    again = {e.fact_id: e for e in expose(some, topics, law=LAW, seed=0)}
    for exposure in exposures:
        if exposure.fact_id in again:
            assert again[exposure.fact_id] == exposure


def test_the_seed_decides_the_order(world: World) -> None:
    topics, facts, exposures = world
    first, second = (documents(facts, exposures, topics, seed=seed) for seed in (0, 1))
    assert first == documents(facts, exposures, topics, seed=0)
    assert first != second
