"""Strategies that change what counts in the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any, ClassVar

from sftknow.errors import ModelError
from sftknow.options import NotNegative, Positive
from sftknow.training.strategies.base import STRATEGIES, Scene, Strategy

if TYPE_CHECKING:
    from sftknow.training.examples import Example
    from sftknow.training.train import TrainingSet


@STRATEGIES.register("dft")
@dataclass(frozen=True, kw_only=True)
class DynamicFineTuning(Strategy):
    """Each token's loss times the token's own probability, so that what the model finds unlikely pulls less.

    Wu et al. 2025, arXiv 2508.05629; TRL's own loss.
    """

    spreads: ClassVar[bool] = True

    def trainer_settings(self) -> dict[str, Any]:
        return {"loss_type": "dft"}


@STRATEGIES.register("stm")
@dataclass(frozen=True, kw_only=True)
class SelectiveTokenMasking(Strategy):
    """Leaves tokens out of the loss whose perplexity under the base is above a threshold.

    Wu et al. 2025, arXiv 2501.14315.
    """

    perplexity: Positive = 2.5
    """Highest perplexity of a token that counts in the loss, 1 ÷ its probability under the base; 1e30 masks none and is
    plain fine-tuning."""

    def prepare(self, data: TrainingSet, scene: Scene) -> TrainingSet:
        from sftknow.training.examples import IGNORED
        from sftknow.training.strategies.measures import token_losses

        losses = token_losses(scene.model, data.examples, scene.recipe.batch_size)
        examples: list[Example] = []
        limit, masked = math.log(self.perplexity), 0
        for example, known in zip(data.examples, losses, strict=True):
            high = iter((known > limit).tolist())
            # The first token of a sequence is never predicted.
            labels = [
                IGNORED if i and label != IGNORED and next(high) else label for i, label in enumerate(example.labels)
            ]
            masked += sum(a != b for a, b in zip(labels, example.labels, strict=True))
            examples.append(replace(example, labels=labels))
        total = sum(map(len, losses))
        if masked == total:
            raise ModelError(
                f"stm: the base finds each of the {total} tokens that would be trained on less likely than 1 in "
                f"{self.perplexity:g}, so nothing is left to learn; raise its option perplexity"
            )
        return replace(data, examples=examples, record={**data.record, "tokens": total, "tokens_masked": masked})


@STRATEGIES.register("flow")
@dataclass(frozen=True, kw_only=True)
class Flow(Strategy):
    """Weighs each example by exp(−strength · its loss under the base ÷ the median of all): easy ones count more.

    FLOW, Sanyal et al. 2025, arXiv 2502.02797.
    """

    strength: NotNegative = 1.0
    """1 is the source's weight; 0 is plain fine-tuning."""

    def prepare(self, data: TrainingSet, scene: Scene) -> TrainingSet:
        from sftknow.training.strategies.measures import token_losses

        losses = [
            float(tokens.mean()) if len(tokens) else 0.0
            for tokens in token_losses(scene.model, data.examples, scene.recipe.batch_size)
        ]
        middle = median(losses) or 1.0
        weights = [math.exp(-self.strength * loss / middle) for loss in losses]
        return replace(
            data, examples=[replace(e, weight=weight) for e, weight in zip(data.examples, weights, strict=True)]
        )
