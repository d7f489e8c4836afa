"""How a model is loaded and run: the options that every command with a model shares."""

from __future__ import annotations

from dataclasses import dataclass, field

from sftknow.options import NOT_IN_RECIPES, Count, Dtype, Options


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """How a model is loaded and run. In a run the recipe's ``model`` section says it for all stages."""

    dtype: Dtype | None = field(default=None, metadata=NOT_IN_RECIPES)
    """Load in that dtype; None for what the model's config names, as lm_eval does."""
    device: str = field(default="auto", metadata=NOT_IN_RECIPES)
    """``auto`` (CUDA where there is one), ``cpu``, ``cuda``, ``cuda:1`` …, or ``spread``: layers over all GPUs."""
    batch_size: Count = field(default=64, metadata=NOT_IN_RECIPES)
    """Prompts at once."""
