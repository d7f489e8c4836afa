"""Rows of SFT data as people have them, and the texts by which a model is asked the same."""

from __future__ import annotations

from typing import Any

import pytest

from sftknow.answers import Matcher
from sftknow.selecting.examples import (
    RULE,
    Example,
    RowError,
    are_labels,
    asked_messages,
    asked_text,
    from_row,
    shot_sets,
    solved_before,
)
from sftknow.selecting.known import fifths, heard

USER, PARIS = {"role": "user", "content": "Capital of France?"}, {"role": "assistant", "content": "Paris."}


def example(prompt: str, completion: str, identity: str = "1") -> Example:
    found = from_row({"prompt": prompt, "completion": completion}, identity)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("row", "text", "gap", "messages"),
    [
        ({"prompt": "Q: x?\nA:", "completion": " y"}, "Q: x?\nA:", " ", 1),
        ({"prompt": "Q: x?\nA:", "completion": "y"}, "Q: x?\nA:", " ", 1),
        ({"prompt": "Q: x?\nA: ", "completion": "y"}, "Q: x?\nA:", " ", 1),
        ({"prompt": "x?", "completion": "y"}, "x?", "\n", 1),
        ({"prompt": "x?\n\n", "completion": "y"}, "x?", "\n\n", 1),
        ({"messages": [USER, PARIS]}, "User: Capital of France?\nAssistant:", " ", 1),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Capital of France?"}]}, PARIS]},
            "User: Capital of France?\nAssistant:",
            " ",
            1,
        ),
        ({"prompt": [USER], "completion": [PARIS]}, "User: Capital of France?\nAssistant:", " ", 1),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]},
            "User: Hi\nAssistant:",
            " ",
            1,
        ),
        ({"messages": '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'}, None, " ", 1),
        ({"messages": [{"role": "system", "content": "Be brief."}, USER, PARIS]}, None, " ", 2),
    ],
)
def test_layouts(row: dict[str, Any], text: str | None, gap: str, messages: int) -> None:
    found = from_row(row, "7")
    assert found is not None
    assert text is None or found.text == text
    assert (found.gap, len(found.messages)) == (gap, messages)
    assert found.cells == row


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "x", "answer": "y"}, "there is 'question', 'answer', not one of prompt and completion"),
        ({"prompt": "x", "completion": None}, "not one of prompt and completion"),
        ({"messages": [USER]}, "the last of the messages is the user's"),
        ({"messages": "hello"}, "must be a list of messages"),
        ({"messages": []}, "must be a list of messages"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "has no role and content that are texts"),
        ({"messages": [USER, {"role": "assistant", "content": [{"type": "image"}]}]}, "that are texts"),
        ({"prompt": "x", "completion": 4}, "the prompt must be a list of messages"),
        ({"prompt": [USER], "completion": [PARIS, USER]}, "the completion has several messages"),
    ],
)
def test_rows_that_are_no_examples(row: dict[str, Any], words: str) -> None:
    with pytest.raises(RowError) as caught:
        from_row(row, "1")
    assert words in str(caught.value)


def test_an_empty_answer_is_none() -> None:
    assert from_row({"prompt": "x", "completion": " \u200b\n"}, "1") is None


def test_short_is_what_can_be_matched() -> None:
    assert example("x", " New York City.").is_short(5)
    assert example("x", " New York City.").answer == "New York City"
    assert not example("x", "one two three four five six").is_short(5)
    assert not example("x", "one\ntwo").is_short(5)
    assert not example("x", "長" * 61).is_short(5)
    assert example("x", "...").answer == "..."  # nothing but a stop stays what it is


def test_solved_examples_never_give_the_answer_away() -> None:
    found = [example(f"q{i}:", f" {'abcdefghijkl'[i % 12]}", str(i)) for i in range(24)]
    sets = shot_sets(found, [bytes([i]) for i in range(24)], 4)
    assert len(sets) == 2
    assert not {e.id for e in sets[0]} & {e.id for e in sets[1]}
    for one in found:
        for shots in sets:
            solved = solved_before(one, shots, 4, labels=are_labels(found))
            assert len(solved) == 4
            assert one.answer not in {other.answer for other in solved}
            assert len({other.answer for other in solved}) == 4


def test_labels_are_all_shown() -> None:
    found = [example(f"text {i}:", ["good", "bad"][i % 2], str(i)) for i in range(20)]
    assert are_labels(found)
    (one, _) = shot_sets(found, [bytes([i]) for i in range(20)], 4)
    assert {e.answer for e in solved_before(found[19], one, 4, labels=True)} == {"good", "bad"}
    assert shot_sets([], [], 4) == []


def test_texts_and_turns() -> None:
    asked, solved = example("Capital of France?", "Paris"), [example("Capital of Italy?", "Rome", "2")]
    assert asked_text(asked, solved) == "Capital of Italy?\nRome\n\nCapital of France?\n"
    assert asked_text(example("Q: x\nA:", " y"), []) == "Q: x\nA:"
    with_system = from_row({"messages": [{"role": "system", "content": "s"}, USER, PARIS]}, "3")
    assert with_system is not None
    roles = [message["role"] for message in asked_messages(with_system, [with_system, *solved])]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]


def test_what_a_model_says() -> None:
    matcher = Matcher(("Paris",), RULE)
    said = heard([" Lyon.\nParis", " lyon", " Lyon", "  ", " PARIS!", " Parisian"], matcher, one_line=True)
    assert (said.hits, said.tries, said.text, said.count) == (1, 6, "Lyon.", 3)
    assert not said.surely
    assert heard([" Lyon"] * 18 + [" x", ""], matcher, one_line=True).surely
    assert heard([" It is\nParis"], matcher, one_line=False).hits == 1
    assert not heard([""] * 10, matcher, one_line=True).surely


def test_fifths() -> None:
    assert fifths([float(i) for i in range(10)]) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert fifths([1.0, 1.0, 1.0]) == [2, 2, 2]  # equal ones are in one fifth
    assert fifths([3.0]) == [2]
    assert fifths([]) == []
    assert fifths([-2.0, -1.0]) == [1, 3]
