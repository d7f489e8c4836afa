"""How the manifest of a model names what it was made from: base, graded data set, training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sftknow.artifacts.manifests import read_manifest
from sftknow.artifacts.mastery_data import MasteryData
from sftknow.checkpoints.adapters import CONFIG, WEIGHTS, is_adapter
from sftknow.models.identity import files_sha256
from sftknow.models.pull import origin
from sftknow.models.resolving import BaseModel


def dataset_reference(dataset: MasteryData, model: Path) -> dict[str, str]:
    """How a model's manifest names its graded data set.

    One that was pulled is named by repository and commit; a folder relative to the model, so that both can be moved.
    """
    pulled = origin(dataset.folder)
    if pulled:
        return {"repo": pulled.repo_id, "revision": str(pulled.commit), "fingerprint": dataset.fingerprint}
    return {"path": os.path.relpath(dataset.folder, model), "fingerprint": dataset.fingerprint}


def base_reference(base: BaseModel) -> dict[str, Any]:
    """How a model's manifest names its base."""
    return {"path": base.name, "sha256": base.sha256}


def restored_manifest(base: BaseModel, tuned: Path, out: Path) -> dict[str, Any]:
    """What a restored model's manifest takes over from the fine-tuned one: base, training, graded data set."""
    before = read_manifest(tuned, "model") or {}
    manifest: dict[str, Any] = {key: before[key] for key in ("sft", "draw", "task") if key in before}
    named = before.get("mastery_dataset")
    if named and "path" in named:
        place = Path(os.path.normpath(tuned / named["path"]))
        named = {**named, "path": os.path.relpath(place, out)}
    if is_adapter(tuned):
        pulled = origin(tuned)
        name = f"{pulled.repo_id}@{pulled.commit}" if pulled else str(tuned)
        manifest["adapter"] = {"path": name, "sha256": files_sha256(tuned, (CONFIG, WEIGHTS))}
    return {**manifest, "base": base_reference(base), **({"mastery_dataset": named} if named else {})}
