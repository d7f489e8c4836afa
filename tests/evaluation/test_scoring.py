"""Documents and the score of one answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sftknow.artifacts.mastery_data import MasteryData
from sftknow.evaluation.scoring import documents, process_results
from sftknow.prompts import question_prompt


def document(*answers: str, placeholder: bool = False) -> dict[str, Any]:
    return {"answers": list(answers), "placeholder": placeholder}


@pytest.mark.parametrize(
    ("output", "answers", "expected"),
    [
        (" Paris", ("Paris",), (1, 1, 1)),
        (" the Paris.", ("Paris",), (1, 1, 1)),
        (" Romania", ("Oman",), (0, 0, 0)),
        (" Romania, Oman", ("Oman",), (1, 1, 0)),
        (" Newark", ("New",), (1, 0, 0)),
        (" not Mark Twain", ("Mark Twain",), (1, 1, 0)),
        (" St. Petersburg", ("St. Petersburg",), (1, 1, 1)),
        (" South Korea", ("Republic of Korea", "South Korea"), (1, 1, 1)),
        ("", ("Paris",), (0, 0, 0)),
    ],
)
def test_process_results(output: str, answers: tuple[str, ...], expected: tuple[int, int, int]) -> None:
    scores = process_results(document(*answers), [output])
    assert (scores["acc"], scores["acc_word"], scores["exact_match"]) == expected


def test_placeholder_has_no_score() -> None:
    assert process_results(document(placeholder=True), ["anything"]) == {}


def test_bucket_as_documents(tiny_dataset: Path) -> None:
    rows = MasteryData(tiny_dataset).bucket("test", 2)
    found = documents(rows, "<s>")
    assert found["fact_id"] == [row.fact.id for row in rows]
    assert found["prompt"] == ["<s>" + question_prompt(row.fact.question) for row in rows]
    assert found["answers"] == [list(row.fact.answers) for row in rows]
    assert not any(prompt.endswith(" ") for prompt in found["prompt"])
    assert documents([], "<s>")["placeholder"] == [True]
