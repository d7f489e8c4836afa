"""Probabilities of answers are those of the model, whatever stands beside them in a batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from sftknow.errors import ModelError
from sftknow.models import likelihood
from sftknow.models.likelihood import answer_logprobs


def test_one_by_one_and_together(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for prompt, answer in ((1, 1), (5, 3), (40, 2), (2, 60), (9, 9), (3, 1)):
        ids = torch.randint(3, 384, (prompt + answer,), generator=generator).tolist()
        pairs.append((ids[:prompt], ids[prompt:]))
    expected = []
    for prompt, answer in pairs:
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0].double().log_softmax(-1)
        expected.append(sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)))
    done: list[int] = []
    monkeypatch.setattr(likelihood, "_ROWS", 7)
    assert answer_logprobs(model, pairs, on_done=done.append) == pytest.approx(expected, rel=1e-5)
    assert sum(done) == len(pairs)
    monkeypatch.setattr(likelihood, "_AT_ONCE", 1)
    assert answer_logprobs(model, pairs) == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr(likelihood, "takes", lambda model: frozenset())  # an architecture that gives all logits
    assert answer_logprobs(model, pairs) == pytest.approx(expected, rel=1e-5)
    assert answer_logprobs(model, []) == []


def test_a_broken_model_is_refused(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        answer_logprobs(model, [([1, 5], [6])])
