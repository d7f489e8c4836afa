"""Greedy answers to many questions, batch by batch, as lm-eval's ``hf`` models give them.

The same batches (longest prompt first), the same padding, the same call of ``generate`` and the same cutting of the
text as in ``lm_eval.models.huggingface.HFLM.generate_until`` of lm-eval 0.4.13, so that the numbers agree to the last
digit in every dtype. What is spared: prompts are tokenised once for any number of models, and no text is decoded at
every step to look for stop strings, of which there are none but the end token.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from sftknow.artifacts.journal import Journal
from sftknow.dependencies import needs
from sftknow.errors import ModelError
from sftknow.evaluation.greedy import MAX_NEW_TOKENS, greedy

with needs("lm_eval"):
    from lm_eval.models.utils import configure_pad_token, resolve_max_length


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B prompts of at most T tokens, padded on the left."""

    places: tuple[int, ...]
    """(B,) where the prompts stand in the order of the questions."""
    input_ids: torch.Tensor
    """(B, T) int64 on the CPU."""
    attention_mask: torch.Tensor
    """(B, T) int64, 0 on padding."""


class Said(NamedTuple):
    """One answer. A journal keeps it as a list."""

    text: str
    ended: bool
    """Whether it ended by itself: an end token came before the tokens of an answer were used up."""


def padded_tokenizer(tokenizer: Any, config: Any) -> Any:
    """The tokenizer with a padding token: a copy where it has none, as the caller's stays as it was."""
    if tokenizer.pad_token is None:
        tokenizer = configure_pad_token(copy.deepcopy(tokenizer), model_config=config)
    return tokenizer


def make_batches(prompts: Sequence[str], tokenizer: Any, *, batch_size: int, config: Any) -> list[Batch]:
    """Tokenise prompts and put them into batches.

    Args:
        prompts: with BOS written out (`sftknow.prompts.prompt_text`).
        tokenizer: with a padding token.
        batch_size: prompts a batch.
        config: the model's; prompts that would not leave room for an answer are cut on the left, as lm-eval does it.

    Raises:
        ModelError: the model takes no more tokens than an answer has.
    """
    room = resolve_max_length(config, tokenizer) - MAX_NEW_TOKENS
    if room < 1:
        raise ModelError(f"the model takes {room + MAX_NEW_TOKENS} tokens, which leaves no room for a question")
    ids = [row[-room:] for row in tokenizer(list(prompts), add_special_tokens=False)["input_ids"]] if prompts else []
    order = sorted(range(len(ids)), key=lambda place: (-len(ids[place]), prompts[place]))
    batches = []
    for start in range(0, len(order), batch_size):
        places = tuple(order[start : start + batch_size])
        width = max(len(ids[place]) for place in places)
        rows = [[tokenizer.pad_token_id] * (width - len(ids[place])) + ids[place] for place in places]
        masks = [[0] * (width - len(ids[place])) + [1] * len(ids[place]) for place in places]
        batches.append(Batch(places=places, input_ids=torch.tensor(rows), attention_mask=torch.tensor(masks)))
    return batches


def answer(
    model: Any, tokenizer: Any, batches: Sequence[Batch], *, journal: Journal, tick: Callable[[int], object]
) -> list[Said]:
    """The model's answers in the order of the prompts.

    Args:
        model: a transformers causal LM in eval mode, wherever it is and in whatever dtype.
        tokenizer: with a padding token.
        batches: of `make_batches`.
        journal: batches that it knows are not asked again.
        tick: gets the number of answers after each batch.

    Raises:
        ModelError: the model has no end token.
    """
    outputs: dict[int, Said] = {}
    end = tokenizer.decode(tokenizer.eos_token_id) if tokenizer.eos_token_id is not None else ""
    with greedy(model, tokenizer), torch.inference_mode():
        for number, batch in enumerate(batches):
            kept = journal.outputs(number)
            said = _generate(model, tokenizer, batch, end) if kept is None else [Said(*entry) for entry in kept]
            if kept is None:
                journal.save(number, said)
            outputs.update(zip(batch.places, said, strict=True))
            tick(len(said))
    return [outputs[place] for place in range(len(outputs))]


def _generate(model: Any, tokenizer: Any, batch: Batch, end: str) -> list[Said]:
    width = batch.input_ids.shape[1]
    output = model.generate(
        input_ids=batch.input_ids.to(model.device),
        attention_mask=batch.attention_mask.to(model.device),
        max_length=width + MAX_NEW_TOKENS,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        use_cache=True,
    )
    rows, ends = output[:, width:].tolist(), set(model.generation_config.eos_token_id)  # `greedy` set them
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    return [
        Said(text.split(end)[0] if end else text, not ends.isdisjoint(row))
        for text, row in zip(texts, rows, strict=True)
    ]
