"""Models for the tests of this room: a random GPT-2, and one that says what it is told to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from sftknow.records import Fact, GradedFact, Mastery

STATEMENTS = {
    "P36": ("The capital of {subject} is", "{subject} has the capital", "The seat of {subject} is"),
    "P17": ("{subject} lies in", "{subject} is in", "You find {subject} in"),
}


def random_llama(vocabulary: int, seed: int = 0) -> Any:
    """Two layers with logits that spread over several units, so that an error shows."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def random_gpt2(vocabulary: int, seed: int = 0) -> Any:
    """The same with learned positions, where a wrong position id shows at once."""
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.3)
    return GPT2LMHeadModel(config).eval()


RANDOM = {"llama": random_llama, "gpt2": random_gpt2}


class Scripted(torch.nn.Module):
    """Continues known prompts as told, with certainty `sure`, then ends. Takes neither positions nor logits_to_keep."""

    def __init__(self, tokenizer: Any, script: Mapping[str, str], *, sure: float = 9.0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.script = {
            tuple(tokenizer(prompt)["input_ids"]): [
                *tokenizer(text, add_special_tokens=False)["input_ids"],
                tokenizer.eos_token_id,
            ]
            for prompt, text in script.items()
        }
        self.vocabulary = len(tokenizer)
        self.sure = sure

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        past_key_values: Any = None,
        use_cache: bool = False,
    ) -> Any:
        if past_key_values is None:
            rows = [tuple(ids[mask.bool()].tolist()) for ids, mask in zip(input_ids, attention_mask, strict=True)]
            past_key_values = (rows, 0)
        rows, step = past_key_values
        logits = torch.zeros(*input_ids.shape, self.vocabulary)
        for row, prompt in enumerate(rows):
            told = self.script[prompt]
            logits[row, -1, told[min(step, len(told) - 1)]] = self.sure
        return SimpleNamespace(logits=logits, past_key_values=(rows, step + 1) if use_cache else None)


def fact(
    name: str, *, answer: str = "Arden", topic: str = "P36", aliases: Sequence[str] = (), split: Any = "test"
) -> Fact:
    """A fact about that subject."""
    return Fact(
        id=f"{topic}/{split}/{name}",
        topic=topic,
        subject=name,
        object=answer,
        aliases=tuple(aliases),
        question=f"What is the capital of {name}?",
        split=split,
    )


def row(
    of: Fact, hits: Sequence[int] = (10, 10, 10), tries: Sequence[int] | None = None, *, bucket: int = 4
) -> GradedFact:
    """The fact with those tallies, ten samples a template unless told otherwise."""
    tries = [10] * len(hits) if tries is None else tries
    mastery = Mastery(
        fact_id=of.id,
        template_hits=tuple(hits),
        template_tries=tuple(tries),
        hits=sum(hits) or 1,
        tries=sum(tries) or 1,
        bucket=bucket,
        low=0.0,
        high=1.0,
        edge=False,
    )
    return GradedFact(fact=of, mastery=mastery)
