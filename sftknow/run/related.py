"""Whether one model was made from another, told from the weights and not from a name."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sftknow.checkpoints.adapters import is_adapter
from sftknow.checkpoints.index import read_index
from sftknow.checkpoints.reader import CheckpointReader, widen
from sftknow.errors import ModelError
from sftknow.models.identity import weights_sha256
from sftknow.models.resolving import adapter_base

_TENSORS, _ELEMENTS, _ALIKE = 8, 65_536, 0.3
"""Tensors that are looked at, elements of each, and the cosine from which they are of one origin: fine-tuning leaves it
near 1, and between models trained apart it is near 0."""


def likeness(base: Path, tuned: Path) -> float | None:
    """Median cosine between the beginnings of some matrices of two checkpoints; None where no two can be compared."""
    first, second = read_index(base), read_index(tuned)
    names = [
        name
        for name, entry in second.tensors.items()
        if len(entry.shape) >= 2 and name in first.tensors and first.tensors[name].shape[1:] == entry.shape[1:]
    ]
    found = []
    with CheckpointReader() as reader:
        for name in names[:: max(1, len(names) // _TENSORS)][:_TENSORS]:
            one, two = first.tensors[name], second.tensors[name]
            count = min(one.elements, two.elements, _ELEMENTS)
            a, b = (widen(reader.read(entry, 0, count), entry.dtype).astype(np.float64) for entry in (one, two))
            size = float(np.linalg.norm(a) * np.linalg.norm(b))
            if size > 0:
                found.append(float(a @ b) / size)
    return float(np.median(found)) if found else None


def refuse_unrelated(base: Path, tuned: Path, *, names: tuple[str, str], option: str | None = "--any-pair") -> None:
    """Raises ModelError where the second model was surely not made from the first; ``option`` is the way around it."""
    if is_adapter(tuned):
        named = adapter_base(tuned)
        if named.sha256 != weights_sha256(base):
            raise ModelError(
                f"{names[1]} is an adapter of {named.name}, which has other weights than {names[0]}; give that base"
            )
        return
    why = unlike(base, tuned)
    if why:
        raise ModelError(
            f"{names[1]} was not fine-tuned from {names[0]} ({why}); give the base that it was made from"
            + (f", or {option} to compare any two models" if option else "")
        )


def unlike(base: Path, tuned: Path) -> str | None:
    """Why two checkpoints are surely not of one origin; None where they may be."""
    found = likeness(base, tuned)
    if found is None:
        return "they share no matrix"
    return f"their weights have a cosine of {found:.2f}" if found < _ALIKE else None
