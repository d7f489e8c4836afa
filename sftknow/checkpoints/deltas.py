"""Fine-tuned checkpoints stored small: what differs from the base, bit-exact, and the way back.

A delta folder is the checkpoint's folder with its safetensors files replaced by two: ``delta.bin``, compressed blocks,
and ``delta.json``, which says what they are. Files that equal the base's byte for byte (a tokenizer, mostly) are left
out as well. `materialize` makes the very same files again and compares their hashes. Its own configuration is called
``delta-config.json``: a ``config.json`` says in its place, to every program that loads models, what to do first.

A block is the difference of the bit patterns, fine-tuned minus base as whole numbers modulo 2^width, folded and packed
(`sftknow.checkpoints.packing`). An unchanged block takes no space.
"""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from sftknow.artifacts.files import atomic_folder, file_sha256, write_json
from sftknow.checkpoints.index import DELTA_INDEX, ITEM_BYTES, TensorEntry, read_header
from sftknow.checkpoints.packing import PackingError, compress, decompress, fold, pack, unfold, unpack
from sftknow.errors import CheckpointError
from sftknow.machine import available_processors
from sftknow.progress import progress
from sftknow.untrusted import load_json, refuse_outside, shaped
from sftknow.workers import in_order

BLOCKS = "delta.bin"
FORMATS = (1, 2)
"""Those that are read; the last one is written. The first one keeps ``config.json`` under its own name."""

CONFIG, OWN_CONFIG = "config.json", "delta-config.json"
_SAYS = {
    "model_type": "none as it lies here: sftknow keeps this model as its difference from its base. Write it whole "
    "first, and load that: sftknow materialize THIS_FOLDER --out FOLDER"
}
"""In place of a configuration. transformers, and all that build on it, quote a model type that they do not know."""

BLOCK_BYTES = 8 * 2**20
"""Bytes of a tensor that are compressed together. Part of the format."""

_AGAIN = "train this cell again or copy its folder again"
_WIDTHS: dict[int, np.dtype[Any]] = {1: np.dtype("<u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4"), 8: np.dtype("<u8")}


@dataclass(frozen=True, kw_only=True)
class DeltaSize:
    """What storing a checkpoint as a delta came to. Bytes."""

    full: int
    """All files of the checkpoint."""
    delta: int
    """All files of the delta folder."""


@dataclass(frozen=True, kw_only=True)
class StoredEntry:
    """One safetensors file, as ``delta.json`` has it."""

    size: int
    sha256: str
    header: str
    """Its first bytes, up to the first tensor, as base64."""
    own: list[str]
    """Tensors that are stored themselves."""
    blocks: list[tuple[int, int]]
    """Where each block lies in ``delta.bin``: first byte, bytes."""


@dataclass(frozen=True, kw_only=True)
class DeltaIndex:
    """``delta.json``."""

    format: int
    compressor: Literal["zstd"]
    files: Mapping[str, StoredEntry]
    from_base: Mapping[str, str]
    """Files that equal the base's: SHA-256."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A piece of one tensor."""

    tuned: TensorEntry
    base: TensorEntry | None
    """The base's tensor of that name, dtype and shape; None where it has none, and the values are stored themselves."""
    first: int
    """First byte within the tensor."""
    count: int
    """Bytes."""


def is_delta(folder: Path) -> bool:
    """Whether a folder holds a checkpoint as a delta."""
    return (folder / DELTA_INDEX).is_file()


def write_delta(base: Path, tuned: Path, out: Path) -> DeltaSize:
    """Store a fine-tuned checkpoint as what differs from its base.

    Args:
        base: the base's folder, with safetensors weights.
        tuned: the checkpoint's folder, with safetensors weights.
        out: the delta's folder; may be ``tuned`` itself, which is then replaced at the very end.

    Raises:
        CheckpointError: a file is missing or damaged, or ``tuned`` is a delta already.
    """
    if is_delta(tuned):
        raise CheckpointError(f"{tuned} is stored as a delta already")
    weights = sorted(tuned.glob("*.safetensors"))
    if not weights:
        raise CheckpointError(f"{tuned} has no safetensors weights to store as a delta")
    of_base = tensors(base)
    full = _size(tuned)
    with atomic_folder(out) as partial:
        files: dict[str, Any] = {}
        with (
            (partial / BLOCKS).open("wb") as sink,
            progress(_count(map(read_header, weights)), f"storing {tuned.name} small", unit="blocks") as bar,
        ):
            for file in weights:
                files[file.name] = _encode_file(file, of_base, sink, bar.update)
        from_base = {}
        for file in sorted(tuned.rglob("*")):
            name = file.relative_to(tuned).as_posix()
            if not file.is_file() or name in files:
                continue
            twin = base / name
            if file.stat().st_size and twin.is_file() and file.read_bytes() == twin.read_bytes():
                from_base[name] = file_sha256(file)
            else:
                _copy(file, partial / (OWN_CONFIG if name == CONFIG else name))
        write_json(partial / CONFIG, _SAYS)
        write_json(
            partial / DELTA_INDEX, {"format": FORMATS[-1], "compressor": "zstd", "files": files, "from_base": from_base}
        )
        small = _size(partial)
    return DeltaSize(full=full, delta=small)


def materialize(base: Path, delta: Path, out: Path) -> None:
    """Write the checkpoint that a delta stands for: the same files, byte for byte.

    Args:
        base: the folder of the base that the delta was made from.
        delta: the delta's folder.
        out: the checkpoint's folder, whole or not at all.

    Raises:
        CheckpointError: this is another base, or a file is missing or damaged.
    """
    index = read_delta(delta)
    of_base = tensors(base)
    with atomic_folder(out) as partial:
        total = sum(len(entry.blocks) for entry in index.files.values())
        with (delta / BLOCKS).open("rb") as source, progress(total, f"writing {out.name}", unit="blocks") as bar:
            for name, entry in index.files.items():
                _decode_file(partial / name, entry, of_base, source, bar.update, base=base)
        for name, sha256 in index.from_base.items():
            twin = base / name
            if not twin.is_file() or file_sha256(twin) != sha256:
                raise other_base(base, delta)
            _copy(twin, partial / name)
        for name, file in kept_files(delta, index).items():
            _copy(file, partial / name)


def kept_files(delta: Path, index: DeltaIndex) -> dict[str, Path]:
    """The files of the checkpoint that lie in the delta's folder as they are, by their path in the checkpoint."""
    aside = {DELTA_INDEX, BLOCKS, *([CONFIG] if index.format > 1 else [])}
    names = {file.relative_to(delta).as_posix(): file for file in sorted(delta.rglob("*")) if file.is_file()}
    renamed = {OWN_CONFIG: CONFIG} if index.format > 1 else {}
    return {renamed.get(name, name): file for name, file in names.items() if name not in aside}


def stored_weights(delta: Path) -> list[tuple[str, str]]:
    """The weight files that a delta stands for: (name, SHA-256) in order of their names.

    Raises:
        CheckpointError: the delta is damaged.
    """
    return [(name, file.sha256) for name, file in sorted(read_delta(delta).files.items())]


def read_delta(delta: Path) -> DeltaIndex:
    """The content of ``delta.json``. Raises CheckpointError where there is none, or it is damaged."""
    if not is_delta(delta):
        raise CheckpointError(f"{delta} holds no delta ({DELTA_INDEX} is missing); give the folder of a stored cell")
    file = delta / DELTA_INDEX
    found = load_json(file, error=CheckpointError, way_out=_AGAIN)
    if not isinstance(found, dict) or found.get("format") not in FORMATS:
        raise CheckpointError(f"{file} was written by another version of sftknow; upgrade it")
    index: DeltaIndex = shaped(found, DeltaIndex, file, error=CheckpointError, way_out=_AGAIN)
    refuse_outside([*index.files, *index.from_base], file, error=CheckpointError, way_out=_AGAIN)
    return index


def tensors(folder: Path) -> dict[str, TensorEntry]:
    """All tensors of a folder's safetensors files, by name. Raises CheckpointError where one is damaged."""
    return {entry.name: entry for file in sorted(folder.glob("*.safetensors")) for entry in read_header(file)}


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


def damaged(delta: Path, what: object) -> CheckpointError:
    """What to say of a delta that cannot be decoded."""
    return CheckpointError(f"{delta} is damaged ({what}); {_AGAIN}")


def other_base(base: Path, delta: Path) -> CheckpointError:
    """What to say where a delta and a base do not belong together."""
    return CheckpointError(f"{delta} was not made from the base {base}, or one of them is damaged; give its own base")


# ---- one file -----------------------------------------------------------------------------------------------------


def _encode_file(
    file: Path, of_base: Mapping[str, TensorEntry], sink: BinaryIO, done: Callable[[], object]
) -> dict[str, Any]:
    entries = read_header(file)
    begin = entries[0].start if entries else file.stat().st_size
    with file.open("rb") as handle:
        header = handle.read(begin)
    blocks: list[list[int]] = []
    own = [entry.name for entry in entries if _twin(entry, of_base) is None]
    for _, packed in in_order(_blocks_of(entries, of_base), _encode_block, available_processors()):
        blocks.append([sink.tell(), len(packed)])
        sink.write(packed)
        done()
    return {
        "size": file.stat().st_size,
        "sha256": file_sha256(file),
        "header": base64.b64encode(header).decode(),
        "own": own,
        "blocks": blocks,
    }


def _decode_file(
    target: Path,
    entry: StoredEntry,
    of_base: Mapping[str, TensorEntry],
    source: BinaryIO,
    done: Callable[[], object],
    *,
    base: Path,
) -> None:
    delta = Path(source.name).parent
    planned = shell(target, entry, of_base, base=base, delta=delta)

    def jobs() -> Iterator[tuple[Block, bytes]]:
        for block, (offset, length) in planned:
            source.seek(offset)
            yield block, source.read(length)

    with target.open("r+b") as sink:
        try:
            for (block, _), values in in_order(jobs(), decode_block, available_processors()):
                sink.seek(block.tuned.start + block.first)
                sink.write(values)
                done()
        except PackingError as error:
            raise damaged(delta, error) from None
    if file_sha256(target) != entry.sha256:
        raise other_base(base, delta)


def shell(
    target: Path, entry: StoredEntry, of_base: Mapping[str, TensorEntry], *, base: Path, delta: Path
) -> list[tuple[Block, tuple[int, int]]]:
    """Write a stored file's header, and a hole in place of its tensors.

    Args:
        target: the new file.
        entry: of ``delta.json``.
        of_base: the base's tensors.
        base, delta: their folders.

    Returns:
        The blocks that fill the hole, each with (first byte, bytes) in ``delta.bin``.

    Raises:
        CheckpointError: the delta is damaged, or was made from another base.
    """
    try:
        header = base64.b64decode(entry.header, validate=True)
    except ValueError as error:
        raise damaged(delta, error) from None
    if not len(header) <= entry.size <= len(header) + len(entry.blocks) * BLOCK_BYTES:
        raise damaged(delta, f"{target.name} cannot have {entry.size} bytes")
    target.write_bytes(header)
    # The header alone says where the tensors lie once the file has its full length.
    os.truncate(target, entry.size)
    entries = read_header(target)
    if sorted(e.name for e in entries if _twin(e, of_base) is None) != sorted(entry.own):
        raise other_base(base, delta)
    planned = list(_blocks_of(entries, of_base))
    if len(planned) != len(entry.blocks):
        raise damaged(delta, f"{len(entry.blocks)} blocks of {target.name}, not {len(planned)}")
    there = (delta / BLOCKS).stat().st_size
    if any(not 0 <= offset <= offset + length <= there for offset, length in entry.blocks):
        raise CheckpointError(f"{delta / BLOCKS} ends too early; {_AGAIN}")
    return list(zip(planned, entry.blocks, strict=True))


def _twin(entry: TensorEntry, of_base: Mapping[str, TensorEntry]) -> TensorEntry | None:
    """The base's tensor that the difference is taken from."""
    twin = of_base.get(entry.name)
    same = twin is not None and (twin.dtype, twin.shape) == (entry.dtype, entry.shape)
    return twin if same and ITEM_BYTES.get(entry.dtype) in _WIDTHS else None


def _count(files: Iterable[Iterable[TensorEntry]]) -> int:
    """Blocks of all tensors of all files."""
    return sum(-((entry.start - entry.end) // BLOCK_BYTES) for entries in files for entry in entries)


def _blocks_of(entries: Iterable[TensorEntry], of_base: Mapping[str, TensorEntry]) -> Iterator[Block]:
    for entry in entries:
        twin = _twin(entry, of_base)
        for first in range(0, entry.end - entry.start, BLOCK_BYTES):
            count = min(BLOCK_BYTES, entry.end - entry.start - first)
            yield Block(tuned=entry, base=twin, first=first, count=count)


# ---- one block ----------------------------------------------------------------------------------------------------


def _encode_block(block: Block) -> bytes:
    values = _read(block.tuned, block)
    if block.base is None:
        return compress(values.tobytes())
    width = _WIDTHS[ITEM_BYTES[block.tuned.dtype]]
    moved = values.view(width) - _read(block.base, block).view(width)
    if not moved.any():
        return b""
    return pack(fold(moved))


def decode_block(job: tuple[Block, bytes]) -> bytes:
    block, packed = job
    if block.base is None:
        return decompress(packed, block.count)
    before = _read(block.base, block)
    if not packed:
        return before.tobytes()
    width = _WIDTHS[ITEM_BYTES[block.tuned.dtype]]
    values: NDArray[Any] = before.view(width) + unfold(unpack(packed, width, block.count // width.itemsize))
    return values.tobytes()


def _read(entry: TensorEntry, block: Block) -> NDArray[np.uint8]:
    values = np.fromfile(entry.file, dtype=np.uint8, count=block.count, offset=entry.start + block.first)
    if values.size != block.count:
        raise CheckpointError(f"{entry.file} ends within {entry.name}; copy or download it again")
    return values
