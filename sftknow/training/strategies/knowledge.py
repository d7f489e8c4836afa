"""What the base was found to know, as text: statements that it completes by itself."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from sftknow.errors import MasteryDataError, RecipeError
from sftknow.prompts import completion_ids, text_ids

if TYPE_CHECKING:
    from sftknow.records import Fact, GradedFact
    from sftknow.training.examples import Example
    from sftknow.training.recipe import SFTRecipe
    from sftknow.training.strategies.base import Scene


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """The graded training facts, and their statements."""

    rows: Sequence[GradedFact]
    statements: Callable[[Fact], Sequence[str]]
    """The statements about a fact's subject, in the order of ``Mastery.template_hits``, without the object."""


def knowledge_of(scene: Scene, name: str) -> Knowledge:
    """What is known of the base. Raises RecipeError where the training was given none: other tasks, or facts alone."""
    if scene.knowledge is None:
        raise RecipeError(
            f"the strategy {name} needs graded facts: what the base knows of them; train on facts of a graded data set"
        )
    return scene.knowledge


def known_statements(
    scene: Scene, name: str, *, known: float, count: int, without: Collection[str], object_only: bool
) -> list[Example]:
    """Statements that the base completes by itself, each with its object, as training sequences.

    First one statement of each fact, the one completed most often, facts in an order drawn by the seed; then the second
    of each, and so on.

    Args:
        scene: of the training.
        name: of the strategy, for messages.
        known: least R of a fact, and least share of a statement's own continuations that held an answer.
        count: how many.
        without: ids of facts that are left out.
        object_only: count the object's tokens alone; otherwise all tokens.

    Raises:
        RecipeError: there are no graded facts.
        MasteryDataError: there are fewer such statements.
    """
    knowledge = knowledge_of(scene, name)
    rows = [row for row in knowledge.rows if row.mastery.rate >= known and row.fact.id not in without]
    rows.sort(key=lambda row: row.fact.id)
    random.Random(f"{scene.seed}/{name}/statements").shuffle(rows)
    found = list(islice(_encoded(scene.tokenizer, scene.recipe, knowledge, rows, known, object_only), count))
    if len(found) < count:
        raise MasteryDataError(
            f"the strategy {name} wants {count} statements that the base completes by itself (R of at least {known:g}) "
            f"and there are {len(found)} of the graded training facts beside those trained on; ask for fewer, or lower "
            "its option known"
        )
    return found


def _encoded(
    tokenizer: Any,
    recipe: SFTRecipe,
    knowledge: Knowledge,
    rows: Sequence[GradedFact],
    known: float,
    object_only: bool,
) -> Iterator[Example]:
    from sftknow.training.examples import IGNORED, Example

    ranked = [(row.fact, _by_hits(row, known)) for row in rows]
    for place in range(max((len(templates) for _, templates in ranked), default=0)):
        for fact, templates in ranked:
            if place >= len(templates):
                continue
            statements = knowledge.statements(fact)
            if templates[place] >= len(statements):
                raise MasteryDataError(
                    f"{fact.id} was graded with more statements than its topic {fact.topic} has; give the topics file "
                    "that it was graded with"
                )
            statement = statements[templates[place]]
            prompt = text_ids(tokenizer, statement)
            answer = completion_ids(tokenizer, statement, f" {fact.object}")[:-1]  # a statement may go on
            if len(prompt) + len(answer) <= recipe.max_length:
                labels = [IGNORED] * len(prompt) + answer if object_only else [*prompt, *answer]
                yield Example(input_ids=[*prompt, *answer], labels=labels)


def _by_hits(row: GradedFact, known: float) -> list[int]:
    """Its statements that were completed often enough, most often first."""
    pairs = zip(row.mastery.template_hits, row.mastery.template_tries, strict=True)
    shares = {place: hits / tries for place, (hits, tries) in enumerate(pairs) if tries and hits / tries >= known}
    return sorted(shares, key=lambda place: (-shares[place], place))
