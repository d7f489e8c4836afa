"""From facts to token ids: what the model is trained on, checked example by example.

An example is ``prompts.prompt_ids`` followed by the answer's ids, so the prompt of training is, id by id, the prompt of
evaluation. The answer is appendix A's `` {answer} <eos>``, its space before the end token included: the paper trained
on that space, and matching by containment does not mind a model that learns to say it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftknow.errors import ModelError, RecipeError
from sftknow.prompts import answer_text, prompt_ids, prompt_text
from sftknow.records import Fact

IGNORED = -100
"""The label of a token that does not count in the loss."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One training sequence of T tokens."""

    input_ids: list[int]
    """(T,) prompt, answer, end token."""
    labels: list[int]
    """(T,) the same ids, `IGNORED` where a token does not count in the loss."""
    weight: float = 1.0
    """Factor of the losses of its tokens; they are still divided by the number of tokens."""


def chat_template() -> str:
    """The Jinja source of appendix A's prompt, as transformers' chat templates are written.

    Rendered and tokenised without further special tokens it gives the ids of `encode`.
    """
    return Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8").rstrip("\n")


def answer_ids(tokenizer: Any, question: str, answer: str) -> list[int]:
    """Token ids of the answer and the end token, as they follow the prompt.

    Where the prompt's ids begin those of the whole text, the answer's are the rest of them: so it is with all usual
    tokenizers, also with those that would put a space of their own before an answer tokenised alone (Llama 2).
    Otherwise prompt and answer are tokenised apart, since the prompt must be the one that evaluation shows.

    Args:
        tokenizer: a transformers tokenizer with an end token.
        question: the question's text.
        answer: the answer's text.
    """
    alone = prompt_ids(tokenizer, question)
    text = prompt_text(tokenizer, question) + answer_text(answer, tokenizer.eos_token)
    whole: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    if whole[: len(alone)] == alone and whole[-1] == tokenizer.eos_token_id:
        return whole[len(alone) :]
    apart: list[int] = tokenizer(answer_text(answer, ""), add_special_tokens=False)["input_ids"]
    return [*apart, tokenizer.eos_token_id]


def encode(
    tokenizer: Any, facts: Sequence[Fact], *, answer_only_loss: bool, max_length: int, positions: int | None = None
) -> list[Example]:
    """The training examples of some facts, in their order.

    Args:
        tokenizer: a transformers tokenizer with an end token.
        facts: whose question and object are used.
        answer_only_loss: mask the prompt.
        max_length: longest allowed example in tokens.
        positions: longest sequence that the model can take; None for no limit.

    Raises:
        ModelError: a fact without answer tokens, one whose text holds a BOS or EOS token, or one that is too long for
            the model.
        RecipeError: a fact that is longer than `max_length`.
    """
    examples = []
    for fact in facts:
        prompt = prompt_ids(tokenizer, fact.question)
        answer = answer_ids(tokenizer, fact.question, fact.object)
        _check(tokenizer, fact, prompt, answer)
        ids = [*prompt, *answer]
        if len(ids) > max_length:
            raise RecipeError(f"fact {fact.id} has {len(ids)} tokens and max_length is {max_length}; raise max_length")
        if positions is not None and len(ids) > positions:
            raise ModelError(f"fact {fact.id} has {len(ids)} tokens and the model takes {positions}; leave it out")
        labels = [IGNORED] * len(prompt) + answer if answer_only_loss else list(ids)
        examples.append(Example(input_ids=ids, labels=labels))
    return examples


def _check(tokenizer: Any, fact: Fact, prompt: Sequence[int], answer: Sequence[int]) -> None:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if not fact.object.strip() or len(answer) < 2:
        raise ModelError(f"fact {fact.id} has no answer tokens with this tokenizer; give it an object or leave it out")
    # GPT-2 and its kin have one token for both ends, which then stands once in the prompt and once in the answer.
    stray = (bos is not None and prompt.count(bos) != 1) or answer.count(eos) != 1 or answer[-1] != eos
    stray = stray or (bos != eos and (eos in prompt or bos in answer))
    if stray:
        raise ModelError(f"the text of fact {fact.id} holds a special token of the tokenizer; leave the fact out")
