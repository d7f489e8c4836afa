"""Strategies that train some of the parameters and leave the bits of the others alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sftknow.checkpoints.regions import parse_region, place_of
from sftknow.errors import CheckpointError, ModelError, OptionError
from sftknow.options import Count, Share
from sftknow.training.strategies.base import STRATEGIES, Hooks, Scene, Strategy

if TYPE_CHECKING:
    import torch


class _TrainsSome(Strategy):
    """Trains the parameters with names that it wants and freezes all others."""

    def wanted(self, model: Any) -> tuple[Callable[[str], bool], str]:
        """Which names, and the same in words. Raises ModelError where the model cannot have them."""
        raise NotImplementedError

    def fits(self, model: Any) -> None:
        wanted, what = self.wanted(model)
        if not any(wanted(name) for name, _ in model.named_parameters()):
            raise ModelError(f"{type(model).__name__} has no parameter {what}; name others")

    def start(self, scene: Scene) -> Hooks:
        self.fits(scene.model)
        wanted, _ = self.wanted(scene.model)
        for name, parameter in scene.model.named_parameters():
            parameter.requires_grad_(wanted(name))
        return Hooks()


@dataclass(frozen=True, kw_only=True)
class TrainRegion(_TrainsSome):
    """Trains the parameters of one region and freezes all others."""

    region: str = "transformer"
    """What is trained: names of regions as in ``parameters.region``, joined by commas, or ``re:PATTERN``; ``all`` is
    plain fine-tuning."""

    def check(self) -> None:
        try:
            parse_region(self.region)
        except CheckpointError as error:
            raise OptionError(f"{{key}}: {error}", ("region",)) from None

    def wanted(self, model: Any) -> tuple[Callable[[str], bool], str]:
        return parse_region(self.region).__contains__, f"in the region {self.region}"


@STRATEGIES.register("attention-only")
@dataclass(frozen=True, kw_only=True)
class AttentionOnly(TrainRegion):
    """Trains the attention projections of the decoder layers and freezes all else."""

    region: str = "attention"
    """What is trained: names of regions as in ``parameters.region``, joined by commas, or ``re:PATTERN``; ``all`` is
    plain fine-tuning."""


@STRATEGIES.register("mlp-only")
@dataclass(frozen=True, kw_only=True)
class FeedForwardOnly(TrainRegion):
    """Trains the feed-forward projections of the decoder layers and freezes all else."""

    region: str = "mlp"
    """What is trained: names of regions as in ``parameters.region``, joined by commas, or ``re:PATTERN``; ``all`` is
    plain fine-tuning."""


@STRATEGIES.register("last-layers")
@dataclass(frozen=True, kw_only=True)
class LastLayers(_TrainsSome):
    """Trains the last decoder layers, norms included, and freezes all else."""

    layers: Count = 1
    """How many layers are trained."""

    def wanted(self, model: Any) -> tuple[Callable[[str], bool], str]:
        depth = int(model.config.get_text_config().num_hidden_layers)
        if self.layers > depth:
            raise ModelError(f"last-layers: layers is {self.layers} and the model has {depth}; give fewer")
        last = range(depth - self.layers, depth)
        return lambda name: place_of(name).layer in last, f"in the layers {last.start} to {depth - 1}"


@STRATEGIES.register("half")
@dataclass(frozen=True, kw_only=True)
class HalfFineTuning(Strategy):
    """Freezes a random half of each decoder layer's tensors: of its attention, of its feed-forward part, of its norms.

    Hui et al. 2024, arXiv 2404.18466. Embeddings and output head are trained throughout, as there.
    """

    share: Share = 0.5
    """Share of the tensors of each kind that is frozen; where that is no whole number, chance decides between the two
    next to it; 0 is plain fine-tuning."""
    round_steps: Count | None = None
    """Updates after which other tensors are drawn; None for one draw for the whole training, which is the source's way
    of a single training."""

    def start(self, scene: Scene) -> Hooks:
        return FrozenRounds(scene, self) if self.share else Hooks()


class FrozenRounds(Hooks):
    """Takes the gradients of what is frozen in this round away, so that neither weight nor moments change."""

    def __init__(self, scene: Scene, options: HalfFineTuning) -> None:
        self._options = options
        self._seed = scene.seed
        self._groups: dict[tuple[int, str], list[tuple[str, torch.nn.Parameter]]] = {}
        attention, mlp = parse_region("attention"), parse_region("mlp")
        for name, parameter in scene.model.named_parameters():
            layer = place_of(name).layer
            if layer is not None:
                kind = "attention" if name in attention else "mlp" if name in mlp else "other"
                self._groups.setdefault((layer, kind), []).append((name, parameter))
        if not self._groups:
            raise ModelError(f"{type(scene.model).__name__} has no decoder layer whose half could be frozen")
        self._round = -1
        self._frozen: dict[str, torch.nn.Parameter] = {}

    def frozen(self, step: int) -> dict[str, torch.nn.Parameter]:
        """The parameters that keep their bits in this step, by name."""
        current = 0 if self._options.round_steps is None else (step - 1) // self._options.round_steps
        if current != self._round:
            self._round, self._frozen = current, {}
            for (layer, kind), members in self._groups.items():
                chance = random.Random(f"{self._seed}/half/{current}/{layer}/{kind}")
                wanted = len(members) * self._options.share
                count = int(wanted) + (chance.random() < wanted - int(wanted))
                self._frozen.update(chance.sample(members, count))
        return self._frozen

    def after_backward(self, step: int) -> None:
        for parameter in self.frozen(step).values():
            parameter.grad = None
