"""Training strategies: ways to fine-tune that change less of what a model knew, beside plain fine-tuning and LoRA.

Each is one class whose fields are its options (`sftknow.training.strategies.base`); docs/strategies.md lists them and
docs/extending/training-strategy.md adds one. Importing this package loads no torch.
"""

from sftknow.training.strategies import (  # each registers its own
    adapters,
    data,
    distillation,
    frozen,
    losses,
    penalties,
    updates,
)
from sftknow.training.strategies.base import STRATEGIES, Hooks, Pass, Scene, Strategy
from sftknow.training.strategies.knowledge import Knowledge

__all__ = [
    "STRATEGIES",
    "Hooks",
    "Knowledge",
    "Pass",
    "Scene",
    "Strategy",
    "adapters",
    "data",
    "distillation",
    "frozen",
    "losses",
    "penalties",
    "updates",
]
