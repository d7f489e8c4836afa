"""Where a run keeps its fine-tuned models: whole, or small as what differs from the base; and how to get one back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sftknow.artifacts.files import write_json
from sftknow.artifacts.manifests import MANIFEST, read_manifest
from sftknow.checkpoints.deltas import is_delta, materialize, write_delta
from sftknow.checkpoints.side_files import refuse_foreign
from sftknow.errors import CheckpointError
from sftknow.models.resolving import BaseModel, resolve_base


@contextmanager
def whole(base: BaseModel, folder: Path) -> Iterator[Path]:
    """A fine-tuned model's folder with its whole weights, which are taken away again if they were stored small.

    The folder beside it that the weights are written to is found again by a start after a kill.

    Raises:
        CheckpointError: the delta is damaged, or was made from another base.
    """
    if not is_delta(folder):
        yield folder
        return
    target = folder.with_name(f".{folder.name}.whole")
    if not target.is_dir():
        materialize(Path(base.ref.path), folder, target)
    try:
        yield target
    finally:
        shutil.rmtree(target, ignore_errors=True)


def store_small(base: BaseModel, folder: Path) -> None:
    """Replace a fine-tuned model's folder by its delta; one that is small already stays."""
    if not is_delta(folder):
        write_delta(Path(base.ref.path), folder, folder)


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
    refuse_foreign(out, sources=[delta])
    named = base or manifest.get("base", {}).get("path")
    if not named:
        raise CheckpointError(f"{delta} does not name its base; give it with --base")
    materialize(Path(resolve_base(str(named), None, None).ref.path), delta, out)
    data = manifest.get("mastery_dataset") or {}
    if "path" in data and not Path(data["path"]).is_absolute():
        place = os.path.relpath((delta / data["path"]).resolve(), out.resolve())
        write_json(out / MANIFEST, {**manifest, "mastery_dataset": {**data, "path": place}})
    return out
