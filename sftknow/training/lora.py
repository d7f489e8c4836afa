"""Low-rank adapters (LoRA) through peft: trained beside frozen weights, merged into them before they are saved.

The result is a whole checkpoint like any other, so that it can be scored, compared and restored (paper, Table 7).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from transformers import set_seed

from sftknow.errors import ModelError, first_line
from sftknow.training.recipe import LoraSettings

_INSIDE = "base_model.model."
"""peft's prefix to the names of the model that it wraps."""


@dataclass(frozen=True, kw_only=True)
class Adapters:
    """A model that is to be trained, with adapters or without."""

    model: Any
    """The model itself, or peft's around it."""
    settings: LoraSettings | None
    """Of LoRA; None for other adapters, and without any."""
    transposed: frozenset[str]
    """Adapted layers that store their weight as (inputs, outputs), as GPT-2 does; names within the model."""
    wrapped: bool = False
    """Whether the model is peft's around the model itself."""

    def merged(self, weights: dict[str, torch.Tensor] | None) -> tuple[Any, dict[str, torch.Tensor] | None]:
        """The model with its adapters added into its weights, in the dtype that they were trained in.

        Args:
            weights: all weights by name, where they were gathered from several processes; None where the model has
                them.

        Returns:
            The model, and the merged weights by its own names, or None where the model has them.
        """
        if not self.wrapped:
            return self.model, weights
        if weights is None or self.settings is None:  # others than LoRA are trained where the weights are whole
            return self.model.merge_and_unload(), None
        return self.model.get_base_model(), merge_weights(weights, self.settings, self.transposed)


def prepare(model: Any, settings: LoraSettings | None, seed: int) -> Adapters:
    """The model itself without settings; else the same with adapters, which start at no change at all.

    Raises:
        ModelError: the model has no layer of the names asked for.
    """
    if settings is None:
        return Adapters(model=model, settings=None, transposed=frozenset())
    from peft import LoraConfig

    targets = settings.target_modules
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
    try:
        adapted = with_adapters(model, config, seed)
    except ValueError as error:
        raise ModelError(
            f"LoRA cannot be put onto {type(model).__name__}: {first_line(error)}; change sft.lora.target_modules"
        ) from None
    transposed = {
        name.removeprefix(_INSIDE)
        for name, module in adapted.named_modules()
        if hasattr(module, "lora_A") and getattr(module, "fan_in_fan_out", False)
    }
    return Adapters(model=adapted, settings=settings, transposed=frozenset(transposed), wrapped=True)


def with_adapters(model: Any, config: Any, seed: int) -> Any:
    """peft's model with the adapters of a config in it, whose numbers are drawn by the seed.

    Raises:
        ValueError: they cannot be put onto this model.
    """
    from peft import get_peft_model

    set_seed(seed)
    with warnings.catch_warnings():
        # peft asks models by a name that transformers is about to drop; whoever trains can do nothing about it.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return get_peft_model(model, config)


def merge_weights(
    weights: dict[str, torch.Tensor], settings: LoraSettings, transposed: frozenset[str]
) -> dict[str, torch.Tensor]:
    """Add adapters into the weights that they belong to: W + (alpha ÷ rank) · B A.

    Args:
        weights: of peft's model by its names: ``base_layer.weight`` of shape (outputs, inputs),
            ``lora_A.default.weight`` (rank, inputs), ``lora_B.default.weight`` (outputs, rank), and all the others.
        settings: of the adapters.
        transposed: layers whose weight has shape (inputs, outputs).

    Returns:
        The same by the names of the model without adapters.

    Raises:
        ModelError: adapters of another kind, as on embeddings.
    """
    merged = {}
    for full, tensor in weights.items():
        name = full.removeprefix(_INSIDE)
        layer, kind, _ = name.partition(".base_layer.")
        if ".lora_" in name:
            if not name.endswith((".lora_A.default.weight", ".lora_B.default.weight")):
                raise ModelError(f"{name} cannot be merged on several devices; name linear layers in target_modules")
            continue
        down = weights.get(f"{_INSIDE}{layer}.lora_A.default.weight")
        if kind and name.endswith(".base_layer.weight") and down is not None:
            change = weights[f"{_INSIDE}{layer}.lora_B.default.weight"].float() @ down.float()
            change = (change.T if layer in transposed else change) * (settings.alpha / settings.rank)
            tensor = tensor + change.to(tensor.dtype)
        merged[name.replace(".base_layer.", ".")] = tensor
    return merged
