"""Strategies that add to the loss what moving away from the base costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from sftknow.errors import OptionError
from sftknow.options import Count, Limits, NotNegative
from sftknow.training.strategies.base import STRATEGIES, Hooks, Pass, Scene, Strategy
from sftknow.training.strategies.knowledge import known_statements

if TYPE_CHECKING:
    import torch

    from sftknow.training.recipe import SFTRecipe


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


@STRATEGIES.register("ewc")
@dataclass(frozen=True, kw_only=True)
class EWC(Strategy):
    """As l2-sp, with each weight's distance weighed by how much what the base knows depends on it.

    Elastic weight consolidation with a diagonal Fisher information, Kirkpatrick et al. 2017, arXiv 1612.00796. What the
    base knows are statements that it completes by itself.
    """

    strength: NotNegative = 1000.0
    """Factor of the penalty; 0 is plain fine-tuning."""
    statements: Count = 64
    """Statements that the Fisher information is taken from."""
    known: Annotated[float, Limits(ge=0, le=1)] = 0.5
    """Least R of a fact whose statements are taken, and least share of a statement's own continuations."""

    keeps_base: ClassVar[bool] = True
    knows: ClassVar[bool] = True

    def start(self, scene: Scene) -> Hooks:
        if not self.strength:
            return Hooks()
        from sftknow.training.strategies.measures import fisher_diagonal

        examples = known_statements(scene, "ewc", known=self.known, count=self.statements, without=(), object_only=True)
        return WeightPenalty(scene, self.strength, fisher_diagonal(scene.base, examples))


@STRATEGIES.register("kl")
@dataclass(frozen=True, kw_only=True)
class KLToBase(Strategy):
    """Adds KL(base || model) of the next-token distributions over the training prompts to the loss.

    Learning without forgetting, Li and Hoiem 2016, arXiv 1606.09282: distillation on the new data.
    """

    strength: NotNegative = 1.0
    """Nats of the loss for one nat of divergence, summed over the positions and divided by the tokens that count in the
    loss; 0 is plain fine-tuning."""
    positions: Literal["prompt", "all"] = "prompt"
    """Where: at positions whose next token is the prompt's, or at all."""

    keeps_base: ClassVar[bool] = True

    def check_recipe(self, recipe: SFTRecipe) -> None:
        if self.positions == "prompt" and not recipe.answer_only_loss:
            raise OptionError(
                "the strategy kl looks at prompts that do not count in the loss, and answer_only_loss is false; set "
                "it to true, or positions to all"
            )

    def start(self, scene: Scene) -> Hooks:
        return Divergence(scene, self) if self.strength else Hooks()


class Divergence(Hooks):
    """KL(base || model) over positions of the batch, in nats."""

    def __init__(self, scene: Scene, options: KLToBase) -> None:
        self._options = options
        self._base = scene.teacher()

    def penalty(self, here: Pass) -> torch.Tensor | None:
        import torch
        from torch.nn.functional import kl_div

        from sftknow.training.examples import IGNORED

        where = here.inputs["attention_mask"][:, 1:] == 1
        if self._options.positions == "prompt":
            where = where & (here.inputs["labels"][:, 1:] == IGNORED)
        rows = {name: here.inputs[name] for name in ("input_ids", "attention_mask")}
        self._base.to(where.device)  # where the model is by now
        with torch.no_grad():
            before = self._base(**rows, use_cache=False).logits[:, :-1][where].float().log_softmax(-1)
        now = here.inner(**rows, use_cache=False).logits[:, :-1][where].float().log_softmax(-1)
        return self._options.strength * kl_div(now, before, log_target=True, reduction="sum") / here.tokens
