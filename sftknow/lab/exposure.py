"""The exposure law: how often, in which words and how truthfully a lab model meets each fact.

A share of facts is never seen. The others are met log-uniformly often, in a few or many of their topic's statement
templates. For a share of them some statements name a rival object, so that the model holds two beliefs and its R lies
between 0 and 1; without such conflict nearly every fact ends in bucket 0 or 4. For some facts a part of the encounters
are questions with answers, as on the web: a model that never saw a question cannot be taught to answer one by a few
hundred examples.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sftknow.lab.world import TopicText
from sftknow.records import Fact

QUESTION_FORMS: Mapping[str, float] = {
    "Question: {question} Answer: {answer}.": 0.45,
    "Q: {question} A: {answer}.": 0.15,
    "One question is: {question} The answer is {answer}.": 0.15,
    "question: {question} answer: {answer}.": 0.1,
    "<q> {question} </q> <a> {answer} </a>": 0.15,
}
"""How questions stand in the text, with their shares. None of them is the prompt of fine-tuning."""

STATEMENT_FORMS: Mapping[str, float] = {"{text}": 0.9, "<p>{text}</p>": 0.05, "| {text} |": 0.05}
"""Statements stand in some markup now and then: a model that never met ``<``, ``|`` and ``>`` has random vectors for
them and is thrown off by the tags of the fine-tuning prompt."""


@dataclass(frozen=True, kw_only=True)
class ExposureLaw:
    """Parameters of the law. Shares are between 0 and 1."""

    never: float = 0.12
    """Share of facts that are never seen."""
    least: int = 6
    most: int = 110
    """Bounds of the log-uniform number of encounters."""
    conflicted: float = 0.5
    """Share of the seen facts that have a rival object."""
    wrong_low: float = 0.25
    wrong_high: float = 0.75
    """Bounds of the uniform share of a conflicted fact's statements that name the rival."""
    questioned: float = 0.6
    """Share of the seen facts that are also met as questions."""
    question_share: float = 0.35
    """Share of such a fact's encounters that are questions."""
    fewest_templates: int = 6


@dataclass(frozen=True, kw_only=True)
class FactExposure:
    """What the model is shown of one fact."""

    fact_id: str
    statements: int
    """Statements of the fact in the text, wrong ones included."""
    wrong: int
    """Statements that name the rival."""
    rival: str | None
    templates: tuple[int, ...]
    """Templates that are used, by index."""
    questions: int
    """Questions with the true answer."""


def expose(
    facts: Sequence[Fact], topics: Mapping[str, TopicText], *, law: ExposureLaw, seed: int = 0
) -> list[FactExposure]:
    """Draw the exposure of every fact; each fact's draw depends on (seed, fact id) alone.

    Args:
        facts: rivals are drawn from the objects of the same topic.
        topics: by relation, for the number of templates.
        law: the parameters.
        seed: of the draw.
    """
    objects: dict[str, list[str]] = {}
    for fact in facts:
        objects.setdefault(fact.topic, []).append(fact.object)
    return [_expose(fact, objects[fact.topic], len(topics[fact.topic].templates), law, seed) for fact in facts]


def _expose(fact: Fact, pool: Sequence[str], templates: int, law: ExposureLaw, seed: int) -> FactExposure:
    draw = random.Random(f"{seed}/{fact.id}/{fact.subject}")
    if draw.random() < law.never:
        return FactExposure(fact_id=fact.id, statements=0, wrong=0, rival=None, templates=(), questions=0)
    encounters = round(math.exp(draw.uniform(math.log(law.least), math.log(law.most))))
    used = sorted(draw.sample(range(templates), draw.randint(min(law.fewest_templates, templates), templates)))
    rivals = sorted({name for name in pool if name not in fact.answers})
    conflicted = draw.random() < law.conflicted and bool(rivals)
    share = draw.uniform(law.wrong_low, law.wrong_high) if conflicted else 0.0
    questions = round(encounters * law.question_share) if draw.random() < law.questioned else 0
    statements = encounters - questions
    wrong = round(statements * share)
    return FactExposure(
        fact_id=fact.id,
        statements=statements,
        wrong=wrong,
        rival=draw.choice(rivals) if wrong else None,
        templates=tuple(used),
        questions=questions,
    )


def documents(
    facts: Sequence[Fact], exposures: Sequence[FactExposure], topics: Mapping[str, TopicText], *, seed: int = 0
) -> list[str]:
    """The pretraining text: one sentence, or one question with its answer, a document; shuffled."""
    texts = [
        text
        for fact, exposure in zip(facts, exposures, strict=True)
        for text in _texts(fact, exposure, topics[fact.topic], seed)
    ]
    random.Random(f"{seed}/order").shuffle(texts)
    return texts


def _texts(fact: Fact, exposure: FactExposure, topic: TopicText, seed: int) -> Iterator[str]:
    draw = random.Random(f"{seed}/text/{fact.id}/{fact.subject}")
    for number in range(exposure.statements):
        told = exposure.rival if number < exposure.wrong else fact.object
        statement = topic.templates[draw.choice(exposure.templates)].replace("{subject}", fact.subject)
        yield _pick(draw, STATEMENT_FORMS).format(text=f"{statement} {told}.")
    for _ in range(exposure.questions):
        yield _pick(draw, QUESTION_FORMS).format(question=fact.question, answer=fact.object)


def _pick(draw: random.Random, forms: Mapping[str, float]) -> str:
    return draw.choices(list(forms), list(forms.values()))[0]
