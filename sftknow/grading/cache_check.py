"""Whether a model computes with the slot cache what it computes without any cache. Tried once, before any statement.

Models whose layers remember something else than keys and values (state-space and other recurrent layers), or that work
out positions from something that rows of their own do not carry, would be sampled wrongly and silently. So the sampler
does in small what it will do in large (rows that move, several tokens, then a single one) and compares.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from sftknow.errors import ModelError, first_line
from sftknow.grading.batch import Forward, Ints
from sftknow.grading.slot_cache import SlotCache
from sftknow.models.forward import CACHE_NAMES, cache_name

_LAYER_TYPES = {"full_attention", "sliding_attention", "chunked_attention", "attention"}
_TEXTS = ("The quick brown fox jumps over the lazy dog and runs", "In 1869, a ship from Bombay came through the canal")
_TOKENS = 12
_TOLERANCE = {torch.float32: 0.02, torch.float64: 0.02}
"""Greatest total variation distance between the next tokens' distributions; rounding stays far below it."""
_TOLERANCE_HALF = 0.2


def check_layers(model: Any) -> str:
    """Refuse by its description a model whose cache is no key-value cache; return what the model calls its cache.

    Raises:
        ModelError: it says so itself, or its ``forward`` takes no key-value cache.
    """
    name = type(model).__name__
    strange = set(getattr(model.config.get_text_config(), "layer_types", None) or ()) - _LAYER_TYPES
    if strange:
        raise ModelError(
            f"{name} has layers without keys and values ({', '.join(sorted(strange))}), which the transformers sampler "
            "cannot share rows of; grade it with the vLLM sampler"
        )
    argument = cache_name(model)
    if argument is None:
        raise ModelError(
            f"{name} keeps no key-value cache (its forward takes no {' or '.join(CACHE_NAMES)}), which the "
            "transformers sampler needs; grade it with the vLLM sampler"
        )
    return argument


def check_cache(model: Any, tokenizer: Any, forward: Forward, positions: int | None) -> None:
    """Compare the next token's distribution with and without the slot cache on two made-up statements.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: its tokenizer.
        forward: runs the model on a slot cache.
        positions: most tokens that the model takes, or None.

    Raises:
        ModelError: they differ by more than rounding, the model cannot work with the cache at all, or its logits are
            not finite.
    """
    count = max(3, min(_TOKENS, positions or _TOKENS))
    ids = np.array([_cycled(tokenizer(text)["input_ids"], count) for text in _TEXTS], dtype=np.int64)
    plain = _probabilities(
        lambda: model(input_ids=torch.from_numpy(ids).to(model.device), use_cache=False).logits[:, -1]
    )
    name = type(model).__name__
    try:
        cached = _probabilities(lambda: _through_cache(forward, ids))
    except (ModelError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ModelError(
            f"{name} does not work with a plain key-value cache ({type(error).__name__}: {first_line(error)}); grade "
            "it with the vLLM sampler"
        ) from error
    distance = float((plain - cached).abs().sum(dim=-1).max() / 2)
    if distance > _TOLERANCE.get(model.dtype, _TOLERANCE_HALF):
        raise ModelError(
            f"{name} gives other next tokens with a key-value cache than without one (total variation {distance:.2g}), "
            "so its cache is no plain one; grade it with the vLLM sampler"
        )


def _through_cache(forward: Forward, ids: Ints) -> torch.Tensor:
    """The two statements in three passes, having changed places after the first."""
    rows, count = ids.shape
    cut = count // 2
    cache = SlotCache(slots=rows + 1, columns=count)
    cache.look(1, rows + 1, 0)
    forward(ids[:, :cut], cache, 1)
    cache.look(0, rows + 1, cut)
    cache.copy(np.array([2, 1]), np.array([0, 1]))
    cache.look(0, rows, cut)
    forward(ids[::-1, cut:-1].copy(), cache, 1)
    cache.look(0, rows, count - 1)
    return forward(ids[::-1, -1:].copy(), cache, 1).flip(0)


@torch.inference_mode()
def _probabilities(logits: Callable[[], torch.Tensor]) -> torch.Tensor:
    chances = torch.softmax(logits().double(), dim=-1).cpu()
    if not bool(torch.isfinite(chances).all()):
        raise ModelError(
            "the model's logits are not finite (NaN or inf); load it in float32 or bfloat16, or mend its weights"
        )
    return chances


def _cycled(ids: list[int], count: int) -> list[int]:
    ids = list(ids) or [0]
    return (ids * (count // len(ids) + 1))[:count]
