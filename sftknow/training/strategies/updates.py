"""Strategies that let the optimizer work and then say which of the weights may keep what it did."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated

from sftknow.errors import OptionError
from sftknow.options import Limits
from sftknow.training.strategies.base import STRATEGIES, Hooks, Scene, Strategy

if TYPE_CHECKING:
    import torch

    from sftknow.training.recipe import SFTRecipe


@STRATEGIES.register("mofo")
@dataclass(frozen=True, kw_only=True)
class MoFO(Strategy):
    """In each tensor only the weights with the largest momenta move; AdamW's moments are kept up for all.

    Chen et al. 2024, arXiv 2407.20999.
    """

    share: Annotated[float, Limits(gt=0, le=1)] = 0.15
    """Share of each tensor that moves in an update, rounded up to whole weights; 1 is plain fine-tuning."""

    def check_recipe(self, recipe: SFTRecipe) -> None:
        if not recipe.optimizer.startswith("adamw"):
            raise OptionError(
                f"the strategy mofo needs AdamW's momenta and optimizer is {recipe.optimizer}; take adamw_torch"
            )

    def start(self, scene: Scene) -> Hooks:
        return LargestMomenta(scene, self.share) if self.share < 1 else Hooks()


class LargestMomenta(Hooks):
    """Puts back what an update did to weights whose momentum is not among the largest of their tensor."""

    def __init__(self, scene: Scene, share: float) -> None:
        self._share = share
        self._parameters = [p for p in scene.model.parameters() if p.requires_grad]
        self._before: list[torch.Tensor] = []

    def before_update(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        self._before = [parameter.detach().clone() for parameter in self._parameters]

    def after_update(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        for parameter, before in zip(self._parameters, self._before, strict=True):
            state = optimizer.state.get(parameter)
            if state:
                momentum = state["exp_avg"].abs().flatten()
                moving = math.ceil(Fraction(str(self._share)) * momentum.numel())
                kept = momentum.argsort(descending=True, stable=True)[moving:]  # of equal ones the first ones move
                parameter.detach().view(-1)[kept] = before.view(-1)[kept]
        self._before = []
