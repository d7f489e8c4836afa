"""Topics: a relation, its question, and the statements whose completions show whether a model knows a fact.

The 24 topics and their 504 statement templates are the paper's, verbatim (Tables 13 to 36).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sftknow.artifacts.files import read_mapping
from sftknow.errors import FactsError

DOMAINS = ("in-domain", "out-of-domain")
_ADDRESS = re.compile(
    r"<?(?:https?://(?:www\.)?wikidata\.org/(?:(?:prop|entity)/(?:direct/)?|wiki/(?:Property:)?)|wdt?:|Property:)?"
    r"(?P<id>P[1-9]\d*)>?(?: \(.*\))?",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(r"\{[^{}]*\}")


@dataclass(frozen=True, kw_only=True)
class Topic:
    """One relation and how it is asked about."""

    relation: str
    """Wikidata property, such as ``P36``; a person's own topics may be named otherwise."""
    question: str
    """With ``{subject}`` exactly once."""
    templates: tuple[str, ...]
    """Statements to complete, each with ``{subject}``; 21 in the paper, any number of one's own. Where the subject
    stands is the template's choice; the object is what a model should write next."""
    domain: str
    """``in-domain`` (trained on) or ``out-of-domain`` (only tested on)."""


def relation_names() -> dict[str, list[str]]:
    """For each Wikidata relation that is known by name its names, Wikidata's own label first."""
    names: dict[str, list[str]] = json.loads(Path(__file__).with_name("relation_names.json").read_text("utf-8"))
    return names


@cache
def _relations_by_name() -> dict[str, str]:
    return {_plain(name): relation for relation, names in relation_names().items() for name in names}


def _plain(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())


def find_topic(name: str, topics: Mapping[str, Topic]) -> Topic | None:
    """The topic of a relation, given by its id, its Wikidata address or its name in any case (``capital``).

    None where there is none.
    """
    name = name.strip()
    if name in topics:
        return topics[name]
    address = _ADDRESS.fullmatch(name)
    relation = address["id"].upper() if address else _relations_by_name().get(_plain(name))
    if relation in topics:
        return topics[str(relation)]
    same = [topic for own, topic in topics.items() if _plain(own) == _plain(name)]
    return same[0] if len(same) == 1 else None


def load_topics(extra: str | Path | None = None) -> dict[str, Topic]:
    """The paper's topics by relation, in the order of its tables, and a person's own merged over them.

    Args:
        extra: ``questions`` for the shipped statements about questions that have no relation; otherwise UTF-8 JSON
            ``{"P6": {"question": "Who governs {subject}?", "templates": ["{subject} is governed by"],
            "domain": "in-domain"}}``; ``domain`` may be left out and is then ``in-domain``. A relation that the paper
            has too replaces the paper's topic in its place; others follow in the order of the file.

    Raises:
        FactsError: a file that cannot be used; the message names the file, the relation and the template.
    """
    extra = None if extra is None else Path(extra)
    topics = _read_topics(Path(__file__).with_name("topics.json"))
    if not extra:
        return topics
    own = Path(extra).expanduser()
    if str(extra) == "questions" and not own.exists():
        own = Path(__file__).with_name("questions.json")
    return topics | _read_topics(own)


def _read_topics(path: Path) -> dict[str, Topic]:
    example = ': {"P36": {"question": …, "templates": […]}}'
    table = read_mapping(path, "topics", example=example, twice="{} stands there twice; merge the two into one")
    return {relation: _topic(relation, row, f"{path}, {relation}") for relation, row in table.items()}


def _topic(relation: str, row: Any, where: str) -> Topic:
    if not relation.strip() or "/" in relation:
        raise FactsError(f"{where}: a relation's name must not be empty or contain a slash")
    if not isinstance(row, Mapping):
        raise FactsError(f"{where}: a topic must be an object with a question and templates")
    question = _statement(row.get("question"), f"{where}, question")
    templates, domain = row.get("templates"), row.get("domain", DOMAINS[0])
    if question.count("{subject}") != 1:
        raise FactsError(f"{where}, question: {{subject}} must stand there exactly once, in {question!r}")
    if not isinstance(templates, list) or not templates:
        raise FactsError(f"{where}: templates must be a list of at least one statement")
    if domain not in DOMAINS:
        raise FactsError(f"{where}: domain must be {' or '.join(DOMAINS)}, not {domain!r}")
    statements = tuple(
        _statement(text, f"{where}, template {number}") for number, text in enumerate(templates, start=1)
    )
    return Topic(relation=relation, question=question, templates=statements, domain=domain)


def _statement(text: Any, where: str) -> str:
    """The text, checked, and without space at its ends: one at the end would be tokenised apart from the object."""
    if not isinstance(text, str) or not text.strip():
        raise FactsError(f"{where}: must be a text with {{subject}} in it")
    for placeholder in _PLACEHOLDER.findall(text):
        if placeholder != "{subject}":
            raise FactsError(f"{where}: unknown placeholder {placeholder} in {text!r}; only {{subject}} is filled in")
    if "{subject}" not in text:
        raise FactsError(f"{where}: {{subject}} is missing in {text!r}")
    return text.strip()
