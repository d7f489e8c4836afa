"""Train one cell of the grid; used by whole runs and by `sftknow sft`."""

from __future__ import annotations

from pathlib import Path

from sftknow.finetuning.recipe import LoraSettings, SFTRecipe
from sftknow.finetuning.train import LoadedBase, TrainingOptions, fine_tune
from sftknow.pipeline.base import BaseModel
from sftknow.pipeline.cells import Cell
from sftknow.pipeline.references import base_reference, dataset_reference
from sftknow.recipes.schema import LoraSection, SFTSection
from sftknow.records import ModelRef, TrainedModel, to_json
from sftknow.storage.mastery_data import MasteryData
from sftknow.training_data.draws import draw


def sft_recipe(section: SFTSection, lora: LoraSection | None = None) -> SFTRecipe:
    """The recipe of a training, with adapters where their settings are given.

    Raises:
        RecipeError: dtypes or batches that cannot go together.
    """
    return SFTRecipe(**section.model_dump(), lora=LoraSettings(**lora.model_dump()) if lora else None)


def train_cell(
    base: BaseModel,
    dataset: MasteryData,
    cell: Cell,
    out: Path,
    *,
    recipe: SFTRecipe,
    loaded: LoadedBase | None = None,
    options: TrainingOptions | None = None,
) -> TrainedModel:
    """Draw the training facts, balanced over topics, and fine-tune on them (paper, 3.3).

    Raises:
        MasteryDataError: the bucket has fewer facts than the cell asks for.
        ModelError: the base cannot be trained on such data.
    """
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
