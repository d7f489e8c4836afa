"""Writes patches (see `patch_file`) and applies them, forwards and back, bit by bit."""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from sftknow.artifacts.files import atomic_file
from sftknow.checkpoints.layout import OutputShard, layout_like, safetensors_header
from sftknow.checkpoints.reader import FLOAT_BITS, CheckpointIndex, listed, read_index, widen
from sftknow.errors import CheckpointError
from sftknow.parameters.outputs import Output, OutputFolders
from sftknow.parameters.pairs import CheckpointPair, TensorPair, pair_checkpoints
from sftknow.parameters.patch_file import PLACE, RESTORED, TUNED, PatchFile, PatchHeader, place_dtype
from sftknow.parameters.region_hash import RegionHash
from sftknow.parameters.regions import place_of
from sftknow.parameters.restore import Finishing, described, find_cut, in_tuned_dtype, write_outputs
from sftknow.parameters.unit_work import Bits, for_each_unit
from sftknow.parameters.units import MEMORY, Unit, unit_count, units
from sftknow.parameters.verification import hash_side, verify_pair
from sftknow.records import RestoredCheckpoint, RestorePlan


def write_patch(
    base: Path,
    tuned: Path,
    plan: RestorePlan,
    level: str,
    file: Path,
    *,
    manifest: Mapping[str, Any] | None = None,
    verified: bool = False,
) -> int:
    """Write one level of a plan as a sparse file that turns the fine-tuned model into the restored one and back.

    The checkpoints are read twice, and nothing else is written. The file appears whole or not at all.

    Args:
        base: folder of the pretrained checkpoint that the plan was made from.
        tuned: folder of the fine-tuned one.
        plan: from `analyse`.
        level: one of the plan's levels.
        file: what to write, replaced where it is a patch.
        manifest: goes into the ``sftknow.json`` of the model that the patch makes.
        verified: see `restore_levels`.

    Returns:
        How many values the patch changes.

    Raises:
        CheckpointError: as `restore_levels`.
    """
    from sftknow.parameters.leveling import LevelSelector

    cut = find_cut(plan, level)
    _refuse_file(file)
    pair = pair_checkpoints(base, tuned, plan.region, plan.layers, common_rows=plan.common_rows)
    if not verified:
        verify_pair(pair, plan)
    selector = LevelSelector(plan, [cut])
    after = RegionHash(pair.tensors, "tuned")
    numbers = {(unit.position, unit.piece): i for i, unit in enumerate(units(pair))}
    counts: NDArray[np.int64] = np.zeros((3, unit_count(pair)), dtype=np.int64)  # selected, other value, other bits

    def select(unit: Unit, bits: Bits) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.intp]]:
        base_bits, tuned_bits = bits
        tensor = pair.tensors[unit.position]
        ranks = np.empty(unit.count, dtype=np.uint8)
        selector.ranks(base_bits, tensor.base.dtype, tuned_bits, tensor.tuned.dtype, tensor.first + unit.first, ranks)
        restored = np.where(ranks == 0, in_tuned_dtype(base_bits, tensor, ranks, 1), tuned_bits)
        return restored, ranks, np.flatnonzero(restored != tuned_bits)

    def count(unit: Unit, bits: Bits) -> None:
        restored, ranks, index = select(unit, bits)
        dtype = pair.tensors[unit.position].tuned.dtype
        differing = widen(restored[index], dtype) != widen(bits[1][index], dtype)
        counts[:, numbers[unit.position, unit.piece]] = int((ranks == 0).sum()), int(differing.sum()), index.size
        after.add(unit.position, unit.piece, xxhash.xxh3_128(restored.data).digest())

    for_each_unit(pair, ["base", "tuned"], count, f"patch of {cut.level}, counting")
    selected, differing, _ = counts.sum(axis=1).tolist()
    if selected != cut.selected:
        raise CheckpointError(
            f"the plan selects {cut.selected} elements at {cut.level}, but {selected} were found; make the plan again"
        )
    header = PatchHeader(
        restoration={"level": cut.level, **described(plan, cut, pair), "selected": selected, "restored": differing},
        manifest=dict(manifest or {}),
        tuned_sha256=plan.tuned_sha256,
        restored_sha256=after.hexdigest(),
        shapes={tensor.name: tensor.shape for tensor in pair.tensors},
    )
    per_tensor: NDArray[np.int64] = np.zeros(len(pair.tensors), dtype=np.int64)
    before: NDArray[np.int64] = np.zeros(unit_count(pair), dtype=np.int64)  # entries of the tensor in earlier units
    for i, unit in enumerate(units(pair)):
        before[i] = per_tensor[unit.position]
        per_tensor[unit.position] += counts[2, i]
    try:
        with atomic_file(file) as partial:
            _write(partial, pair, header, per_tensor, before, numbers, select)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be written: {error.strerror or error}") from error
    return int(per_tensor.sum())


def apply_patch(
    model: Path,
    file: Path,
    out: Path,
    *,
    memory: int = MEMORY,
    finishing: Finishing | None = None,
) -> RestoredCheckpoint:
    """Write the model that a patch makes of another one: of the fine-tuned model the restored one, and the reverse.

    Args:
        model: folder of the fine-tuned or of the restored model; shards do not matter.
        file: from `write_patch`.
        out: the folder to write, as by `restore_levels`.
        memory: bytes that the process may take in all.
        finishing: adds more files to the folder.

    Returns:
        With the level ``0%`` where the patch was taken back.

    Raises:
        CheckpointError: the model is neither of the two, the patch is damaged, and what `restore_levels` raises of
            folders and disks.
    """
    with PatchFile(file) as patch:
        index = read_index(model)
        pair = _pair(index, patch)
        found = hash_side(pair, "tuned")
        forward = found == patch.header.tuned_sha256
        if not forward and found != patch.header.restored_sha256:
            raise CheckpointError(
                f"{model} is neither the model that {file} was made for nor the one that it makes; give one of them"
            )
        layout = layout_like(index)
        restoration = dict(patch.header.restoration)
        if not forward:
            restoration |= {"level": "0%", "undone": restoration["level"], "selected": 0, "restored": 0}
        output = Output(folder=out, manifest=patch.header.manifest, restoration=restoration)
        folders = OutputFolders([output], layout, index, inputs=(model,))
        folders.refuse_full_disk(None)
        write_outputs(folders, layout, pair, PatchPainter(patch, forward), (1,), memory, False, f"by {file.name}")
        with folders:
            expected = patch.header.restored_sha256 if forward else patch.header.tuned_sha256
            if hash_side(_moved(pair, folders.partial[0]), "tuned") != expected:
                raise CheckpointError(f"{file} is damaged: it does not make the model that it should; make it again")
            folders.finish(finishing)
    return RestoredCheckpoint(
        checkpoint=out, level=str(restoration["level"]), restored=int(patch.header.restoration["restored"])
    )


class PatchPainter:
    """Makes blocks of a patched tensor. Counts, shape (1,): values that were changed."""

    outputs = 1

    def __init__(self, patch: PatchFile, forward: bool) -> None:
        self._patch = patch
        self._forward = forward

    def kinds(self, shard: OutputShard) -> Sequence[Hashable]:
        return [0]

    def paint(
        self,
        tensor: TensorPair,
        first: int,
        base: NDArray[Any],
        tuned: NDArray[Any],
        rows: NDArray[Any],
        start: int,
        counts: NDArray[np.int64],
    ) -> None:
        places, restored, before = self._patch.between(tensor, first, first + tuned.size)
        row = rows[0, start : start + tuned.size]
        row[:] = tuned
        row[places] = restored if self._forward else before
        counts += places.size


def _write(
    partial: Path,
    pair: CheckpointPair,
    header: PatchHeader,
    per_tensor: NDArray[np.int64],
    before: NDArray[np.int64],
    numbers: Mapping[tuple[int, int], int],
    select: Any,
) -> None:
    columns = []
    for tensor, count in zip(pair.tensors, per_tensor.tolist(), strict=True):
        place, width = place_dtype(tensor.elements)
        value = FLOAT_BITS[tensor.tuned.dtype].itemsize
        columns += [
            (tensor.name + PLACE, place, [count], count * width.itemsize),
            (tensor.name + RESTORED, tensor.tuned.dtype, [count], count * value),
            (tensor.name + TUNED, tensor.tuned.dtype, [count], count * value),
        ]
    head = safetensors_header(columns, header.metadata())
    starts = np.cumsum([len(head), *(size for _, _, _, size in columns)])
    lock = threading.Lock()
    with partial.open("wb") as handle:
        handle.write(head)
        handle.truncate(int(starts[-1]))
        handle.flush()

        def put(unit: Unit, bits: Bits) -> None:
            restored, _, index = select(unit, bits)
            tensor = pair.tensors[unit.position]
            places = (index + unit.first).astype(place_dtype(tensor.elements)[1])
            skipped = before[numbers[unit.position, unit.piece]]
            parts = (places, restored[index], bits[1][index])
            with lock:
                for i, part in enumerate(parts):
                    offset = int(starts[3 * unit.position + i] + skipped * part.itemsize)
                    handle.seek(offset)
                    handle.write(part.tobytes())

        for_each_unit(pair, ["base", "tuned"], put, f"patch of {header.restoration['level']}, writing")
        handle.flush()
        os.fsync(handle.fileno())


def _pair(index: CheckpointIndex, patch: PatchFile) -> CheckpointPair:
    """The patch's region of a model, on both sides, since there is no base."""
    tensors, first = [], 0
    missing = [name for name in patch.header.shapes if name not in index.tensors]
    if missing:
        raise CheckpointError(f"{index.folder} lacks tensors that {patch.file} changes: {listed(missing)}")
    for name, shape in patch.header.shapes.items():
        entry = index.tensors[name]
        rows_only = entry.shape[1:] == shape[1:] and len(entry.shape) == len(shape) and entry.shape[:1] >= shape[:1]
        if entry.shape != shape and not rows_only:
            raise CheckpointError(
                f"{name} has shape {list(entry.shape)} in {index.folder}, {list(shape)} in {patch.file}"
            )
        if entry.dtype != patch.dtype(name):
            raise CheckpointError(f"{name} is {entry.dtype} in {index.folder}, {patch.dtype(name)} in {patch.file}")
        size = int(np.prod(shape)) * FLOAT_BITS[entry.dtype].itemsize
        part = replace(entry, shape=shape, end=entry.start + size)
        tensors.append(TensorPair(name=name, base=part, tuned=part, place=place_of(name), first=first))
        first += part.elements
    return CheckpointPair(base=index, tuned=index, tensors=tuple(tensors))


def _moved(pair: CheckpointPair, folder: Path) -> CheckpointPair:
    """The same tensors in a copy of the checkpoint."""
    tensors = tuple(
        replace(tensor, tuned=replace(tensor.tuned, file=folder / tensor.tuned.file.name)) for tensor in pair.tensors
    )
    return replace(pair, tensors=tensors)


def _refuse_file(file: Path) -> None:
    if file.is_dir():
        raise CheckpointError(f"{file} is a folder; give the patch a file name, such as {file / 'patch.safetensors'}")
    if file.exists():
        with PatchFile(file):  # raises where it is something else
            pass
