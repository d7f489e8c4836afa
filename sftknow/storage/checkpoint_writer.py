"""Writes a checkpoint with the layout of another one: same shards, same headers, some tensors with other bytes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from sftknow.storage.checkpoint_index import SHARD_INDEX, CheckpointIndex, TensorEntry

_COPY_BYTES = 1 << 23
_SIDE_SUFFIXES = {".json", ".jinja", ".txt", ".model", ".py", ".tiktoken", ".bpe", ".vocab", ".spm"}
_NESTED_SUFFIXES = {".jinja", ".py"}  # additional chat templates and custom code; other folders hold results
_LEGAL = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
# What tells of a training run or of another folder, not of the model that is being written.
_NOT_COPIED = {
    SHARD_INDEX, "sftknow.json", "loss.json", "trainer_state.json",
    "train_results.json", "eval_results.json", "all_results.json", "pytorch_model.bin.index.json",
}  # fmt: skip


def side_files(folder: Path) -> list[Path]:
    """Files that make a folder loadable beside its weights: configs, tokenizer, chat templates, custom code, licence.

    Relative to the folder, sorted. Hidden files, training leftovers, cards and weights of any format are left out.
    """
    found = []
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        leftover = any(part.startswith((".", "checkpoint-", "__pycache__")) for part in relative.parts)
        suffixes = _SIDE_SUFFIXES if len(relative.parts) == 1 else _NESTED_SUFFIXES
        wanted = path.suffix in suffixes or path.name.upper().startswith(_LEGAL)
        if wanted and not leftover and path.name not in _NOT_COPIED and path.is_file():
            found.append(relative)
    return sorted(found)


def output_bytes(index: CheckpointIndex) -> int:
    """Bytes that a checkpoint of the same layout takes on disk, side files included."""
    files = [*index.shards, *(index.folder / name for name in side_files(index.folder))]
    files += [index.shard_index] if index.shard_index else []
    return sum(path.stat().st_size for path in files)


class CheckpointWriter:
    """Writes ``folder`` in the layout of ``like``. Use as a context manager, then call `finish`.

    On entering, every shard is laid down: header and all tensors but ``replaced`` are bit copies of ``like``'s. The
    replaced ones are then given block by block, in any order, with `write`. One output shard is open at a time.

    Args:
        folder: an empty folder.
        like: the checkpoint whose layout, bytes and side files are taken.
        replaced: names of the tensors that `write` will supply.
    """

    def __init__(self, folder: Path, like: CheckpointIndex, replaced: Collection[str]) -> None:
        self.folder = folder
        self.like = like
        self._replaced = frozenset(replaced)
        self._file: Path | None = None
        self._descriptor = -1

    def __enter__(self) -> CheckpointWriter:
        for shard in self.like.shards:
            self._lay_down(shard)
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def write(self, entry: TensorEntry, first: int, bits: NDArray[Any]) -> None:
        """Write elements ``first …`` of a replaced tensor of ``like``, as stored bits of its own dtype."""
        target = self.folder / entry.file.name
        if target != self._file:
            self._close()
            self._descriptor = os.open(target, os.O_WRONLY)
            self._file = target
        offset = entry.start + first * bits.itemsize
        if entry.name not in self._replaced or offset + bits.nbytes > entry.end:
            raise ValueError(f"elements {first} to {first + bits.size} of {entry.name} are not to be replaced")
        _write_all(self._descriptor, memoryview(bits.tobytes()), offset)

    def finish(self) -> None:
        """Copy the side files and, last, the shard index. Without it a sharded checkpoint does not load."""
        self._close()
        for name in side_files(self.like.folder):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.like.folder / name, self.folder / name)
        if self.like.shard_index:
            shutil.copyfile(self.like.shard_index, self.folder / SHARD_INDEX)

    def _lay_down(self, shard: Path) -> None:
        skipped = sorted(
            (entry.start, entry.end)
            for entry in self.like.tensors.values()
            if entry.file == shard and entry.name in self._replaced
        )
        size = shard.stat().st_size
        source, target = os.open(shard, os.O_RDONLY), os.open(self.folder / shard.name, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.ftruncate(target, size)
            position = 0
            for start, end in [*skipped, (size, size)]:
                while position < start:
                    data = os.pread(source, min(_COPY_BYTES, start - position), position)
                    if not data:
                        raise OSError(f"{shard} became shorter while it was read")
                    _write_all(target, memoryview(data), position)
                    position += len(data)
                position = max(position, end)
        finally:
            os.close(source)
            os.close(target)

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._file, self._descriptor = None, -1


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
