"""How probable a model finds a given answer: the sum of its tokens' log-probabilities after a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from sftknow.errors import DeviceError, ModelError
from sftknow.models.forward import takes

_AT_ONCE = 2048
"""Tokens of a batch, padding included."""
_ROWS = 128
"""Positions whose logits are turned into probabilities at once, in float32."""


def answer_logprobs(
    model: Any,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    on_done: Callable[[int], object] = lambda count: None,
) -> list[float]:
    """Sum of ln p(token | all before it) over the tokens of each answer.

    Args:
        model: a causal language model in evaluation mode. Position ids are left to it: rows are padded behind.
        pairs: token ids of prompt and answer, at least one each.
        on_done: called with the number of pairs finished since the last call.

    Raises:
        ModelError: the model's logits are not finite.
        DeviceError: the GPU's memory does not hold a row.
    """
    rows = [[*prompt, *answer] for prompt, answer in pairs]
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))  # memory runs out at once or never
    sums = [0.0] * len(rows)
    at = 0
    while at < len(order):
        batch = order[at : at + max(1, _AT_ONCE // len(rows[order[at]]))]
        at += len(batch)
        width = len(rows[batch[0]])
        ids = torch.tensor([rows[i] + [rows[i][-1]] * (width - len(rows[i])) for i in batch], device=model.device)
        mask = torch.tensor([[1] * len(rows[i]) + [0] * (width - len(rows[i])) for i in batch], device=model.device)
        # The logits of the prompts are not needed from the longest common beginning on.
        first = min(len(pairs[i][0]) for i in batch) - 1
        fewer = {"logits_to_keep": width - first} if "logits_to_keep" in takes(model) else {}
        try:
            with torch.inference_mode():
                logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **fewer).logits
                skipped = width - logits.shape[1]
                for row, i in enumerate(batch):
                    prompt, answer = pairs[i]
                    start = len(prompt) - 1 - skipped
                    sums[i] = _sum(logits[row, start : start + len(answer)], ids[row, len(prompt) : len(rows[i])])
        except torch.OutOfMemoryError:
            raise DeviceError(f"the memory of {model.device} does not hold {width} tokens beside the model") from None
        on_done(len(batch))
    return sums


def _sum(logits: torch.Tensor, tokens: torch.Tensor) -> float:
    """Of logits [tokens, vocabulary] and the tokens that came, the sum of their log-probabilities."""
    total = 0.0
    for at in range(0, len(tokens), _ROWS):
        found = logits[at : at + _ROWS].float().log_softmax(-1).gather(-1, tokens[at : at + _ROWS, None])
        total += float(found.double().sum())
    if not torch.isfinite(torch.tensor(total)):
        raise ModelError("the model's logits are not finite: its weights are broken or too large for its dtype")
    return total
