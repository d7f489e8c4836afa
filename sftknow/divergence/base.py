"""What the base model predicts: computed once, compared with every fine-tuned model of a grid."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sftknow.answers import DEFAULT_RULE, MatchRule, normalize
from sftknow.artifacts.divergence import SkippedFact
from sftknow.divergence.forward import (
    batches,
    first_token_logits,
    first_token_of,
    greedy,
    statement_ids,
)
from sftknow.divergence.options import Shown
from sftknow.divergence.selection import PromptChoice, Selection, skipped_fact
from sftknow.errors import MasteryDataError
from sftknow.models.limits import end_ids
from sftknow.progress import progress
from sftknow.prompts import prompt_ids, question_prompt

IN_MEMORY = 2**30
"""Bytes of base logits up to which they are kept in memory; beyond, they lie in a temporary file."""

NOT_NEAR = "answer not near the beginning of the base's completion"
"""Why a fact was left out (a key of ``skipped``)."""

DUMMY_WORDS = frozenset({"the", "a", "an"})
"""Words whose mass the paper re-normalises away (4.1 and Figure 3)."""


@dataclass(frozen=True, kw_only=True)
class BaseView:
    """What the base predicts for every fact that is kept. n facts, v rows of the base's output head."""

    choices: tuple[PromptChoice, ...]
    """The n facts."""
    prompts: tuple[str, ...]
    """The text each model is shown, without special tokens."""
    prompt_ids: tuple[tuple[int, ...], ...]
    """The same as token ids, with special tokens."""
    completions: tuple[str, ...]
    """The base's greedy completions."""
    answer_tokens: tuple[int, ...]
    """Id of the first token of each fact's object, as a continuation of its prompt."""
    dummy_tokens: tuple[int, ...]
    """Ids of the words in `DUMMY_WORDS`, with and without a space before them, in any case."""
    logits: Tensor
    """float32 on the CPU, n x v: the base's logits for the token after each prompt. In a file that the system maps
    into memory where they are large."""
    vocabulary: Mapping[str, int]
    """The tokenizer's vocabulary, token to id."""
    shown: Shown
    window: int
    batch_size: int
    headline: int
    """The bucket that summaries speak of."""
    skipped: tuple[SkippedFact, ...]
    """Facts left out so far."""


def starts_near(completion: str, head: str, answers: Sequence[str], rule: MatchRule) -> bool:
    """Whether an accepted answer is in a completion and starts within its head.

    Compared as `sftknow.answers.contains` compares: texts are normalised, an answer is found as a substring. An answer
    starts within the head if its first character does; the rest of it may lie beyond.

    Args:
        completion: the text generated.
        head: the beginning of it, decoded from the first few of the same tokens.
        answers: accepted answers.
        rule: how texts are normalised.
    """
    text = normalize(completion, rule)
    starts = [at for answer in answers if (at := text.find(normalize(answer, rule))) >= 0]
    return bool(starts) and min(starts) < len(normalize(head, rule))


def as_shown(tokenizer: Any, choice: PromptChoice, shown: Shown) -> tuple[str, list[int]]:
    """What a model is shown for a fact: the text, and its ids with special tokens."""
    if shown == "statement":
        return choice.statement, statement_ids(tokenizer, choice.statement)
    return question_prompt(choice.fact.question), prompt_ids(tokenizer, choice.fact.question)


def measure_base(
    model: Any,
    tokenizer: Any,
    selection: Selection,
    *,
    window: int = 3,
    prompt: Shown = "statement",
    batch_size: int = 64,
    rule: MatchRule = DEFAULT_RULE,
    in_memory: int = IN_MEMORY,
) -> BaseView:
    """Complete every prompt greedily, keep the facts whose answer starts early, and note their first-token logits.

    Kept is a fact if an accepted answer's first character lies within the text of the first ``window`` generated
    tokens ("near the beginning", paper 4.1). Up to ``window`` + the answer's own number of tokens are generated, so
    that an answer that starts in the last token of the window can still be seen whole.

    Args:
        model: the base, a transformers causal language model; left as it was found.
        tokenizer: its tokenizer.
        selection: from `select_prompts`.
        window: tokens within which an answer must start.
        prompt: what the base is shown. ``statement``: the paper (4.1) speaks of completions of a mapping template,
            which the base knows how to go on with. ``question`` shows the prompt of fine-tuning instead, whose tags
            the base never saw.
        batch_size: prompts at once. The logits do not depend on it beyond float32 rounding.
        rule: how answers are found; case-sensitive containment unless told otherwise.
        in_memory: bytes of logits up to which they are kept in memory.

    Raises:
        MasteryDataError: no fact of the headline bucket is kept.
        ModelError: the model gives NaN.
        ValueError: ``prompt``, ``window`` or ``batch_size`` is none.
    """
    if prompt not in ("statement", "question") or window < 1 or batch_size < 1:
        raise ValueError(f"prompt={prompt!r}, window={window}, batch_size={batch_size}")
    shown = [as_shown(tokenizer, choice, prompt) for choice in selection.choices]
    ids = [tokens for _, tokens in shown]
    generated = _complete(model, tokenizer, selection.choices, ids, window=window, batch_size=batch_size)

    def text_of(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    completions = [text_of(tokens) for tokens in generated]
    early = [
        starts_near(completions[i], text_of(generated[i][:window]), choice.fact.answers, rule)
        for i, choice in enumerate(selection.choices)
    ]
    far = [c for c, near in zip(selection.choices, early, strict=True) if not near]
    kept = [i for i, near in enumerate(early) if near]
    asked = sum(c.bucket == selection.headline for c in selection.choices)
    if sum(c.bucket == selection.headline for c in far) == asked:
        raise MasteryDataError(
            f"the base starts no answer within its first {window} tokens ({asked} facts of bucket "
            f"{selection.headline} tried); raise the window"
        )
    # Apart from the completions, and batched as every fine-tuned model will be: the same model then gives the same
    # bits, and its divergence is exactly 0.
    kept_ids = tuple(tuple(ids[i]) for i in kept)
    logits = _collect(model, kept_ids, batch_size, in_memory)
    vocabulary = tokenizer.get_vocab()
    dummies = [i for token, i in vocabulary.items() if token.lstrip("Ġ▁ ").lower() in DUMMY_WORDS]
    return BaseView(
        choices=tuple(selection.choices[i] for i in kept),
        prompts=tuple(shown[i][0] for i in kept),
        prompt_ids=kept_ids,
        completions=tuple(completions[i] for i in kept),
        answer_tokens=tuple(first_token_of(tokenizer, shown[i][0], selection.choices[i].fact.object) for i in kept),
        dummy_tokens=tuple(sorted(dummies)),
        logits=logits,
        vocabulary=vocabulary,
        shown=prompt,
        window=window,
        batch_size=batch_size,
        headline=selection.headline,
        skipped=(*selection.skipped, *(skipped_fact(c.fact, c.bucket, NOT_NEAR) for c in far)),
    )


def _complete(
    model: Any,
    tokenizer: Any,
    choices: Sequence[PromptChoice],
    ids: Sequence[Sequence[int]],
    *,
    window: int,
    batch_size: int,
) -> list[list[int]]:
    ends = end_ids(tokenizer, getattr(model, "generation_config", None))
    limits = [
        window + max(len(tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]) for answer in c.fact.answers)
        for c in choices
    ]
    generated: list[list[int]] = [[] for _ in choices]
    with progress(len(choices), "base completions", unit="facts") as bar:
        for batch in batches(ids, batch_size):
            outputs = greedy(model, [ids[i] for i in batch], [limits[i] for i in batch], ends)
            for i, tokens in zip(batch, outputs, strict=True):
                generated[i] = tokens
            bar.update(len(batch))
    return generated


def _collect(model: Any, ids: Sequence[Sequence[int]], batch_size: int, in_memory: int) -> Tensor:
    """All first-token logits in the order of the prompts, filled in place: there is never a second copy."""
    filled: Tensor | None = None
    for indices, logits_bv in first_token_logits(model, ids, batch_size):
        if filled is None:
            filled = _room_for(len(ids), logits_bv.shape[-1], in_memory)
        filled[indices] = logits_bv
    if filled is None:
        raise ValueError("no prompts")
    return filled


def _room_for(rows: int, columns: int, in_memory: int) -> Tensor:
    """An uninitialised float32 tensor, mapped to a nameless temporary file where it is larger than ``in_memory``."""
    if 4 * rows * columns <= in_memory:
        return torch.empty(rows, columns)
    with tempfile.TemporaryFile() as file:
        # The mapping keeps the file's space until it is dropped; the file has no name that could be left behind.
        return torch.from_numpy(np.memmap(file, dtype=np.float32, mode="w+", shape=(rows, columns)))
