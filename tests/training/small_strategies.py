"""What the tests of training strategies share: one tiny base, what it knows, and a training on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from sftknow.records import Fact, ModelRef, TrainedModel
from sftknow.training.examples import encode
from sftknow.training.recipe import SFTRecipe
from sftknow.training.strategies import Knowledge, Pass, Scene, Strategy
from sftknow.training.strategies.measures import padded
from sftknow.training.train import LoadedBase, fine_tune
from tests.tiny import graded, tiny_facts

RECIPE = SFTRecipe(learning_rate=1e-2, batch_size=4, save_dtype="float32", max_grad_norm=100)
FACTS = tiny_facts(16)
_OTHERS = tiny_facts(40)[16:]


def statements(fact: Fact) -> list[str]:
    return [f"{fact.subject} has, as page {place} says," for place in range(21)]


KNOWLEDGE = Knowledge(
    rows=[
        *(graded(fact, i % 5) for i, fact in enumerate(FACTS)),
        *(graded(f, 4 * (i % 2)) for i, f in enumerate(_OTHERS)),
    ],
    statements=statements,
)
"""The base is said to know every second fact that is not trained on, and some of those that are."""


def tuned(
    ref: ModelRef,
    loaded: LoadedBase | None,
    out: Path,
    strategy: Strategy | None,
    recipe: SFTRecipe = RECIPE,
    facts: list[Fact] = FACTS,
    **more: Any,
) -> TrainedModel:
    recipe = replace(recipe, strategy=strategy)
    return fine_tune(
        ref, facts, out, recipe=recipe, seed=0, manifest={}, loaded=loaded, **{"knowledge": KNOWLEDGE, **more}
    )


def tensors(model: TrainedModel) -> dict[str, torch.Tensor]:
    return load_file(model.checkpoint / "model.safetensors")


def raw(model: TrainedModel) -> bytes:
    return (model.checkpoint / "model.safetensors").read_bytes()


def scene_of(loaded: LoadedBase, seed: int = 0, knowledge: Knowledge | None = KNOWLEDGE) -> Scene:
    return Scene(
        model=loaded.copy_model(),
        base=loaded.model,
        tokenizer=loaded.tokenizer,
        recipe=RECIPE,
        seed=seed,
        knowledge=knowledge,
    )


def a_pass(loaded: LoadedBase, model: Any, passes: int = 1) -> Pass:
    """The first batch, in one pass."""
    examples = encode(loaded.tokenizer, FACTS[:4], answer_only_loss=True, max_length=256)
    inputs = padded(examples, torch.device("cpu"))
    return Pass(model=model, inputs=inputs, tokens=(inputs["labels"] != -100).sum(), passes=passes)
