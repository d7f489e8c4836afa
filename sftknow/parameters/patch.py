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
from sftknow.checkpoints.layout import OutputShard, safetensors_header
from sftknow.checkpoints.reader import FLOAT_BITS, CheckpointIndex, listed, read_index, widen
from sftknow.errors import CheckpointError
from sftknow.parameters.hashing import RegionHash, hash_side, verify_pair
from sftknow.parameters.options import Resources
from sftknow.parameters.outputs import Output
from sftknow.parameters.pairs import CheckpointPair, TensorPair, pair_checkpoints
from sftknow.parameters.passes import Bits, Chunk, chunks, for_each_chunk
from sftknow.parameters.patch_file import PLACE, RESTORED, TUNED, PatchFile, PatchHeader, place_dtype
from sftknow.parameters.regions import place_of
from sftknow.parameters.restore import Finishing, WriteJob, described, find_cut, in_tuned_dtype
from sftknow.records import LevelCut, RestoredCheckpoint, RestorePlan


def write_patch(
    base: Path,
    tuned: Path,
    plan: RestorePlan,
    level: str,
    file: Path,
    *,
    manifest: Mapping[str, Any] | None = None,
    verified: bool = False,
    resources: Resources | None = None,
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
        resources: threads that compute.

    Returns:
        How many values the patch changes.

    Raises:
        CheckpointError: as `restore_levels`.
    """
    cut = find_cut(plan, level)
    _refuse_file(file)
    pair = pair_checkpoints(base, tuned, plan.region, plan.layers, common_rows=plan.common_rows)
    resources = resources or Resources()
    if not verified:
        verify_pair(pair, plan, resources)
    writer = _PatchWriter(pair, plan, cut, resources)
    writer.count()
    selected, differing, _ = writer.counts.sum(axis=1).tolist()
    if selected != cut.selected:
        raise CheckpointError(
            f"the plan selects {cut.selected} elements at {cut.level}, but {selected} were found; make the plan again"
        )
    header = PatchHeader(
        restoration={"level": cut.level, **described(plan, cut, pair), "selected": selected, "restored": differing},
        manifest=dict(manifest or {}),
        tuned_sha256=plan.tuned_sha256,
        restored_sha256=writer.after.hexdigest(),
        shapes={tensor.name: tensor.shape for tensor in pair.tensors},
    )
    try:
        with atomic_file(file) as partial:
            writer.write(partial, header)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be written: {error.strerror or error}") from error
    return int(writer.counts[2].sum())


def apply_patch(
    model: Path,
    file: Path,
    out: Path,
    *,
    resources: Resources | None = None,
    finishing: Finishing | None = None,
) -> RestoredCheckpoint:
    """Write the model that a patch makes of another one: of the fine-tuned model the restored one, and the reverse.

    Args:
        model: folder of the fine-tuned or of the restored model; shards do not matter.
        file: from `write_patch`.
        out: the folder to write, as by `restore_levels`.
        resources: threads, memory and block sizes; the output does not depend on them.
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
        job = WriteJob(pair, f"by {file.name}", resources or Resources(), links=False)
        found = hash_side(pair, "tuned", job.resources)
        forward = found == patch.header.tuned_sha256
        if not forward and found != patch.header.restored_sha256:
            raise CheckpointError(
                f"{model} is neither the model that {file} was made for nor the one that it makes; give one of them"
            )
        restoration = dict(patch.header.restoration)
        if not forward:
            restoration |= {"level": "0%", "undone": restoration["level"], "selected": 0, "restored": 0}
        output = Output(folder=out, manifest=patch.header.manifest, restoration=restoration)
        painter = PatchPainter(patch, forward)
        folders = job.prepare([output], painter, inputs=(model,))
        job.write(folders, painter, (1,))
        with folders:
            expected = patch.header.restored_sha256 if forward else patch.header.tuned_sha256
            if hash_side(_moved(pair, folders.partial[0]), "tuned", job.resources) != expected:
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


class _PatchWriter:
    """Counts what a level changes in each chunk, in one pass, and writes it to its place in the file in another.

    Attributes:
        counts: by chunk: elements selected, those whose value differs, those whose bits do; shape (3, chunks).
        after: the hash of the restored region, once it is counted.
    """

    def __init__(self, pair: CheckpointPair, plan: RestorePlan, cut: LevelCut, resources: Resources) -> None:
        from sftknow.parameters.leveling import LevelSelector

        self._pair = pair
        self._resources = resources
        self._level = cut.level
        self._selector = LevelSelector(plan, [cut])
        self._numbers = {(chunk.position, chunk.piece): i for i, chunk in enumerate(chunks(pair))}
        self.counts: NDArray[np.int64] = np.zeros((3, len(self._numbers)), dtype=np.int64)
        self.after = RegionHash(pair.tensors, "tuned")

    def _select(self, chunk: Chunk, bits: Bits) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.intp]]:
        """The restored bits of a chunk, its ranks, and where its bits differ."""
        base, tuned = bits
        tensor = self._pair.tensors[chunk.position]
        ranks = np.empty(chunk.count, dtype=np.uint8)
        first = tensor.first + chunk.first
        self._selector.ranks(base, tensor.base.dtype, tuned, tensor.tuned.dtype, first, ranks)
        restored = np.where(ranks == 0, in_tuned_dtype(base, tensor, ranks, 1), tuned)
        return restored, ranks, np.flatnonzero(restored != tuned)

    def count(self) -> None:
        def count(chunk: Chunk, bits: Bits) -> None:
            restored, ranks, index = self._select(chunk, bits)
            dtype = self._pair.tensors[chunk.position].tuned.dtype
            differing = int((widen(restored[index], dtype) != widen(bits[1][index], dtype)).sum())
            number = self._numbers[chunk.position, chunk.piece]
            self.counts[:, number] = int((ranks == 0).sum()), differing, index.size
            self.after.add(chunk.position, chunk.piece, xxhash.xxh3_128(restored.data).digest())

        what = f"patch of {self._level}, counting"
        for_each_chunk(self._pair, ["base", "tuned"], count, what, self._resources)

    def write(self, file: Path, header: PatchHeader) -> None:
        tensors, changed = self._pair.tensors, self.counts[2]
        owners = np.array([position for position, _ in self._numbers], dtype=np.intp)
        per_tensor = np.bincount(owners, changed, len(tensors)).astype(np.int64)
        # By chunk, entries of its tensor in earlier chunks.
        before = np.cumsum(changed) - changed - (np.cumsum(per_tensor) - per_tensor)[owners]
        columns = []
        for tensor, count in zip(tensors, per_tensor.tolist(), strict=True):
            place, width = place_dtype(tensor.elements)
            columns.append((tensor.name + PLACE, place, [count], count * width.itemsize))
            value = count * FLOAT_BITS[tensor.tuned.dtype].itemsize
            columns += [(tensor.name + part, tensor.tuned.dtype, [count], value) for part in (RESTORED, TUNED)]
        head = safetensors_header(columns, header.metadata())
        starts = np.cumsum([len(head), *(size for _, _, _, size in columns)])
        lock = threading.Lock()
        with file.open("wb") as handle:
            handle.write(head)
            handle.truncate(int(starts[-1]))
            handle.flush()

            def put(chunk: Chunk, bits: Bits) -> None:
                restored, _, index = self._select(chunk, bits)
                places = (index + chunk.first).astype(place_dtype(tensors[chunk.position].elements)[1])
                skipped = before[self._numbers[chunk.position, chunk.piece]]
                with lock:
                    for i, part in enumerate((places, restored[index], bits[1][index])):
                        handle.seek(int(starts[3 * chunk.position + i] + skipped * part.itemsize))
                        handle.write(part.tobytes())

            what = f"patch of {self._level}, writing"
            for_each_chunk(self._pair, ["base", "tuned"], put, what, self._resources)
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
