"""The first batch as a person can read it: what the model is shown, and which of it counts in the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from sftknow.models.limits import most_positions
from sftknow.models.loading import load_config, load_tokenizer
from sftknow.records import ModelRef
from sftknow.training.examples import IGNORED, Example
from sftknow.training.train import TrainingSet


def marked(tokenizer: Any, example: Example) -> str:
    """The text of an example on one line, ``[[…]]`` around every stretch of tokens that counts in the loss."""
    parts = []
    pairs = zip(example.input_ids, example.labels, strict=True)
    for counts, stretch in groupby(pairs, key=lambda pair: pair[1] != IGNORED):
        text = tokenizer.decode([token for token, _ in stretch], clean_up_tokenization_spaces=False)
        text = text.replace("\n", "\\n")
        parts.append(f"[[{text}]]" if counts else text)
    return "".join(parts)


def show_batch(tokenizer: Any, examples: Sequence[Example], batch_size: int) -> str:
    """The examples behind the first update, each with its numbers.

    Args:
        tokenizer: that made them.
        examples: in training order.
        batch_size: examples of an update.
    """
    first = examples[:batch_size]
    counted = [sum(label != IGNORED for label in example.labels) for example in first]
    lines = [
        f"first batch: {len(first)} of {len(examples)} examples, {sum(counted)} of "
        f"{sum(len(example.input_ids) for example in first)} tokens count in the loss; [[these]] do"
    ]
    for place, (example, count) in enumerate(zip(first, counted, strict=True), start=1):
        lines.append(f"{place}. ({count} of {len(example.input_ids)} tokens) {marked(tokenizer, example)}")
    return "\n".join(lines)


def preview(base: ModelRef, encoded: Callable[[Any, int | None], TrainingSet], batch_size: int) -> str:
    """The first batch of a training on this base, made as the training makes it; no weights are read.

    Args:
        base: the model.
        encoded: as for `sftknow.training.train.fine_tune_on`.
        batch_size: examples of an update.

    Raises:
        ModelError: the base has no tokenizer or no configuration, or a fact has no answer tokens.
    """
    tokenizer = load_tokenizer(base)
    return show_batch(tokenizer, encoded(tokenizer, most_positions(load_config(base))).examples, batch_size)
