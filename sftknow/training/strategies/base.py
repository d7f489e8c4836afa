"""What a training strategy is: options, and what they do at the places where a training lets them in.

A strategy is a frozen class of options, registered under a name. It can change the trainer's settings and freeze
parameters before a training; while it goes on, its `Hooks` add to the loss and act on gradients and updates. Whatever a
strategy draws or computes follows from the base, the options and the seed, and what it does at a step from the step's
number, so that a training that goes on from a snapshot ends in the same bytes.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from sftknow.errors import RecipeError
from sftknow.options import Options, Positive
from sftknow.registry import Registry

if TYPE_CHECKING:
    import torch

    from sftknow.training.lora import Adapters
    from sftknow.training.recipe import SFTRecipe
    from sftknow.training.strategies.knowledge import Knowledge
    from sftknow.training.train import TrainingSet

_NAME = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*")
_TAKEN = re.compile(r"base|mixed|lora|(?:.*-)?b\d")


class _Strategies(Registry["type[Strategy]"]):
    """A registry whose names can stand in the names of cells, such as ``l2-sp-b2-n240-s0``."""

    def register(self, name: str) -> Callable[[type[Strategy]], type[Strategy]]:
        if not _NAME.fullmatch(name) or _TAKEN.fullmatch(name):
            raise RecipeError(
                f"{name} cannot be the name of a training strategy; take lower-case letters, digits and '-', and no "
                "name that models of a run have already (base, mixed, lora, b2)"
            )
        return super().register(name)


STRATEGIES = _Strategies("training strategy", RecipeError)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a strategy is given before a training begins."""

    model: Any
    """The transformers model that is to be trained, still on the CPU."""
    base: Any
    """The same before any training, which is never changed; None unless the strategy's ``keeps_base`` asks for it."""
    tokenizer: Any
    recipe: SFTRecipe
    seed: int
    """Of the training."""
    knowledge: Knowledge | None = None
    """What the base was found to know; None where the training data are no graded facts."""

    def teacher(self) -> Any:
        """A copy of the base that answers and is not trained."""
        return copy.deepcopy(self.base).requires_grad_(False).eval()


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One forward pass of a training: an update is made of one or several."""

    model: Any
    """The model as the trainer calls it."""
    inputs: Mapping[str, torch.Tensor]
    """``input_ids``, ``attention_mask`` and ``labels``, each (rows, tokens)."""
    tokens: torch.Tensor
    """Tokens that count in the loss, over all passes of the update, divided by the number of processes; a scalar."""
    passes: int
    """Passes of the update."""

    @property
    def inner(self) -> Any:
        """The model past the wrapper of several processes, which expects one forward pass for each backward one."""
        return getattr(self.model, "module", self.model)


class Hooks:
    """What a strategy does while a model is trained; every method does nothing unless it is overridden.

    Steps are counted from 1: the step is that of the update that is being made.
    """

    plain_share: float = 1.0
    """Factor of plain fine-tuning's loss."""

    def penalty(self, here: Pass) -> torch.Tensor | None:
        """What is added to the loss of one pass, a scalar; None for nothing.

        Gradients are summed over passes and averaged over processes. So a sum over tokens is divided by
        ``here.tokens``, and what does not depend on the batch by ``here.passes``.
        """
        return None

    def after_backward(self, step: int) -> None:
        """The gradients of one more pass are there: before they are clipped."""

    def before_update(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """The gradients are clipped, and the optimizer is about to use them."""

    def after_update(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """The optimizer has changed the weights."""


@dataclass(frozen=True, kw_only=True)
class Strategy(Options):
    """A way to fine-tune. Its fields are its options, which recipes hold under ``strategies.NAME``."""

    learning_rate: Positive | None = None
    """Peak learning rate; None for the recipe's own."""

    keeps_base: ClassVar[bool] = False
    """Whether it looks at the base while it trains; that takes the memory of a second model."""
    knows: ClassVar[bool] = False
    """Whether it uses what the base was found to know: `Scene.knowledge`."""
    spreads: ClassVar[bool] = False
    """Whether it works where the weights of one model are spread over several devices (FSDP, DeepSpeed)."""

    @property
    def name(self) -> str:
        """The name that it is registered under."""
        return next(name for name in STRATEGIES if STRATEGIES.get(name) is type(self))

    def record(self) -> dict[str, Any]:
        """Name and options, for manifests and keys."""
        return {"name": self.name, **asdict(self)}

    def check_recipe(self, recipe: SFTRecipe) -> None:
        """Raise OptionError where the recipe's other settings leave it nothing to do or cannot go with it."""

    def fits(self, model: Any) -> None:
        """Raise ModelError where a model, maybe without numbers (on ``meta``), has nothing that it works on."""

    def trainer_settings(self) -> dict[str, Any]:
        """Further arguments of TRL's SFTConfig.

        Raises:
            DependencyError: an installed package lacks what the strategy needs.
        """
        return {}

    def prepare(self, data: TrainingSet, scene: Scene) -> TrainingSet:
        """What is trained on, from the data that plain fine-tuning trains on; ``scene.model`` is still the base.

        Raises:
            SftknowError: the data have nothing of what the strategy works on.
        """
        return data

    def adapt(self, scene: Scene) -> Adapters | None:
        """The model with adapters of peft's in it; None trains the weights themselves.

        Raises:
            DependencyError: the installed peft has no such adapters.
            ModelError: they cannot be put onto this model.
        """
        return None

    def start(self, scene: Scene) -> Hooks:
        """Get ready to train: freeze what is not to be trained, remember what will be needed.

        Raises:
            ModelError: the model has nothing of what the strategy works on.
        """
        return Hooks()
