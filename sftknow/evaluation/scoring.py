"""The documents of a task and the score of one answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets

from sftknow.answers import contains, contains_word, exact_match
from sftknow.prompts import question_prompt
from sftknow.records import GradedFact

READINGS: Mapping[str, Callable[[str, Sequence[str]], bool]] = {
    "acc": contains,
    "acc_word": contains_word,
    "exact_match": exact_match,
}
"""The three readings of a correct answer, by their names in `sftknow.artifacts.scores.METRICS`."""

_FEATURES = datasets.Features(
    {
        "fact_id": datasets.Value("string"),
        "topic": datasets.Value("string"),
        "question": datasets.Value("string"),
        "prompt": datasets.Value("string"),
        "object": datasets.Value("string"),
        "answers": datasets.List(datasets.Value("string")),
        "placeholder": datasets.Value("bool"),
    }
)


def documents(rows: Sequence[GradedFact], prefix: str) -> datasets.Dataset:
    """What lm-eval iterates over: one row a question.

    Args:
        rows: the facts of one bucket.
        prefix: stands before every prompt; see `sftknow.evaluation.prefix`.

    Returns:
        For an empty bucket a single row marked ``placeholder``, because lm-eval breaks on a task without questions.
        `process_results` gives it no score.
    """
    found = [
        {
            "fact_id": row.fact.id,
            "topic": row.fact.topic,
            "question": row.fact.question.strip(),
            "prompt": prefix + question_prompt(row.fact.question),
            "object": row.fact.object,
            "answers": list(row.fact.answers),
            "placeholder": False,
        }
        for row in rows
    ]
    if not found:
        empty = {"fact_id": "", "topic": "", "question": "?", "object": "", "answers": []}
        found = [{**empty, "prompt": prefix + question_prompt("?"), "placeholder": True}]
    return datasets.Dataset.from_list(found, features=_FEATURES)


def process_results(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Score one answer: lm-eval's ``process_results``.

    Args:
        document: a row of `documents`.
        results: the model's output, alone in its list.

    Returns:
        ``acc`` (containment with synonyms, the paper's), ``acc_word`` and ``exact_match``, each 0 or 1; nothing for a
        placeholder, whereby lm-eval's group leaves the bucket out and says so.
    """
    if document["placeholder"]:
        return {}
    return {name: float(correct(results[0], document["answers"])) for name, correct in READINGS.items()}
