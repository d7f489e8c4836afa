"""Running a causal language model for its next token: loading, prompts as ids, first-token logits, greedy completion.

Shapes: b rows of a batch, t tokens of its longest prompt, v vocabulary entries.

Batches are padded on the left, so that the last column is every row's last token, with position ids counted from each
row's own first token. The output head is applied to that column only, where the architecture offers it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sftknow.errors import ModelError
from sftknow.models.forward import cache_name, takes
from sftknow.models.loading import load_model, load_tokenizer
from sftknow.records import ModelRef


def load_for_logits(ref: ModelRef, device: str = "auto") -> tuple[Any, Any]:
    """Load a model, ready to run, and its tokenizer: (model, tokenizer).

    Args:
        ref: folder or Hub id. Loaded in ``ref.dtype``, in float32 where that is None: rounding of bf16 logits is as
            large as the divergences of lightly fine-tuned models.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``…

    Raises:
        ModelError: it cannot be read, lacks weights, or its dtype is none.
        DeviceError: the device is not there.
    """
    return load_model(ref, dtype=ref.dtype or "float32", device=device), load_tokenizer(ref)


def statement_ids(tokenizer: Any, statement: str) -> list[int]:
    """Ids of a text that the model is to continue, with the tokenizer's own special tokens in front (one BOS).

    An EOS that a tokenizer puts behind is taken away: nothing is continued after it.
    """
    ids: list[int] = list(tokenizer(statement)["input_ids"])
    while len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    return ids


def first_token_of(tokenizer: Any, prompt: str, answer: str) -> int:
    """Id of the token with which a model continues the prompt's text towards the answer.

    The two are tokenised together, as some tokenizers mark a word's beginning only at the beginning of a text; where
    prompt and answer melt into one token, the answer with a space before it is taken by itself.
    """
    before: list[int] = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer(f"{prompt} {answer}", add_special_tokens=False)["input_ids"]
    if whole[: len(before)] == before and len(whole) > len(before):
        return whole[len(before)]
    alone: list[int] = tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
    return alone[0]


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """No gradients and no dropout inside; afterwards the model is as it was."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def _padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Left-padded (input ids, attention mask, position ids), int64 of shape b x t. What pads is masked: any id does."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask, (mask.cumsum(-1) - 1).clamp_min(0)


def _step(model: Any, ids: Tensor, mask: Tensor, positions: Tensor, **more: Any) -> Any:
    """One forward pass, told only what this architecture's forward takes."""
    known = takes(model)
    offered = {"position_ids": positions, "logits_to_keep": 1}
    return model(input_ids=ids, attention_mask=mask, **{k: v for k, v in offered.items() if k in known}, **more)


def batches(prompts: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Indices of the prompts in batches, longest first: little padding, and memory runs out at once or never."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    return [order[at : at + batch_size] for at in range(0, len(order), batch_size)]


def first_token_logits(
    model: Any, prompts: Sequence[Sequence[int]], batch_size: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Logits of the token that follows each prompt, batch by batch.

    Args:
        model: a transformers causal language model.
        prompts: token ids, at least one each.
        batch_size: prompts at once.

    Yields:
        Indices of the batch's prompts, and their logits: float32 on the CPU, shape b x v.
    """
    for indices in batches(prompts, batch_size):
        with _evaluating(model):
            out = _step(model, *_padded([prompts[i] for i in indices], model.device), use_cache=False)
            logits = out.logits[:, -1].float().cpu()
        yield indices, logits


def greedy(
    model: Any, prompts: Sequence[Sequence[int]], limits: Sequence[int], ends: Collection[int]
) -> list[list[int]]:
    """Most likely continuations of one batch of prompts, without the end token.

    Args:
        model: a transformers causal language model that keeps a key-value cache.
        prompts: token ids, at least one each.
        limits: most tokens to generate, for each prompt.
        ends: ids that end a text.

    Raises:
        ModelError: the architecture keeps no key-value cache, or the model predicts NaN.
    """
    ids, mask, positions = _padded(prompts, model.device)
    texts: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    lacking = ModelError(f"{type(model).__name__} keeps no key-value cache, so it cannot complete prompts here")
    name, cache = cache_name(model), None
    if name is None:
        raise lacking
    with _evaluating(model):
        for _ in range(max(limits)):
            out = _step(model, ids, mask, positions, use_cache=True, **{name: cache})
            cache = getattr(out, name, None)
            if cache is None:
                raise lacking
            logits_bv = out.logits[:, -1]
            if logits_bv.isnan().any():
                raise ModelError(
                    "the base predicts NaN: its weights are broken or too large for its dtype; try float32"
                )
            chosen: list[int] = logits_bv.argmax(-1).tolist()
            for row, token in enumerate(chosen):
                ended[row] = ended[row] or token in ends or len(texts[row]) >= limits[row]
                if not ended[row]:
                    texts[row].append(token)
            if all(done or len(text) >= limit for done, text, limit in zip(ended, texts, limits, strict=True)):
                break
            ids = torch.tensor(chosen, device=ids.device)[:, None]
            mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], -1)
            positions = positions[:, -1:] + 1
    return texts
