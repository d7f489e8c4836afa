"""Greedy decoding whatever a model's ``generation_config.json`` says.

transformers fills every generation option that a caller leaves open from that file: a repetition penalty changes
greedy answers, ``min_new_tokens`` forbids short ones, ``max_new_tokens`` beats the 16 of the task, and a missing or
another end token makes a model talk on (lm-eval drops the end token's text and keeps what comes after it).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig

from sftknow.dependencies import needs
from sftknow.errors import ModelError

MAX_NEW_TOKENS = 16
"""Tokens of an answer (paper, 3.3)."""

_WITHOUT_EFFECT = frozenset(
    {
        *("transformers_version", "_from_model_config", "use_cache", "cache_implementation", "cache_config"),
        *("max_length", "do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p"),
        *("epsilon_cutoff", "eta_cutoff", "renormalize_logits", "early_stopping", "length_penalty"),
        *("output_attentions", "output_hidden_states", "output_scores", "output_logits", "low_memory"),
        *("bos_token_id", "pad_token_id", "decoder_start_token_id", "compile_config", "disable_compile"),
        "prefill_chunk_size",
    }
)
"""Options that greedy decoding with one beam does not look at, or that lm-eval sets itself."""


def end_tokens(config: GenerationConfig, tokenizer: Any) -> list[int]:
    """The tokenizer's end token and the model's own: what ends an answer.

    Raises:
        ModelError: there is none at all.
    """
    own = config.eos_token_id
    ends = [tokenizer.eos_token_id, *(own if isinstance(own, (list, tuple)) else [own])]
    found = list(dict.fromkeys(int(end) for end in ends if end is not None))
    if not found:
        raise ModelError(
            f"{tokenizer.name_or_path or 'the model'} has no end token, neither in its tokenizer nor in its "
            "generation_config.json; set eos_token in tokenizer_config.json"
        )
    return found


def pins(config: GenerationConfig, tokenizer: Any) -> dict[str, Any]:
    """What to hand to ``generate`` so that a model's own options change nothing; empty for most models.

    Args:
        config: the model's generation configuration, as it was stored.
        tokenizer: the model's tokenizer.

    Returns:
        Keyword arguments of ``generate``.

    Raises:
        ModelError: there is no end token.
    """
    with needs("transformers"):
        neutral: dict[str, Any] = GenerationConfig._get_default_generation_params()
    known = GenerationConfig().to_dict()
    found: dict[str, Any] = {}
    for name, value in sorted(config.to_dict().items()):
        if name not in known or name in _WITHOUT_EFFECT or name in ("eos_token_id", "max_new_tokens"):
            continue
        if value is not None and value != neutral.get(name):
            found[name] = neutral.get(name)
    ends = end_tokens(config, tokenizer)
    own = config.eos_token_id
    if set(ends) != set(own if isinstance(own, (list, tuple)) else [own]):
        found["eos_token_id"] = ends
    if config.max_new_tokens is not None:
        # lm-eval takes a max_new_tokens for itself and passes max_length on, which the stored one would beat.
        found["generation_config"] = GenerationConfig(max_new_tokens=MAX_NEW_TOKENS)
    return found


@contextmanager
def greedy(model: Any, tokenizer: Any) -> Iterator[None]:
    """Within the block the model's generation configuration says nothing but where an answer ends.

    Raises:
        ModelError: there is no end token.
    """
    stored = model.generation_config
    model.generation_config = GenerationConfig(eos_token_id=end_tokens(stored, tokenizer))
    try:
        yield
    finally:
        model.generation_config = stored
