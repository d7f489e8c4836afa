"""Writes patches (see `patch_file`) and applies them, forwards and back, bit by bit."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from sftknow.artifacts.files import atomic_file
from sftknow.checkpoints.layout import OutputShard, safetensors_header
from sftknow.checkpoints.reader import FLOAT_BITS, CheckpointIndex, listed, read_index, values_differing
from sftknow.checkpoints.regions import place_of
from sftknow.errors import CheckpointError
from sftknow.machine import free_space
from sftknow.parameters.hashing import RegionHash, hash_side, verify_pair
from sftknow.parameters.options import Resources
from sftknow.parameters.outputs import Output, no_room
from sftknow.parameters.pairs import CheckpointPair, TensorPair, pair_of
from sftknow.parameters.passes import Bits, Chunk, chunks, for_each_chunk
from sftknow.parameters.patch_file import (
    BLOCK,
    PACKED,
    TABLE,
    PatchFile,
    PatchHeader,
    block_count,
    packed_blocks,
    patch_metadata,
)
from sftknow.parameters.restore import Finishing, WriteJob, described, find_cut, in_tuned_dtype
from sftknow.records import RestoredCheckpoint, RestorePlan, to_json


def write_patch(
    base: str | Path,
    tuned: str | Path,
    plan: RestorePlan,
    level: str,
    file: str | Path,
    *,
    manifest: Mapping[str, Any] | None = None,
    verified: bool = False,
    resources: Resources | None = None,
    say: Callable[[str], object] | None = None,
) -> int:
    """Write one level of a plan as a sparse file that turns the fine-tuned model into the restored one and back.

    The checkpoints are read twice, first to know the file's size. It appears whole or not at all; what a kill leaves
    the next call for the same file replaces.

    Args:
        base: folder of the pretrained checkpoint that the plan was made from.
        tuned: folder of the fine-tuned one.
        plan: from `analyse`.
        level: one of the plan's levels.
        file: what to write, replaced where it is a patch.
        manifest: goes into the ``sftknow.json`` of the model that the patch makes.
        verified: see `restore_levels`.
        resources: threads that compute.
        say: is told the size before anything is written.

    Returns:
        How many values the patch changes.

    Raises:
        CheckpointError: as `restore_levels`; too little disk.
    """
    base = Path(base)
    tuned = Path(tuned)
    file = Path(file)
    from sftknow.parameters.leveling import LevelSelector

    cut = find_cut(plan, level)
    refuse_patch_place(file)
    pair = pair_of(base, tuned, plan)
    resources = resources or Resources()
    if not verified:
        verify_pair(pair, plan, resources)
    selector = LevelSelector(plan, [cut])

    def make(tensor: TensorPair, first: int, base: NDArray[Any], tuned: NDArray[Any]) -> tuple[NDArray[Any], int]:
        ranks = np.empty(base.size, dtype=np.uint8)
        selector.ranks(base, tensor.base.dtype, tuned, tensor.tuned.dtype, tensor.first + first, ranks)
        return np.where(ranks == 0, in_tuned_dtype(base, tensor, ranks, 1), tuned), int((ranks == 0).sum())

    def restoration(selected: int, differing: int) -> dict[str, Any]:
        if selected != cut.selected:
            raise CheckpointError(
                f"the plan selects {cut.selected} elements at {cut.level}, but {selected} were found; make the plan "
                "again"
            )
        return {"level": cut.level, **described(plan, cut, pair), "selected": selected, "restored": differing}

    return write_made_patch(
        pair,
        make,
        file,
        what=cut.level,
        restoration=restoration,
        manifest=manifest,
        tuned_sha256=plan.tuned_sha256,
        resources=resources,
        say=say,
    )


Make = Callable[[TensorPair, int, NDArray[Any], NDArray[Any]], tuple[NDArray[Any], int]]
"""From a tensor, a block's first element within it, and the block's stored bits of base and fine-tuned checkpoint: the
new bits, shape (count,), and how many elements were selected. Called twice for every block, by many threads at once."""


def write_made_patch(
    pair: CheckpointPair,
    make: Make,
    file: Path,
    *,
    what: str,
    restoration: Callable[[int, int], Mapping[str, Any]],
    manifest: Mapping[str, Any] | None = None,
    tuned_sha256: str | None = None,
    resources: Resources | None = None,
    say: Callable[[str], object] | None = None,
) -> int:
    """Write what is made of a fine-tuned model's region as a patch; see `write_patch`.

    Args:
        pair: the region.
        make: its new bits.
        what: it is, in a word.
        restoration: goes into the patch; gets how many elements were selected, and how many values differ.
        tuned_sha256: the region's `RegionHash`, where it is known.

    The other arguments, what is returned and what is raised are those of `write_patch`.
    """
    refuse_patch_place(file)
    resources = resources or Resources()
    writer = _PatchWriter(pair, what, make, resources)
    writer.count()
    selected, differing, _ = writer.counts.sum(axis=1).tolist()
    header = PatchHeader(
        restoration=to_json(restoration(selected, differing)),
        manifest=dict(manifest or {}),
        tuned_sha256=tuned_sha256 or hash_side(pair, "tuned", resources),
        restored_sha256=writer.after.hexdigest(),
        shapes={tensor.name: tensor.shape for tensor in pair.tensors},
        dtypes={tensor.name: tensor.tuned.dtype for tensor in pair.tensors},
    )
    head, size = writer.layout(header)
    values = int(writer.counts[2].sum())
    if say is not None:
        say(f"{what}: {values:,} values, a patch of {size / 1e6:,.1f} MB")
    place, free = free_space(file.parent)
    if free < size:
        raise no_room(str(file), size, place, free)
    try:
        with atomic_file(file, alone=True) as partial:
            writer.write(partial, head, size)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be written: {error.strerror or error}") from error
    return values


def apply_patch(
    model: str | Path,
    file: str | Path,
    out: str | Path,
    *,
    resources: Resources | None = None,
    finishing: Finishing | None = None,
) -> PatchedCheckpoint:
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
    model = Path(model)
    file = Path(file)
    out = Path(out)
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
        changed = patch.values
    return PatchedCheckpoint(
        checkpoint=out,
        level=str(restoration["level"]),
        restored=_whole(patch.header.restoration.get("restored")),
        changed=changed,
        undone=not forward,
    )


@dataclass(frozen=True, kw_only=True)
class PatchedCheckpoint(RestoredCheckpoint):
    """A model that a patch made."""

    changed: int
    """Values whose bits it changed."""
    undone: bool
    """Whether it was taken back."""


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0


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
        places, steps = self._patch.between(tensor, first, first + tuned.size)
        row = rows[0, start : start + tuned.size]
        row[:] = tuned
        row[places] = tuned[places] + steps if self._forward else tuned[places] - steps
        counts += places.size


class _PatchWriter:
    """Packs what changes, in one pass to know how much it is, and in another to write it to its place.

    Attributes:
        counts: by chunk: elements selected, those whose value differs, those whose bits do; shape (3, chunks).
        after: the hash of the restored region, once it is counted.
    """

    def __init__(self, pair: CheckpointPair, what: str, make: Make, resources: Resources) -> None:
        self._pair = pair
        self._resources = resources
        self._what = what
        self._make = make
        self._numbers = {(chunk.position, chunk.piece): i for i, chunk in enumerate(chunks(pair))}
        # By tensor and block: values that change, bytes of their places, bytes of their steps.
        self._tables = [np.zeros((block_count(tensor.elements), 3), dtype=np.int64) for tensor in pair.tensors]
        self._starts: list[int] = []
        self.counts: NDArray[np.int64] = np.zeros((3, len(self._numbers)), dtype=np.int64)
        self.after = RegionHash(pair.tensors, "tuned")

    def _made(self, chunk: Chunk, bits: Bits) -> tuple[NDArray[Any], int, NDArray[np.intp]]:
        """The new bits of a chunk, how many elements were selected, and where the bits differ."""
        made, selected = self._make(self._pair.tensors[chunk.position], chunk.first, *bits)
        return made, selected, np.flatnonzero(made != bits[1])

    def count(self) -> None:
        def count(chunk: Chunk, bits: Bits) -> None:
            restored, selected, index = self._made(chunk, bits)
            after, before = restored[index], bits[1][index]
            differing = values_differing(after, before, self._pair.tensors[chunk.position].tuned.dtype)
            number = self._numbers[chunk.position, chunk.piece]
            self.counts[:, number] = selected, differing, index.size
            self.after.add(chunk.position, chunk.piece, xxhash.xxh3_128(np.ascontiguousarray(restored).data).digest())
            rows = self._tables[chunk.position][chunk.first // BLOCK :]
            for row, (values, places, steps) in zip(
                rows, packed_blocks(index, after - before, chunk.count), strict=False
            ):
                row[:] = values, len(places), len(steps)

        what = f"patch of {self._what}, counting"
        for_each_chunk(self._pair, ["base", "tuned"], count, what, self._resources)

    def layout(self, header: PatchHeader) -> tuple[bytes, int]:
        """The file's header with the tables of blocks behind it, and the size of the file. Call after `count`."""
        named = list(zip(self._pair.tensors, self._tables, strict=True))
        changed = [(tensor.name, table) for tensor, table in named if table.any()]
        columns = [(name + TABLE, "U64", list(table.shape), table.nbytes) for name, table in changed]
        packed = [(name + PACKED, "U8", [size], size) for name, table in changed for size in [int(table[:, 1:].sum())]]
        tables = b"".join(table.astype("<u8").tobytes() for _, table in changed)
        head = safetensors_header([*columns, *packed], header.metadata()) + tables
        sizes = [int(table[:, 1:].sum()) for _, table in named]
        self._starts = (len(head) + np.cumsum([0, *sizes])).tolist()
        return head, self._starts[-1]

    def write(self, file: Path, head: bytes, size: int) -> None:
        offsets = [
            start + np.cumsum(np.concatenate([[0], table[:, 1:].sum(axis=1)]))
            for start, table in zip(self._starts, self._tables, strict=False)
        ]
        lock = threading.Lock()
        with file.open("wb") as handle:
            handle.write(head)
            handle.truncate(size)
            handle.flush()

            def put(chunk: Chunk, bits: Bits) -> None:
                restored, _, index = self._made(chunk, bits)
                blocks = list(packed_blocks(index, restored[index] - bits[1][index], chunk.count))
                with lock:
                    handle.seek(int(offsets[chunk.position][chunk.first // BLOCK]))
                    handle.write(b"".join(places + steps for _, places, steps in blocks))

            what = f"patch of {self._what}, writing"
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
        dtype = patch.header.dtypes.get(name)
        if entry.dtype != dtype:
            raise CheckpointError(f"{name} is {entry.dtype} in {index.folder}, {dtype} in {patch.file}")
        size = int(np.prod(shape)) * FLOAT_BITS[entry.dtype].itemsize
        part = replace(entry, shape=shape, end=entry.start + size)
        tensors.append(TensorPair(name=name, base=part, tuned=part, place=place_of(name), first=first))
        first += part.elements
    return CheckpointPair(base=index, tuned=index, tensors=tuple(tensors))


def _moved(pair: CheckpointPair, folder: Path) -> CheckpointPair:
    """The same tensors in a copy of the checkpoint."""
    tensors = tuple(
        replace(tensor, tuned=replace(tensor.tuned, file=folder / tensor.tuned.file.name, made=None))
        for tensor in pair.tensors
    )
    return replace(pair, tensors=tensors)


def refuse_patch_place(file: Path) -> None:
    """Raise CheckpointError where a patch cannot be written: a folder, or a file that is no patch."""
    if file.is_dir():
        raise CheckpointError(f"{file} is a folder; give the patch a file name, such as {file / 'patch.safetensors'}")
    if file.exists():
        patch_metadata(file)  # raises where it is something else
