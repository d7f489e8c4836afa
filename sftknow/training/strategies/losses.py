"""Strategies that change what counts in the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from sftknow.training.strategies.base import STRATEGIES, Strategy


@STRATEGIES.register("dft")
@dataclass(frozen=True, kw_only=True)
class DynamicFineTuning(Strategy):
    """Each token's loss times the token's own probability, so that what the model finds unlikely pulls less.

    Wu et al. 2025, arXiv 2508.05629; TRL's own loss.
    """

    spreads: ClassVar[bool] = True

    def trainer_settings(self) -> dict[str, Any]:
        return {"loss_type": "dft"}
