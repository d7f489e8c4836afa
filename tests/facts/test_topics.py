from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sftknow.errors import FactsError
from sftknow.facts.topics import load_topics

IN_DOMAIN = ["P17", "P19", "P20", "P36", "P69", "P131", "P159", "P276", "P495", "P740"]
OUT_OF_DOMAIN = ["P112", "P127", "P170", "P175", "P176", "P26", "P40"]
OUT_OF_DOMAIN += ["P413", "P50", "P136", "P106", "P264", "P407", "P800"]
GOOD: dict[str, Any] = {"question": "Who governs {subject}?", "templates": ["{subject} is governed by "]}


def own(tmp_path: Path, table: Any) -> Path:
    file = tmp_path / "topics.json"
    file.write_text(json.dumps(table), encoding="utf-8")
    return file


def test_the_papers_topics_in_their_order() -> None:
    topics = load_topics()
    assert list(topics) == IN_DOMAIN + OUT_OF_DOMAIN
    assert [t.relation for t in topics.values() if t.domain == "in-domain"] == IN_DOMAIN
    assert {len(t.templates) for t in topics.values()} == {21}
    assert sum(len(t.templates) for t in topics.values()) == 504
    assert all(name == topic.relation for name, topic in topics.items())
    assert topics["P36"].question == "What is the capital of {subject}?"
    assert topics["P36"].templates[1] == "When considering the capital of {subject}, it is"


def test_own_topics_are_merged(tmp_path: Path) -> None:
    file = own(tmp_path, {"P6": GOOD, "P36": GOOD | {"domain": "out-of-domain"}})
    topics = load_topics(file)
    assert list(topics) == [*IN_DOMAIN, *OUT_OF_DOMAIN, "P6"]
    assert topics["P6"].domain == "in-domain"
    assert topics["P6"].templates == ("{subject} is governed by",)
    assert topics["P36"].domain == "out-of-domain"
    assert topics["P36"].question == "Who governs {subject}?"


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (GOOD | {"question": "Who governs it?"}, r"P6, question: \{subject\} is missing"),
        (GOOD | {"question": "{subject} or {subject}?"}, "exactly once"),
        (GOOD | {"question": None}, "P6, question: must be a text"),
        (GOOD | {"templates": ["{subject} is", "It is"]}, r"P6, template 2: \{subject\} is missing in 'It is'"),
        (GOOD | {"templates": ["{subject} of {object}"]}, r"template 1: unknown placeholder \{object\}"),
        (GOOD | {"templates": ["{subjcet} is"]}, r"unknown placeholder \{subjcet\}"),
        (GOOD | {"templates": [7]}, "template 1: must be a text"),
        (GOOD | {"templates": []}, "at least one"),
        (GOOD | {"templates": "{subject} is"}, "must be a list"),
        (GOOD | {"domain": "elsewhere"}, "not 'elsewhere'"),
        ([], "P6: a topic must be an object"),
    ],
)
def test_bad_topics(tmp_path: Path, row: Any, complaint: str) -> None:
    file = own(tmp_path, {"P6": row})
    with pytest.raises(FactsError, match=complaint) as caught:
        load_topics(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"[]", "must be an object"),
        (b"{", "write UTF-8 JSON"),
        (b'{"P6": "\xe9"}', "write UTF-8 JSON"),
        (b'{"P6": {}, "P6": {}}', "'P6' stands there twice"),
        (b'{"a/b": {}}', "slash"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, complaint: str) -> None:
    file = tmp_path / "topics.json"
    file.write_bytes(content)
    with pytest.raises(FactsError, match=complaint):
        load_topics(file)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FactsError, match=r"nowhere.json cannot be read: No such file"):
        load_topics(tmp_path / "nowhere.json")
