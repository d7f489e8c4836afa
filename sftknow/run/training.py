"""Train one cell of the grid; used by whole runs and by `sftknow sft`."""

from __future__ import annotations

from pathlib import Path

from sftknow import processes
from sftknow.artifacts.mastery_data import MasteryData
from sftknow.models.references import base_reference, dataset_reference
from sftknow.models.resolving import BaseModel
from sftknow.recipes.schema import AccelerateSection, LoraSection, SFTSection
from sftknow.records import ModelRef, TrainedModel, to_json
from sftknow.run.cells import Cell
from sftknow.run.launching import check_devices, plan_launch, train_launched
from sftknow.training.arguments import check_trackers
from sftknow.training.base import check_device
from sftknow.training.distributed import batch_parts
from sftknow.training.draws import draw
from sftknow.training.preview import preview
from sftknow.training.recipe import LoraSettings, SFTRecipe
from sftknow.training.train import LoadedBase, TrainingOptions, fact_encoder, fine_tune


def sft_recipe(section: SFTSection, lora: LoraSection | None = None) -> SFTRecipe:
    """The recipe of a training, with adapters where their settings are given.

    Raises:
        RecipeError: dtypes or batches that cannot go together.
    """
    return SFTRecipe(**section.model_dump(), lora=LoraSettings(**lora.model_dump()) if lora else None)


def check_training(recipe: SFTRecipe, accelerate: AccelerateSection, options: TrainingOptions | None = None) -> None:
    """Refuse what this machine cannot train, before any model or data is looked at.

    Raises:
        RecipeError: processes that cannot share the batch, an unknown configuration, a tracker that is not installed.
        DeviceError: a dtype or devices that are not there.
        MissingExtraError: DeepSpeed is not installed.
    """
    check_device(recipe)
    check_trackers(options.report_to if options else ())
    if accelerate.launches:
        check_devices(plan_launch(accelerate, recipe))
    else:
        batch_parts(recipe, processes.count())


def show_cell(base: BaseModel, dataset: MasteryData, cell: Cell, *, recipe: SFTRecipe) -> str:
    """The first batch of a cell as text with the loss mask; nothing is trained and no weights are read.

    Raises:
        MasteryDataError, ModelError: as `train_cell`.
    """
    _, facts = draw(dataset.split("train"), bucket=cell.bucket, size=cell.size, seed=cell.seed)
    encoder = fact_encoder(facts, recipe, bucket=cell.bucket)
    return preview(ModelRef(path=base.ref.path), encoder, recipe.batch_size)


def train_cell(
    base: BaseModel,
    dataset: MasteryData,
    cell: Cell,
    out: Path,
    *,
    recipe: SFTRecipe,
    loaded: LoadedBase | None = None,
    options: TrainingOptions | None = None,
    accelerate: AccelerateSection | None = None,
) -> TrainedModel:
    """Draw the training facts, balanced over topics, and fine-tune on them (paper, 3.3).

    Args:
        base: the model to start from.
        dataset: the graded facts.
        cell: which of them, how many, and the seed.
        out: folder of the checkpoint.
        recipe: how to train.
        loaded: the base in memory, for training in this process.
        options: what goes on beside the training.
        accelerate: where it asks for processes of its own, they train, and `loaded` is not used.

    Raises:
        MasteryDataError: the bucket has fewer facts than the cell asks for.
        ModelError: the base cannot be trained on such data.
        RecipeError, DeviceError, RunError: processes that cannot be started as asked, or that failed.
    """
    if accelerate is not None and accelerate.launches:
        return train_launched(
            train_cell, base, dataset, cell, out=out, recipe=recipe, section=accelerate, options=options
        )
    manifest, facts = draw(dataset.split("train"), bucket=cell.bucket, size=cell.size, seed=cell.seed)
    return fine_tune(
        ModelRef(path=base.ref.path),
        facts,
        out,
        recipe=recipe,
        seed=cell.seed,
        manifest={
            "base": base_reference(base),
            "mastery_dataset": dataset_reference(dataset, out),
            "draw": to_json(manifest),
        },
        loaded=loaded,
        options=options,
    )
