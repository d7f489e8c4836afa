"""Strategies that add to the loss what moving away from the base costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from sftknow.options import NotNegative
from sftknow.training.strategies.base import STRATEGIES, Hooks, Pass, Scene, Strategy

if TYPE_CHECKING:
    import torch


@STRATEGIES.register("l2-sp")
@dataclass(frozen=True, kw_only=True)
class L2SP(Strategy):
    """Adds strength ÷ 2 times the squared L2 distance of all weights from the base to the loss.

    Li, Grandvalet, Davoine 2018, arXiv 1802.01483: weight decay towards the pretrained values in place of 0.
    """

    strength: NotNegative = 0.1
    """Factor of the penalty; 0 is plain fine-tuning."""

    keeps_base: ClassVar[bool] = True

    def start(self, scene: Scene) -> Hooks:
        return WeightPenalty(scene, self.strength) if self.strength else Hooks()


class WeightPenalty(Hooks):
    """strength ÷ 2 · Σ wᵢ (θᵢ − θ⁰ᵢ)², in float32, over all weights that are trained.

    Args:
        scene: model and base.
        strength: factor of it all.
        importance: the wᵢ by the parameters' names, each of its parameter's shape; None for 1 everywhere.
    """

    def __init__(self, scene: Scene, strength: float, importance: dict[str, torch.Tensor] | None = None) -> None:
        base = dict(scene.base.named_parameters())
        self._strength = strength
        self._trained = [
            (name, parameter, base[name].detach())
            for name, parameter in scene.model.named_parameters()
            if parameter.requires_grad
        ]
        self._importance = importance

    def penalty(self, here: Pass) -> torch.Tensor | None:
        total: Any = 0
        for place, (name, parameter, base) in enumerate(self._trained):
            if base.device != parameter.device:  # the model has moved since the beginning; its base follows once
                base = base.to(parameter.device)
                self._trained[place] = (name, parameter, base)
            squares = (parameter.float() - base.float()).square()
            if self._importance is not None:
                self._importance[name] = self._importance[name].to(parameter.device)
                squares = squares * self._importance[name]
            total = total + squares.sum()
        return self._strength / (2 * here.passes) * total  # type: ignore[no-any-return]
