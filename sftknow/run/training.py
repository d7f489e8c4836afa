"""Train one model: a cell of the grid, `sftknow sft`, or another task of Table 5, all by the same step."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from sftknow import processes
from sftknow.artifacts.mastery_data import MasteryData
from sftknow.checkpoints.dtypes import stored_dtype
from sftknow.errors import FactsError
from sftknow.facts.prompts import statements_for
from sftknow.facts.topics import load_topics
from sftknow.machine import memory_peak
from sftknow.models.references import base_reference, dataset_reference
from sftknow.models.resolving import BaseModel
from sftknow.records import DatasetManifest, Fact, ModelRef, TrainedModel, to_json
from sftknow.run.cells import Cell
from sftknow.run.launching import check_devices, plan_launch, train_launched
from sftknow.training.arguments import check_trackers
from sftknow.training.base import check_device
from sftknow.training.distributed import batch_parts
from sftknow.training.draws import draw
from sftknow.training.preview import preview
from sftknow.training.recipe import AccelerateOptions, SFTRecipe, TrainingOptions
from sftknow.training.strategies import Knowledge
from sftknow.training.train import LoadedBase, TrainingSet, fact_encoder, fine_tune_on

Encoder = Callable[[Any, int | None], TrainingSet]
"""Makes the training set from the tokenizer and the longest sequence that the model takes."""


@dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """How a model is trained: what decides the weights, who is told of it, and in which processes."""

    recipe: SFTRecipe
    options: TrainingOptions = field(default_factory=TrainingOptions)
    accelerate: AccelerateOptions = field(default_factory=AccelerateOptions)

    def check(self, *, here: bool = True) -> None:
        """Refuse what cannot be trained, before any model or data is looked at.

        Args:
            here: look for the devices on this machine, too; what workers of a cluster have shows there.

        Raises:
            RecipeError: processes that cannot share the batch, an unknown configuration, a missing tracker.
            DeviceError: a dtype or devices that are not there.
            MissingExtraError: DeepSpeed is not installed.
        """
        check_trackers(self.options.report_to)
        launch = plan_launch(self.accelerate, self.recipe) if self.accelerate.launches else None
        if launch is None:
            batch_parts(self.recipe, processes.count())
        if here:
            check_device(self.recipe)
            if launch is not None:
                check_devices(launch)


class Material(Protocol):
    """What a model is trained on. Picklable: the processes of a launched training read it for themselves."""

    @property
    def seed(self) -> int:
        """Of the draw and of training."""

    def encoder(self, recipe: SFTRecipe) -> Encoder:
        """What makes it into training sequences."""

    def origin(self, out: Path) -> dict[str, Any]:
        """What the manifest of a model in the folder ``out`` says of it."""


@dataclass(frozen=True, kw_only=True)
class FactDraw:
    """Facts of a graded data set, drawn as a cell of the grid asks for, balanced over topics (paper, 3.3)."""

    dataset: MasteryData
    cell: Cell
    topics: str | None = None
    """Topics file that the facts were graded with, for strategies that use their statements; None for the paper's."""

    @property
    def seed(self) -> int:
        return self.cell.seed

    def encoder(self, recipe: SFTRecipe) -> Encoder:
        """Raises MasteryDataError where the bucket has fewer facts than the cell asks for."""
        knows = recipe.strategy is not None and recipe.strategy.knows
        knowledge = self._knowledge() if knows else None
        return fact_encoder(self._drawn[1], recipe, bucket=self.cell.bucket, knowledge=knowledge)

    def origin(self, out: Path) -> dict[str, Any]:
        return {"mastery_dataset": dataset_reference(self.dataset, out), "draw": to_json(self._drawn[0])}

    def _knowledge(self) -> Knowledge:
        """What the base was found to know; FactsError for the statements of a topic that is in no topics file."""
        topics = load_topics(self.topics)

        def statements(fact: Fact) -> tuple[str, ...]:
            if fact.topic not in topics:
                raise FactsError(
                    f"{fact.id} has the topic {fact.topic}, which no topics file has; give the one that it was graded "
                    "with (--topics FILE, or facts.topics in a recipe)"
                )
            return statements_for(topics[fact.topic], fact.subject)

        return Knowledge(rows=self.dataset.split("train"), statements=statements)

    @cached_property
    def _drawn(self) -> tuple[DatasetManifest, list[Fact]]:
        cell = self.cell
        return draw(self.dataset.split("train"), bucket=cell.bucket, size=cell.size, seed=cell.seed)


def show(base: BaseModel, material: Material, recipe: SFTRecipe) -> str:
    """The first batch as text with the loss mask; nothing is trained and no weights are read.

    Raises:
        MasteryDataError, GeneralTaskError, RecipeError, ModelError: as `train`.
    """
    return preview(ModelRef(path=base.ref.path), material.encoder(recipe), recipe.batch_size)


def train(
    base: BaseModel, material: Material, out: Path, setup: TrainingSetup, *, loaded: LoadedBase | None = None
) -> TrainedModel:
    """Fine-tune a base on the material.

    Args:
        base: the model to start from.
        material: what it is trained on.
        out: folder of the checkpoint.
        setup: how; where it asks for processes of its own, they train, and `loaded` is not used.
        loaded: the base in memory, for training in this process.

    Raises:
        MasteryDataError, GeneralTaskError: what is asked for is not there.
        ModelError: the base cannot be trained on such data.
        RecipeError, DeviceError, RunError: processes that cannot be started as asked, or that failed.
    """
    setup = replace(setup, recipe=setup.recipe.saving_like(stored_dtype(Path(base.ref.path))))
    if setup.accelerate.launches:
        return train_launched(
            train_here, base, material, out=out, recipe=setup.recipe, section=setup.accelerate, options=setup.options
        )
    return train_here(base, material, out, recipe=setup.recipe, options=setup.options, loaded=loaded)


@contextmanager
def training_cost() -> Iterator[dict[str, Any]]:
    """What a training in this process takes.

    Yields:
        A mapping that holds, when the block ends, ``seconds``: of the processor, so that other work beside it does not
        count; on a GPU of the clock. And ``peak_bytes``: the most memory on top of what was held before, of the GPU
        where there is one; 0 where the system does not say.
    """
    gpu = torch.cuda.is_available()
    clock = time.monotonic if gpu else time.process_time
    cost: dict[str, Any] = {}
    gc.collect()  # earlier models, whose memory would hide what this one takes
    began, before = clock(), torch.cuda.memory_allocated() if gpu else 0
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    with memory_peak() as found:
        yield cost
    cost["seconds"] = round(clock() - began, 3)
    cost["peak_bytes"] = torch.cuda.max_memory_allocated() - before if gpu else found[0]


def train_here(
    base: BaseModel,
    material: Material,
    out: Path,
    *,
    recipe: SFTRecipe,
    options: TrainingOptions,
    loaded: LoadedBase | None = None,
) -> TrainedModel:
    """`train` in this process, or this process's part of it where one of several calls it."""
    return fine_tune_on(
        ModelRef(path=base.ref.path),
        material.encoder(recipe),
        out,
        recipe=recipe,
        seed=material.seed,
        manifest={"base": base_reference(base), **material.origin(out)},
        loaded=loaded,
        options=options,
    )
