"""Make the whole checkpoint of a model that a run stored small; used by `sftknow materialize`."""

from __future__ import annotations

import os
from pathlib import Path

from sftknow.artifacts.files import write_json
from sftknow.artifacts.manifests import MANIFEST, read_manifest
from sftknow.checkpoints.deltas import is_delta, materialize
from sftknow.errors import CheckpointError
from sftknow.models.resolving import resolve_base


def materialize_model(delta: Path, out: Path, base: str | None = None) -> Path:
    """Write the whole checkpoint: the very files that were trained, with their paths to the graded data mended.

    Args:
        delta: the stored model's folder.
        out: the checkpoint's folder; a model of sftknow that is there is replaced.
        base: a folder, ``org/name[@revision]`` or ``lab``; None takes the base that the model names.

    Returns:
        ``out``.

    Raises:
        CheckpointError: no delta, another base, or a folder of something else in the way.
        ModelError: the base that the model names is not to be found.
    """
    if not is_delta(delta):
        raise CheckpointError(f"{delta} holds no delta; a checkpoint that is whole needs nothing")
    manifest = read_manifest(delta, "model")
    if manifest is None:
        raise CheckpointError(f"{delta} has no {MANIFEST}: it was not finished; train it again")
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file()):
        raise CheckpointError(f"{out} holds something else than a model of sftknow; give a new or an empty folder")
    named = base or manifest.get("base", {}).get("path")
    if not named:
        raise CheckpointError(f"{delta} does not name its base; give it with --base")
    materialize(Path(resolve_base(str(named), None, None).ref.path), delta, out)
    data = manifest.get("mastery_dataset") or {}
    if "path" in data and not Path(data["path"]).is_absolute():
        place = os.path.relpath((delta / data["path"]).resolve(), out.resolve())
        write_json(out / MANIFEST, {**manifest, "mastery_dataset": {**data, "path": place}})
    return out
