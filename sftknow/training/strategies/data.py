"""Strategies that change what is trained on, and leave the training as it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, ClassVar

from sftknow.options import Limits, NotNegative
from sftknow.training.strategies.base import STRATEGIES, Scene, Strategy
from sftknow.training.strategies.knowledge import knowledge_of, known_statements

if TYPE_CHECKING:
    from sftknow.training.train import TrainingSet


@STRATEGIES.register("replay")
@dataclass(frozen=True, kw_only=True)
class Replay(Strategy):
    """Mixes statements that the base completes by itself evenly into the training facts: no pretraining data needed.

    Rehearsal as in Scialom, Chakrabarty, Muresan 2022, arXiv 2205.12393; the statements are the graded data's. All of a
    statement's tokens count in the loss.
    """

    ratio: NotNegative = 0.25
    """Statements for each training fact; 0 is plain fine-tuning."""
    known: Annotated[float, Limits(ge=0, le=1)] = 0.5
    """Least R of a fact whose statements are replayed, and least share of a statement's own continuations."""

    knows: ClassVar[bool] = True

    def prepare(self, data: TrainingSet, scene: Scene) -> TrainingSet:
        count = round(self.ratio * len(data.examples))
        if not count:
            return data
        trained = set(data.record.get("fact_ids", ()))
        statements = known_statements(
            scene, "replay", known=self.known, count=count, without=trained, object_only=False
        )
        placed = [((i + 0.5) / len(part), which, e) for which, part in enumerate((data.examples, statements))
                  for i, e in enumerate(part)]  # fmt: skip
        placed.sort(key=lambda entry: entry[:2])
        return replace(data, examples=[e for _, _, e in placed], record={**data.record, "replayed": count})


@STRATEGIES.register("mastery-sampling")
@dataclass(frozen=True, kw_only=True)
class MasterySampling(Strategy):
    """Shows facts more often the better the base knows them and others less or not at all, in as many steps.

    After Gekhman et al. 2024, arXiv 2405.05904, where facts that the model did not know are those that harm. A fact is
    shown in proportion to exp(strength · R), rounded so that the number of examples stays.
    """

    strength: float = 2.0
    """0 is plain fine-tuning; below 0 the facts that the base knows least are shown most."""

    knows: ClassVar[bool] = True
    spreads: ClassVar[bool] = True

    def prepare(self, data: TrainingSet, scene: Scene) -> TrainingSet:
        rates = {row.fact.id: row.mastery.rate for row in knowledge_of(scene, "mastery-sampling").rows}
        times = shares_of(len(data.examples), [math.exp(self.strength * rates[i]) for i in data.record["fact_ids"]])
        # Whoever is shown again comes after all that are shown: with every fact once it is the order of the draw.
        order = [i for turn in range(max(times)) for i, count in enumerate(times) if count > turn]
        return replace(data, examples=[data.examples[i] for i in order], record={**data.record, "times_shown": times})


def shares_of(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers in proportion to the weights, of that sum; each is its exact share rounded up or down."""
    scale, reached = total / math.fsum(weights), 0.0
    edges = [0]
    for weight in weights:
        reached += weight * scale
        edges.append(math.floor(reached + 0.5))
    return [after - before for before, after in pairwise(edges)]
