"""What the base says of training sequences before a training: losses of tokens, and how much each weight matters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from sftknow.training.examples import IGNORED, Example


def token_losses(model: Any, examples: Sequence[Example], batch_size: int) -> list[torch.Tensor]:
    """The model's loss on each token that counts, in nats.

    Args:
        model: a transformers causal LM; it is back on its device and in its mode afterwards.
        examples: training sequences.
        batch_size: sequences at once.

    Returns:
        For each example a float32 tensor on the CPU, shape (tokens that count,), in their order.
    """
    found: list[torch.Tensor] = []
    with _asked(model) as device, torch.no_grad():
        for start in range(0, len(examples), batch_size):
            rows = padded(examples[start : start + batch_size], device)
            labels = rows.pop("labels")[:, 1:]
            logits = model(**rows, use_cache=False).logits[:, :-1].float()
            losses = cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
            found += [loss[label != IGNORED].cpu() for loss, label in zip(losses, labels, strict=True)]
    return found


def fisher_diagonal(model: Any, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """The diagonal of the empirical Fisher information: the mean over examples of the squared gradient of log p.

    Kirkpatrick et al. 2017, arXiv 1612.00796.

    Args:
        model: a transformers causal LM; no gradient is left in it.
        examples: log p is that of all tokens of an example that count, given those before.

    Returns:
        By parameter name a float32 tensor of its shape on the CPU.
    """
    named = dict(model.named_parameters())
    with _asked(model) as device:
        total = {name: torch.zeros_like(parameter, dtype=torch.float32) for name, parameter in named.items()}
        for example in examples:
            rows = padded([example], device)
            labels = rows.pop("labels")[:, 1:]
            logits = model(**rows, use_cache=False).logits[:, :-1].float()
            loss = cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="sum")
            slopes = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
            for name, slope in zip(named, slopes, strict=True):
                if slope is not None:
                    total[name] += slope.float().square()
    return {name: sum_.cpu() / len(examples) for name, sum_ in total.items()}


def padded(examples: Sequence[Example], device: torch.device) -> dict[str, torch.Tensor]:
    """``input_ids``, ``attention_mask`` and ``labels``, each (rows, tokens), filled up on the right."""
    length = max(len(example.input_ids) for example in examples)
    rows: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for example in examples:
        missing = length - len(example.input_ids)
        rows["input_ids"].append(example.input_ids + [0] * missing)
        rows["attention_mask"].append([1] * len(example.input_ids) + [0] * missing)
        rows["labels"].append(example.labels + [IGNORED] * missing)
    return {name: torch.tensor(values, device=device) for name, values in rows.items()}


@contextmanager
def _asked(model: Any) -> Iterator[torch.device]:
    """The model without dropout, on the accelerator where there is one; gives the device."""
    before, training = next(model.parameters()).device, model.training
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else before
    model.to(device).eval()
    try:
        yield device
    finally:
        model.to(before).train(training)
