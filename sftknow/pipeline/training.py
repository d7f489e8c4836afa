"""Train one cell of the grid; used by whole runs and by `sftknow sft`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sftknow.finetuning.recipe import SFTRecipe
from sftknow.finetuning.train import LoadedBase, fine_tune
from sftknow.pipeline.base import BaseModel
from sftknow.pipeline.cells import Cell
from sftknow.records import ModelRef, TrainedModel, to_json
from sftknow.storage.manifests import read_manifest
from sftknow.storage.mastery_data import MasteryData
from sftknow.training_data.draws import draw


def dataset_reference(dataset: MasteryData, model: Path) -> dict[str, str]:
    """How a model's manifest names its graded data set: relative to the model, so that both can be moved together."""
    return {"path": os.path.relpath(dataset.folder, model), "fingerprint": dataset.fingerprint}


def base_reference(base: BaseModel) -> dict[str, Any]:
    """How a model's manifest names its base."""
    return {"path": base.name, "sha256": base.sha256}


def train_cell(
    base: BaseModel, dataset: MasteryData, cell: Cell, out: Path, *, recipe: SFTRecipe, loaded: LoadedBase | None = None
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
    )


def restored_manifest(base: BaseModel, tuned: Path, out: Path) -> dict[str, Any]:
    """What a restored model's manifest takes over from the fine-tuned one: base, training, graded data set."""
    before = read_manifest(tuned, "model") or {}
    manifest: dict[str, Any] = {key: before[key] for key in ("sft", "draw") if key in before}
    named = before.get("mastery_dataset")
    if named and "path" in named:
        place = Path(os.path.normpath(tuned / named["path"]))
        named = {**named, "path": os.path.relpath(place, out)}
    return {**manifest, "base": base_reference(base), **({"mastery_dataset": named} if named else {})}
