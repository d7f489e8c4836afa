"""The folders that restored models go to: may they be written, is there room, and how they appear whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftknow.artifacts.files import digest
from sftknow.artifacts.keyed_folder import PartialFolder
from sftknow.artifacts.manifests import MANIFEST, read_manifest, write_manifest
from sftknow.checkpoints.layout import Layout
from sftknow.checkpoints.reader import SHARD_INDEX, CheckpointIndex
from sftknow.checkpoints.side_files import refuse_foreign, side_sources
from sftknow.errors import CheckpointError, RunError
from sftknow.machine import free_space

_SPARE_BYTES = 1 << 20  # for the manifest, the card and the folders themselves


@dataclass(kw_only=True)
class Output:
    """One folder to write."""

    folder: Path
    manifest: Mapping[str, Any]
    """Goes into ``sftknow.json`` as it is."""
    restoration: dict[str, Any]
    """Goes there too, under ``restoration``. What is in it beforehand decides what the weights are."""


class OutputFolders:
    """Several folders of one layout, each written next to its place. Use as a context manager around `finish`.

    Args:
        outputs: what to write.
        layout: of the weights.
        like: the checkpoint that side files come from.
        inputs: folders that no output may touch.

    Raises:
        CheckpointError: an output is an input, within one or around one, or holds something that is not ours.
    """

    def __init__(
        self, outputs: Sequence[Output], layout: Layout, like: CheckpointIndex, inputs: Sequence[Path]
    ) -> None:
        self.outputs = outputs
        self._layout = layout
        self._like = like
        self._finished = [refuse_output(output.folder, inputs) for output in outputs]
        _refuse_nested([output.folder for output in outputs])
        shards = [[shard.name, shard.size, shard.tensors] for shard in layout.shards]
        self._keys = [digest([output.restoration, shards]) for output in outputs]
        self._partials = [PartialFolder(out.folder, key) for out, key in zip(outputs, self._keys, strict=True)]

    @property
    def partial(self) -> list[Path]:
        """Where to write, by output."""
        return [partial.folder for partial in self._partials]

    def refuse_full_disk(self, kinds: Sequence[Sequence[Hashable]] | None) -> None:
        """Refuse what the disk has no room for.

        Args:
            kinds: by shard, by output: outputs of equal kinds share a file. None where they never do.

        Raises:
            CheckpointError: too little is free. What an earlier start has already written counts as free.
        """
        side = sum(file.stat().st_size for file in side_sources(self._like).values())
        needed: dict[int, int] = {}
        disks: dict[int, tuple[Path, int]] = {}
        for i, output in enumerate(self.outputs):
            parent, free = free_space(output.folder.resolve().parent)
            device = parent.stat().st_dev
            disks.setdefault(device, (parent, free))
            weights = sum(
                shard.size
                for j, shard in enumerate(self._layout.shards)
                if kinds is None or kinds[j].index(kinds[j][i]) == i
            )
            there = _bytes_in(self._partials[i].folder) + (_bytes_in(output.folder) if self._is_same(i) else 0)
            needed[device] = needed.get(device, 0) + max(weights + side + _SPARE_BYTES - there, 0)
        for device, (parent, free) in disks.items():
            if free < needed[device]:
                what = ", ".join(str(output.folder) for output in self.outputs)
                raise no_room(what, needed[device], parent, free)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Within the block `partial` is ready to be written.

        Where the block is left by an error of the file system or by an interruption, what is written is kept for the
        next start; after any other error it is removed.

        Raises:
            CheckpointError: the file system refuses, for which it gives the reason; another process is at it.
        """
        try:
            for i, partial in enumerate(self._partials):
                partial.open([shard.name for shard in self._layout.shards] if self._is_same(i) else ())
            yield
        except OSError as error:
            self._close()
            raise _unwritable(self.outputs[0].folder, error) from error
        except RunError as error:
            self._close()
            raise CheckpointError(str(error)) from None
        except Exception:
            self._discard()
            raise
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> OutputFolders:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, OSError):
            self._close()
            raise _unwritable(self.outputs[0].folder, error) from error
        if isinstance(error, Exception):
            self._discard()
        else:
            self._close()

    def finish(self, finishing: Callable[[Path, Path], object] | None) -> None:
        """Add side files, index, manifest and what ``finishing`` adds; put every folder in its place."""
        for partial, output, key in zip(self._partials, self.outputs, self._keys, strict=True):
            for name, source in side_sources(self._like).items():
                (partial.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, partial.folder / name)
            if self._layout.shard_index is not None:  # without it a sharded checkpoint does not load
                (partial.folder / SHARD_INDEX).write_bytes(self._layout.shard_index)
            restoration = {**output.restoration, "key": key}
            write_manifest(partial.folder, "model", {**output.manifest, "restoration": restoration})
            if finishing is not None:
                finishing(partial.folder, output.folder)
        for partial in self._partials:
            partial.finish()

    def _is_same(self, i: int) -> bool:
        """Whether the folder in the output's place was written from the same weights to the same layout."""
        return self._finished[i] == self._keys[i]

    def _close(self) -> None:
        for partial in self._partials:
            partial.close()

    def _discard(self) -> None:
        for partial in reversed(self._partials):  # the first made the folder that they all lie in
            partial.discard()


def no_room(what: str, needed: int, place: Path, free: int) -> CheckpointError:
    """What to say where a disk is too full for something."""
    return CheckpointError(
        f"{what} would take {needed / 1e9:.2f} GB and {place} has {free / 1e9:.2f} GB left; make room there"
    )


def refuse_output(out: Path, inputs: Sequence[Path]) -> str | None:
    """Return the key of an earlier output at ``out``.

    Raises:
        CheckpointError: an input lies there, something that is no restored model, or one with somebody's files in it.
    """
    target = out.resolve()
    for source in (path.resolve() for path in inputs):
        if target == source or target in source.parents or source in target.parents:
            raise CheckpointError(f"{out} is, holds or lies within the checkpoint {source}; give another folder")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        made = (read_manifest(out, "model") or {}).get("restoration") if out.is_dir() else None
    except RunError:
        made = None
    if not isinstance(made, dict):
        raise CheckpointError(f"{out} is there and no restored model ({MANIFEST} does not say so); give another folder")
    refuse_foreign(out, sources=inputs)
    return str(made.get("key"))


def refuse_within(out: Path, inputs: Sequence[Path]) -> None:
    """Raise CheckpointError where ``out`` is a folder that is read, or lies within one."""
    for source in (path.resolve() for path in inputs):
        if source == out.resolve() or source in out.resolve().parents:
            raise CheckpointError(f"{out} is or lies within {source}, which is only read; give another folder")


def _refuse_nested(folders: Sequence[Path]) -> None:
    resolved = [folder.resolve() for folder in folders]
    for folder in folders:
        if (folder.resolve().parent / MANIFEST).is_file():
            raise CheckpointError(f"{folder} would lie within the model {folder.parent}; give another folder")
    for i, folder in enumerate(resolved):
        if folder in resolved[:i] or any(folder in other.parents for other in resolved):
            raise CheckpointError(f"{folders[i]} is given to two outputs, or one within the other; give each its own")


def _bytes_in(folder: Path) -> int:
    if not folder.is_dir():
        return 0
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def _unwritable(out: Path, error: OSError) -> CheckpointError:
    where = f" ({error.filename})" if error.filename else ""
    return CheckpointError(
        f"{out} cannot be written: {error.strerror or error}{where}; mend that and start the same command again, which "
        f"continues with what is in .{out.name}.partial next to it, or delete that"
    )
