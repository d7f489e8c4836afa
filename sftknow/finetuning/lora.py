"""Low-rank adapters (LoRA) through peft: trained beside frozen weights, merged into them before they are saved.

The result is a whole checkpoint like any other, so that it can be scored, compared and restored (paper, Table 7).
"""

from __future__ import annotations

from typing import Any

from transformers import set_seed

from sftknow.errors import ModelError
from sftknow.finetuning.recipe import LoraSettings


def prepare(model: Any, settings: LoraSettings | None, seed: int) -> Any:
    """The model itself without settings; else the same with adapters, which start at no change at all.

    Raises:
        ModelError: the model has no layer of the names asked for.
    """
    if settings is None:
        return model
    from peft import LoraConfig, get_peft_model

    set_seed(seed)
    targets = settings.target_modules
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"LoRA cannot be put onto {type(model).__name__}: {reason}; change sft.lora.target_modules"
        ) from None


def merged(model: Any, settings: LoraSettings | None) -> Any:
    """The model with its adapters added into its weights, in the dtype that they were trained in."""
    return model if settings is None else model.merge_and_unload()
