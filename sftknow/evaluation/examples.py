"""Solved questions before a question: they show a base model, which never saw the prompt, what an answer looks like."""

from __future__ import annotations

import random
from collections.abc import Sequence

from sftknow.answers import normalize
from sftknow.errors import MasteryDataError
from sftknow.prompts import question_prompt
from sftknow.records import Fact

FEWSHOT_SEED = 1234
"""lm-eval's own default."""
EXAMPLE_END = "\n"
"""Ends the answer of an example, and so an answer behind examples."""


def examples(fact: Fact, training: Sequence[Fact], count: int, seed: int) -> list[Fact]:
    """Training facts to show before a question: another draw for each, the same whatever else is asked.

    Facts about the same subject are left out, and facts that share an answer, whose example would give it away.

    Args:
        fact: which is asked for.
        training: the graded training facts, in an order that is the same everywhere.
        count: how many.
        seed: of the draw.

    Raises:
        MasteryDataError: there are not that many.
    """
    subject, answers = normalize(fact.subject), {normalize(answer) for answer in fact.answers}
    chosen: list[Fact] = []
    # One place after the other: shuffling all of a large data set for every question takes minutes.
    draw, left = random.Random(f"{seed}/{fact.id}"), dict[int, int]()
    for size in range(len(training), 0, -1):
        if len(chosen) == count:
            break
        place = draw.randrange(size)
        other = training[left.get(place, place)]
        left[place] = left.get(size - 1, size - 1)
        if normalize(other.subject) != subject and not answers & {normalize(answer) for answer in other.answers}:
            chosen.append(other)
    if len(chosen) < count:
        raise MasteryDataError(
            f"{count} examples are asked for before {fact.question!r}, and {len(chosen)} training facts are about "
            "other subjects with other answers; ask for fewer"
        )
    return chosen


def with_examples(prefix: str, shown: Sequence[Fact], question: str) -> str:
    """The prompt's text: what stands before every prompt, the examples with an empty line after each, the question."""
    solved = (f"{question_prompt(fact.question)} {fact.object.strip()}{2 * EXAMPLE_END}" for fact in shown)
    return prefix + "".join(solved) + question_prompt(question)
