"""The key-value cache under either of its names, whichever transformers is installed."""

from __future__ import annotations

import inspect
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sftknow.divergence.forward import greedy
from sftknow.grading.sampling import SampleRequest
from sftknow.grading.transformers_sampler import TransformersSampler
from sftknow.models.forward import CACHE_NAMES, cache_name, takes
from sftknow.records import SamplingPolicy
from tests.divergence.models import random_llama
from tests.tiny import tiny_tokenizer


class Renamed(torch.nn.Module):
    """A causal language model around a real one."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = model
        self.config, self.generation_config = model.config, model.generation_config
        self.device, self.dtype = model.device, model.dtype

    def run(self, name: str, cache: Any, **options: Any) -> Any:
        inner = cache_name(self.inner)
        out = self.inner(**{inner: cache}, **options)
        return SimpleNamespace(logits=out.logits, **{name: getattr(out, inner)})


class NewName(Renamed):
    """As from transformers 5.24 on."""

    def forward(self, input_ids: Any, attention_mask: Any = None, cache: Any = None, use_cache: Any = None) -> Any:
        return self.run("cache", cache, input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)


class OldName(Renamed):
    """As before transformers 5.24, and as in many models that others wrote."""

    def forward(
        self, input_ids: Any, attention_mask: Any = None, past_key_values: Any = None, use_cache: Any = None
    ) -> Any:
        return self.run(
            "past_key_values", past_key_values, input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache
        )


class NoCache(Renamed):
    """As models without a key-value cache."""

    def forward(self, input_ids: Any, attention_mask: Any = None) -> Any:
        return self.inner(input_ids=input_ids, attention_mask=attention_mask)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.mark.parametrize(("kind", "name"), [(NewName, "cache"), (OldName, "past_key_values"), (NoCache, None)])
def test_the_name_is_found(kind: type[Renamed], name: str | None) -> None:
    assert cache_name(kind(random_llama(50))) == name


def test_the_installed_transformers_has_one_of_the_names() -> None:
    model = random_llama(50)
    assert cache_name(model) in CACHE_NAMES
    assert takes(model) == set(inspect.signature(model.forward).parameters)


def test_both_names_sample_the_same_and_nothing_warns(tokenizer: Any) -> None:
    model = random_llama(len(tokenizer))
    asked = [
        SampleRequest(fact_id=name, template=0, prompt=f"The capital of {name} is", answers=("Arden",))
        for name in ("Avalon", "Bree")
    ]
    policy = SamplingPolicy(samples=4, max_new_tokens=6, seed=5)

    def texts(of: Any) -> list[Any]:
        return [tally.texts for tally in TransformersSampler(of, tokenizer).sample(asked, policy, keep_texts=True)]

    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        plain = texts(model)
        assert texts(NewName(model)) == plain
        assert texts(OldName(model)) == plain


def test_both_names_complete_the_same_and_nothing_warns(tokenizer: Any) -> None:
    model = random_llama(len(tokenizer))
    prompts = [[5, 6, 7, 8], [9, 10, 11, 12]]

    def completed(of: Any) -> list[list[int]]:
        return greedy(of, prompts, [5, 5], frozenset())

    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        plain = completed(model)
        assert completed(NewName(model)) == plain
        assert completed(OldName(model)) == plain
