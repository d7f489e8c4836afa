"""Where a run keeps its fine-tuned models: whole, or small as what differs from the base; and how to get one back."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sftknow.checkpoints.deltas import is_delta, materialize, write_delta
from sftknow.models.resolving import BaseModel


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
