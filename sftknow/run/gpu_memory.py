"""How much GPU memory each stage takes, roughly: an estimate from the number of parameters, as the times are."""

from __future__ import annotations

from sftknow.recipes.schema import Recipe
from sftknow.run.space import ITEM_BYTES, ModelSize

MARGIN, CONTEXT = 0.15, 10**9
"""Assumed beside weights, gradients and moments: this share of them for activations, caches and logits, and these bytes
for CUDA itself and a batch of a small model."""

_MOMENTS = {"adafactor": 0, "sgd": 0}
"""Values that the optimizer keeps for each parameter, where they are not AdamW's two."""


def gpu_bytes(recipe: Recipe, model: ModelSize) -> dict[str, float]:
    """Bytes by stage, of all GPUs together that share one copy of the model. The other stages need no GPU.

    Args:
        recipe: in which dtypes it asks, trains and compares, and with which optimizer.
        model: the base.
    """
    asked = ITEM_BYTES[recipe.model.named_dtype or model.dtype or "float32"]
    trained = ITEM_BYTES[recipe.sft.load_dtype] * (2 + _MOMENTS.get(recipe.sft.optimizer, 2))
    each = {
        "grading": asked,
        "training": trained,
        "evaluation": asked,
        "divergence": ITEM_BYTES[recipe.divergence.dtype],
    }
    return {stage: model.parameters * item * (1 + MARGIN) + CONTEXT for stage, item in each.items()}
