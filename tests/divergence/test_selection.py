"""Which facts and statements are measured."""

from __future__ import annotations

import pytest

from sftknow.divergence.selection import NO_TALLIES, select_prompts
from sftknow.errors import MasteryDataError
from tests.divergence.models import STATEMENTS, fact, row


def test_each_topic_gets_its_own_best_template() -> None:
    rows = [
        row(fact("Onia"), (3, 9, 8)),
        row(fact("Tuland"), (3, 9, 10)),
        row(fact("Belmora", topic="P17"), (10, 9, 9)),
    ]
    selection = select_prompts(rows, STATEMENTS)
    assert selection.templates == {4: {"P36": 1, "P17": 0}}  # 18 of 20 twice in P36: the lower index
    assert [(c.fact.subject, c.template, c.statement) for c in selection.choices] == [
        ("Onia", 1, "Onia has the capital"),
        ("Tuland", 1, "Tuland has the capital"),
        ("Belmora", 0, "Belmora lies in"),
    ]
    assert selection.skipped == ()


def test_a_single_fact_does_not_decide_for_its_topic() -> None:
    selection = select_prompts([row(fact("Onia"), (10, 0, 5)), row(fact("Tuland"), (0, 2, 6))], STATEMENTS)
    assert selection.templates == {4: {"P36": 2}}


def test_rates_count_and_not_hits() -> None:
    # 4 of 4 beats 9 of 10; a template that was never sampled does not compete.
    assert select_prompts([row(fact("Onia"), (9, 4, 0), (10, 4, 0))], STATEMENTS).templates == {4: {"P36": 1}}


def test_a_grading_by_some_of_the_statements_will_do() -> None:
    # Statements 0 and 1 of three: the tallies end at the last one sampled.
    selection = select_prompts([row(fact("Onia"), (0, 7), (0, 10))], STATEMENTS)
    assert selection.templates == {4: {"P36": 1}}
    assert selection.choices[0].statement == "Onia has the capital"


def test_ties_go_to_the_lowest_index() -> None:
    assert select_prompts([row(fact("Onia"), (0, 5, 10), (10, 10, 20))], STATEMENTS).templates == {4: {"P36": 1}}
    # Equal as fractions though not as floats: 1/49 · 49 is not 1 in binary.
    assert select_prompts([row(fact("Onia"), (3, 1, 2), (147, 49, 98))], STATEMENTS).templates == {4: {"P36": 0}}
    assert select_prompts([row(fact("Onia"), (0, 0, 0))], STATEMENTS).templates == {4: {"P36": 0}}


def test_only_facts_of_the_bucket_and_the_split_take_part() -> None:
    rows = [
        row(fact("Onia"), (0, 0, 9)),
        row(fact("Tuland"), (10, 0, 0), bucket=3),
        row(fact("Belmora", split="dev"), (10, 0, 0)),
    ]
    selection = select_prompts(rows, STATEMENTS)
    assert [c.fact.subject for c in selection.choices] == ["Onia"]
    assert selection.templates == {4: {"P36": 2}}
    both = select_prompts(rows, STATEMENTS, buckets=(3, 4))
    assert both.templates == {3: {"P36": 0}, 4: {"P36": 2}}, "each bucket has its own best template"
    assert [(c.fact.subject, c.bucket, c.template) for c in both.choices] == [("Tuland", 3, 0), ("Onia", 4, 2)]
    assert both.headline == 4


def test_facts_without_template_detail_are_counted() -> None:
    selection = select_prompts(
        [row(fact("Onia")), row(fact("Tuland"), ()), row(fact("Zed"), (0, 0, 0), (0, 0, 0))], STATEMENTS
    )
    assert [c.fact.subject for c in selection.choices] == ["Onia"]
    assert [(s.fact_id, s.reason) for s in selection.skipped] == [
        ("P36/test/Tuland", NO_TALLIES),
        ("P36/test/Zed", NO_TALLIES),
    ]


def test_braces_in_a_subject_stay() -> None:
    selection = select_prompts([row(fact("{x} & {subject}"))], STATEMENTS)
    assert selection.choices[0].statement == "The capital of {x} & {subject} is"


def test_what_a_person_can_mend_is_one_line() -> None:
    with pytest.raises(MasteryDataError, match="no test facts in bucket 4"):
        select_prompts([row(fact("Onia"), bucket=1)], STATEMENTS)
    with pytest.raises(MasteryDataError, match="no tallies for single templates"):
        select_prompts([row(fact("Onia"), ())], STATEMENTS)
    with pytest.raises(
        MasteryDataError, match=r"P36/test/Onia was graded with 4 statement templates, but topic P36 has 3"
    ):
        select_prompts([row(fact("Onia"), (1, 2, 3, 4))], STATEMENTS)
    with pytest.raises(MasteryDataError, match="topic P50 has 0"):
        select_prompts([row(fact("Onia", topic="P50"))], STATEMENTS)
