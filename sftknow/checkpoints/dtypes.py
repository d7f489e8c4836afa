"""In which dtype a checkpoint is stored, from its files' headers alone."""

from __future__ import annotations

from pathlib import Path

from sftknow.checkpoints.index import ITEM_BYTES
from sftknow.checkpoints.reader import read_header
from sftknow.options import Dtype

_NAMES: dict[str, Dtype] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def stored_values(folder: Path) -> dict[str, int]:
    """Values of all tensors by the dtype that they are stored in, as safetensors names it.

    Raises:
        CheckpointError: a file of weights is damaged.
    """
    entries = {entry.name: entry for file in sorted(folder.glob("*.safetensors")) for entry in read_header(file)}
    found: dict[str, int] = {}
    for entry in entries.values():
        values = (entry.end - entry.start) // ITEM_BYTES.get(entry.dtype, 1)
        found[entry.dtype] = found.get(entry.dtype, 0) + values
    return found


def stored_dtype(folder: Path) -> Dtype | None:
    """The dtype of most values, as torch names it; None where it is none that fine-tuning writes, or nothing is there.

    Raises:
        CheckpointError: a file of weights is damaged.
    """
    found = stored_values(folder)
    return _NAMES.get(max(found, key=lambda name: found[name])) if found else None
