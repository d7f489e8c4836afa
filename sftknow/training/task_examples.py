"""Training on rows of prompt and completion, for tasks other than closed-book questions (the paper's Table 5).

The prompt's ids are those that lm-eval feeds for the same text: the tokenizer's own special tokens, and none where it
adds none. So a model is asked in evaluation what it was shown in training.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sftknow.artifacts.files import digest
from sftknow.errors import ModelError, RecipeError
from sftknow.prompts import completion_ids, text_ids
from sftknow.records import TaskExample
from sftknow.training.examples import IGNORED, Example
from sftknow.training.train import TrainingSet


def encode_rows(
    tokenizer: Any,
    rows: Iterable[TaskExample],
    *,
    size: int | None,
    answer_only_loss: bool,
    max_length: int,
    positions: int | None = None,
) -> TrainingSet:
    """The first rows that fit, as training sequences.

    A row that is too long is left out, never cut, and the next one takes its place; the record counts them.

    Args:
        tokenizer: a transformers tokenizer with an end token.
        rows: in the order of the draw.
        size: how many to take; None for all that fit.
        answer_only_loss: mask the prompt.
        max_length: longest allowed example in tokens.
        positions: longest sequence that the model can take; None for no limit.

    Raises:
        RecipeError: fewer rows fit than were asked for.
        ModelError: a row's text holds the end token of the tokenizer.
    """
    limit = max_length if positions is None else min(max_length, positions)
    examples: list[Example] = []
    taken: list[TaskExample] = []
    too_long = seen = 0
    for row in rows:
        if len(taken) == size:
            break
        seen += 1
        prompt = text_ids(tokenizer, row.prompt)
        answer = completion_ids(tokenizer, row.prompt, row.completion)
        if tokenizer.eos_token_id in answer[:-1]:
            raise ModelError(f"the text of row {row.id} holds the tokenizer's end token; take the row out of the data")
        if len(prompt) + len(answer) > limit:
            too_long += 1
            continue
        labels = [IGNORED] * len(prompt) + answer if answer_only_loss else [*prompt, *answer]
        examples.append(Example(input_ids=[*prompt, *answer], labels=labels))
        taken.append(row)
    if not taken or (size is not None and len(taken) < size):
        raise RecipeError(
            f"{size or 'all'} training rows were asked for and {len(taken)} of {seen} fit into {limit} tokens"
            + (f" ({too_long} are longer); raise max_length or ask for fewer" if too_long else "; ask for fewer")
        )
    return TrainingSet(
        examples=examples,
        record={
            "size": len(taken),
            "bucket": None,
            "fact_ids": [],
            "rows": [row.id for row in taken],
            "rows_too_long": too_long,
            "data_sha256": digest([[row.prompt, row.completion] for row in taken]),
        },
    )
