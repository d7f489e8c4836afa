from __future__ import annotations

import pickle

import pytest
from hypothesis import given, strategies as st

from sftknow.facts.prompts import Statements, question_for, statements_for, subject_of
from sftknow.facts.topics import load_topics

TOPICS = load_topics()


def test_question_and_statements() -> None:
    topic = TOPICS["P40"]
    assert question_for(topic, "Bo O'Neil") == "Who is Bo O'Neil’s child?"
    statements = statements_for(TOPICS["P19"], "Bo O'Neil")
    assert len(statements) == 21
    assert statements[0] == "Bo O'Neil was born in"
    assert statements[5] == "Bo O'Neil’s life began in"


def test_a_subject_with_braces_is_filled_in_once() -> None:
    assert statements_for(TOPICS["P19"], "{subject} {0}")[0] == "{subject} {0} was born in"


@given(st.sampled_from(sorted(TOPICS)), st.text(min_size=1).map(str.strip).filter(bool))
def test_subject_comes_back(relation: str, subject: str) -> None:
    topic = TOPICS[relation]
    assert subject_of(topic, question_for(topic, subject)) == subject


def test_apostrophes_of_the_template_are_folded_and_those_of_the_subject_kept() -> None:
    assert subject_of(TOPICS["P40"], "Who is Ma’at's child?") == "Ma’at"
    assert subject_of(TOPICS["P40"], "Who is Ma'at’s child?") == "Ma'at"


@pytest.mark.parametrize(
    "question", ["", "Who is ?", "Who is's child?", "Who is 's child?", "Whose is Ann's child?", "Who is Ann's child"]
)
def test_other_questions_have_no_subject(question: str) -> None:
    assert subject_of(TOPICS["P40"], question) is None


def test_statements_that_are_filled_in_when_asked_for() -> None:
    lazy, filled = Statements(TOPICS["P19"], "Bo O'Neil"), statements_for(TOPICS["P19"], "Bo O'Neil")
    assert len(lazy) == len(filled) == 21
    assert tuple(lazy) == filled
    assert (lazy[-1], lazy[3:5]) == (filled[-1], filled[3:5])
    with pytest.raises(IndexError):
        lazy[21]
    assert pickle.loads(pickle.dumps(lazy)) == lazy
