"""Strategies that let the optimizer work and then say which of the weights may keep what it did."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from sftknow.artifacts.levels import parse_level
from sftknow.checkpoints.regions import natural_order, parse_region
from sftknow.errors import CheckpointError, ModelError, OptionError
from sftknow.options import Count, Level, Limits
from sftknow.training.strategies.base import STRATEGIES, Hooks, Scene, Strategy

if TYPE_CHECKING:
    from collections.abc import Sequence

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


@STRATEGIES.register("restoring")
@dataclass(frozen=True, kw_only=True)
class Restoring(Strategy):
    """Sets the weights that changed most, relative to their size, back to the base's while training goes on.

    The paper's restoration (arXiv 2509.16596, 4.2) turned round: after every so many updates no weight of the region is
    left further from its base, by relative change, than those that were set back. AdamW's moments stay.
    """

    share: Level = "5%"
    """Share of the region that is set back; 0% is plain fine-tuning."""
    every: Count = 1
    """Updates between two such projections."""
    region: str = "transformer"
    """Which weights are ranked: names of regions as in ``parameters.region``, joined by commas, or ``re:PATTERN``."""

    keeps_base: ClassVar[bool] = True

    def check(self) -> None:
        for key, parse in (("share", parse_level), ("region", parse_region)):
            try:
                parse(getattr(self, key))
            except CheckpointError as error:
                raise OptionError(f"{{key}}: {error}", (key,)) from None

    def fits(self, model: Any) -> None:
        region = parse_region(self.region)
        if not any(name in region for name, _ in model.named_parameters()):
            raise ModelError(f"{type(model).__name__} has no parameter in the region {self.region}; name another")

    def start(self, scene: Scene) -> Hooks:
        self.fits(scene.model)
        return Projection(scene, self) if parse_level(self.share) else Hooks()


class Projection(Hooks):
    """Sets the most changed share of a region back after every so many updates."""

    def __init__(self, scene: Scene, options: Restoring) -> None:
        region = parse_region(options.region)
        base, named = dict(scene.base.named_parameters()), dict(scene.model.named_parameters())
        names = natural_order([name for name in named if name in region])
        self._every = options.every
        self._pairs = [(named[name], base[name].detach()) for name in names]
        self.count = math.floor(parse_level(options.share) * sum(tensor.numel() for _, tensor in self._pairs))

    def after_update(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        if step % self._every == 0:
            # The model has moved since the beginning; its base follows once.
            self._pairs = [(parameter, base.to(parameter.device)) for parameter, base in self._pairs]
            restore_most_changed(self._pairs, self.count)


def restore_most_changed(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], count: int) -> None:
    """Set exactly the elements of largest relative change back; of equal ones those that come first.

    r = |s − p| ÷ (|p| + 1e-8) in float32, ranked over all tensors together: the definition and the order of
    `sftknow.parameters.relative`. Two passes count r by the halves of its bits, so that nothing of the size of the
    model is sorted or kept.

    Args:
        pairs: tensors and their bases, each pair of one shape and dtype; the first ones are written to.
        count: how many elements are set back.
    """
    import torch

    if not count:
        return

    def bits(tensor: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        s, p = tensor.detach().float(), base.float()
        change = (s - p).abs()
        r = torch.where(change == 0, 0.0, change / (p.abs() + 1e-8))
        return r.view(torch.int32).flatten()  # r is never negative, and such numbers order as their bits do

    upper: Any = sum(torch.bincount(bits(*pair) >> 16, minlength=1 << 15) for pair in pairs)
    high, left = _bin_of(upper, count)
    lower: Any = 0
    for pair in pairs:
        found = bits(*pair)
        lower = lower + torch.bincount(found[found >> 16 == high] & 0xFFFF, minlength=1 << 16)
    low, left = _bin_of(lower, left)
    cut = high << 16 | low
    for tensor, base in pairs:
        found = bits(tensor, base)
        chosen = found > cut
        equal = (found == cut).nonzero().flatten()[:left]
        chosen[equal] = True
        left -= len(equal)
        tensor.copy_(torch.where(chosen.view(tensor.shape), base, tensor))


def _bin_of(counts: torch.Tensor, wanted: int) -> tuple[int, int]:
    """The bin that holds the wanted-th largest element, and how many of those wanted lie in it."""
    import torch

    above = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(above, wanted))
    return len(counts) - 1 - place, wanted - (int(above[place - 1]) if place else 0)
