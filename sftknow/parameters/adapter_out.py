"""A repaired LoRA adapter: the repaired change of each matrix, brought back to the old rank.

What a method makes of base + ΔW is some other change ΔW′ of the same matrices. Its best approximation of the adapter's
rank (singular values, Eckart and Young 1936) is factored anew into B and A. Interpolation and layer scaling keep the
rank, so that nothing is lost; what sets single elements back does not, and the error is told. One matrix is in memory
at a time.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sftknow.artifacts.files import atomic_folder, digest, write_json
from sftknow.artifacts.keyed_folder import PartialFolder
from sftknow.artifacts.manifests import write_manifest
from sftknow.checkpoints.adapters import CONFIG, WEIGHTS, Adapter
from sftknow.checkpoints.index import TensorEntry, read_index
from sftknow.checkpoints.layout import safetensors_header
from sftknow.checkpoints.merged import LowRank, Merge
from sftknow.checkpoints.reader import CheckpointReader, widen
from sftknow.checkpoints.side_files import side_files
from sftknow.parameters.candidates import Candidates, Maker
from sftknow.parameters.pairs import TensorPair
from sftknow.parameters.passes import PIECE
from sftknow.parameters.restore import Finishing
from sftknow.progress import progress

if TYPE_CHECKING:
    import torch

_WHOLE_SVD = 1024
"""Smaller side of a matrix up to which all its singular values are computed; of larger ones the first are found by
random projections (Halko, Martinsson and Tropp 2011) with a fixed seed."""
_MORE, _TURNS = 16, 8
"""Columns more than the rank, and power iterations, of those."""


@dataclass(frozen=True, kw_only=True)
class Refactored:
    """An adapter on disk."""

    folder: Path
    error: float
    """‖its change − the repaired change‖ ÷ ‖the repaired change‖, Frobenius, over all matrices together."""


def check_refactored(base: Path, adapter: Path) -> None:
    """Raise CheckpointError where an adapter is more than plain LoRA, so that it cannot be factored anew."""
    Merge(read_index(base), Adapter.read(adapter)).low_rank()


def refactored(candidates: Candidates, maker: Maker, folder: Path) -> Refactored:
    """Write the adapter of a candidate; names, ranks, scaling and dtypes are those of the old one.

    Args:
        candidates: whose fine-tuned side is an adapter.
        maker: of the candidate.
        folder: replaced.

    Raises:
        CheckpointError: as `check_refactored`; what `Maker.values` raises.
    """
    import torch

    old = Adapter.read(candidates.tuned)
    steps = Merge(read_index(candidates.base), old).low_rank()
    tensors = {tensor.name: tensor for tensor in candidates.pair.tensors if tensor.name in steps}
    wrong = total = 0.0
    made: list[tuple[TensorEntry, torch.Tensor]] = []
    with CheckpointReader() as reader, progress(len(steps), "adapter", unit="matrices") as bar, torch.no_grad():
        for name, step in steps.items():
            change = _change(reader, tensors[name], step, maker)
            if step.transposed:
                change = change.T
            first, second = _factors(change, step.first.shape[0], step.scaling)
            dtypes = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
            first, second = first.to(dtypes[step.first.dtype]), second.to(dtypes[step.second.dtype])
            made += [(step.first, first), (step.second, second)]
            wrong += float((change - step.scaling * (second.float() @ first.float())).double().square().sum())
            total += float(change.double().square().sum())
            bar.update(1)
    with atomic_folder(folder) as partial:
        described = [(e.name, e.dtype, list(e.shape), tensor.nbytes) for e, tensor in made]
        with (partial / WEIGHTS).open("wb") as file:
            file.write(safetensors_header(described, {"format": "pt"}))
            for _, tensor in made:
                file.write(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        write_json(partial / CONFIG, {**old.config, "base_model_name_or_path": _base_name(old)})
    return Refactored(folder=folder, error=math.sqrt(wrong / total) if total else 0.0)


def write_refactored(
    adapter: Refactored,
    out: Path,
    maker: Maker,
    *,
    like: Path,
    manifest: Mapping[str, Any],
    notes: Mapping[str, Any],
    finishing: Finishing | None = None,
) -> None:
    """Put a re-factored adapter in its place, with what else the old one's folder has, a manifest and a card.

    Args:
        like: the old adapter's folder.
        manifest, notes, finishing: as for `write_candidate`.

    Raises:
        RunError: another process writes there.
    """
    restoration = {**maker.described, "adapter": True, "error": adapter.error, **notes}
    key = digest([restoration, json.loads((adapter.folder / CONFIG).read_text())])
    partial = PartialFolder(out, key)
    partial.open()
    for file in side_files(like):
        if str(file) != CONFIG:
            (partial.folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(like / file, partial.folder / file)
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(adapter.folder / name, partial.folder / name)
    write_manifest(partial.folder, "model", {**manifest, "restoration": {**restoration, "key": key}})
    if finishing is not None:
        finishing(partial.folder, out)
    partial.finish()


def _change(reader: CheckpointReader, tensor: TensorPair, step: LowRank, maker: Maker) -> torch.Tensor:
    """The repaired change of one matrix, float32, in the shape that it is stored in."""
    import torch

    factors = (
        torch.from_numpy(widen(reader.read(entry, 0, entry.elements), entry.dtype).copy()).reshape(entry.shape)
        for entry in (step.second, step.first)
    )
    second, first = factors
    moved = (second @ first) * step.scaling
    delta = (moved.T if step.transposed else moved).contiguous().numpy().reshape(-1)
    for start in range(0, tensor.elements, PIECE):
        count = min(PIECE, tensor.elements - start)
        base, tuned = (reader.read(entry, start, count) for entry in (tensor.base, tensor.tuned))
        values = widen(base, tensor.base.dtype)
        exact = values + delta[start : start + count]  # as the adapter means it, before a merge rounds
        delta[start : start + count] = maker.values(tensor, start, base, tuned, exact) - values
    return torch.from_numpy(delta).reshape(tensor.shape)


def _factors(change: torch.Tensor, rank: int, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A (rank, inputs) and B (outputs, rank) with scaling · B A nearest to a matrix (outputs, inputs)."""
    import torch

    if min(change.shape) <= max(_WHOLE_SVD, rank + _MORE):
        left, values, right = torch.linalg.svd(change, full_matrices=False)
        right = right.T
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            left, values, right = torch.svd_lowrank(change, q=rank + _MORE, niter=_TURNS)
    roots = torch.zeros(rank)
    there = min(rank, len(values))
    roots[:there] = (values[:there] / abs(scaling)).sqrt() if scaling else 0.0
    first = torch.zeros(rank, change.shape[1])
    second = torch.zeros(change.shape[0], rank)
    first[:there] = roots[:there, None] * right[:, :there].T
    second[:, :there] = roots[:there] * left[:, :there] * float(np.sign(scaling))
    return first, second


def _base_name(adapter: Adapter) -> str:
    """What the old adapter names as its base, such that it means the same from another folder."""
    named, _ = adapter.base
    beside = adapter.folder / named
    return str(beside.resolve()) if named and not Path(named).is_dir() and beside.is_dir() else named
