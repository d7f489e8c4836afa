"""How a checkpoint that is about to be written is laid out: its shards, and where every byte of them comes from."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sftknow.checkpoints.index import SINGLE_FILE, CheckpointIndex, Made, TensorEntry, index_metadata, read_metadata
from sftknow.errors import CheckpointError

_HEADER_STEP = 8


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A run of bytes of one output shard."""

    start: int
    """First byte in the output."""
    end: int
    """One past the last byte."""
    source: Path | bytes
    """The file that the bytes are in, or the bytes themselves."""
    offset: int
    """Where in the source the first byte lies."""
    tensor: str | None
    """The tensor whose bytes they are, all of them; None for headers."""
    made: Made | None = None
    """What makes the tensor's bytes in place of the source."""


@dataclass(frozen=True, kw_only=True)
class OutputShard:
    """One file of the output. Its segments follow one another without gaps, from byte 0 to ``size``."""

    name: str
    segments: tuple[Segment, ...]

    @property
    def size(self) -> int:
        return self.segments[-1].end

    @property
    def tensors(self) -> list[str]:
        return [segment.tensor for segment in self.segments if segment.tensor is not None]

    def window(self, first: int, last: int) -> Iterator[tuple[Segment, int, int]]:
        """The segments that have bytes in ``first … last − 1``, each with its part: (segment, from, to)."""
        for segment in self.segments:
            start, end = max(first, segment.start), min(last, segment.end)
            if start < end:
                yield segment, start, end


@dataclass(frozen=True, kw_only=True)
class Layout:
    """All shards of an output, and its index file."""

    shards: tuple[OutputShard, ...]
    shard_index: bytes | None
    """Content of ``model.safetensors.index.json``; None for a single file."""

    @property
    def bytes(self) -> int:
        return sum(shard.size for shard in self.shards) + len(self.shard_index or b"")


def layout_like(index: CheckpointIndex) -> Layout:
    """The layout of a checkpoint as it is: same files, same headers, same order of bytes."""
    shards = []
    for file in index.shards:
        entries = sorted((e for e in index.tensors.values() if e.file == file and e.elements), key=lambda e: e.start)
        segments: list[Segment] = []
        position, size = 0, file.stat().st_size
        for entry in entries:
            if position < entry.start:
                segments.append(_copied(file, position, entry.start, None))
            segments.append(_copied(file, entry.start, entry.end, entry.name, entry.made))
            position = entry.end
        if position < size:
            segments.append(_copied(file, position, size, None))
        shards.append(OutputShard(name=file.name, segments=tuple(segments)))
    return Layout(shards=tuple(shards), shard_index=index.shard_index.read_bytes() if index.shard_index else None)


def layout_in_shards(index: CheckpointIndex, shard_bytes: int) -> Layout:
    """The tensors of a checkpoint in their order, dealt anew to files of at most ``shard_bytes``.

    A tensor that is larger than that by itself has a file to itself. Where all fits one file it is
    ``model.safetensors``, without an index.
    """
    position = {file: i for i, file in enumerate(index.shards)}
    entries = sorted(index.tensors.values(), key=lambda entry: (position[entry.file], entry.start, entry.end))
    groups: list[list[TensorEntry]] = [[]]
    filled = 0
    metadata = _metadata(index)
    fixed = 8 + _HEADER_STEP + len(json.dumps({"__metadata__": metadata}).encode())
    for entry in entries:
        needed = entry.end - entry.start + len(json.dumps(_described(entry, 10**15)).encode()) + 4
        if groups[-1] and fixed + filled + needed > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(entry)
        filled += needed
    if len(groups) == 1:
        names = [SINGLE_FILE]
    else:
        names = [f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
    shards = tuple(_fresh_shard(name, group, metadata) for name, group in zip(names, groups, strict=True))
    if len(groups) == 1:
        return Layout(shards=shards, shard_index=None)
    weight_map = {entry.name: name for name, group in zip(names, groups, strict=True) for entry in group}
    head = {**index_metadata(index), "total_size": sum(entry.end - entry.start for entry in entries)}
    text = json.dumps({"metadata": head, "weight_map": dict(sorted(weight_map.items()))}, indent=2) + "\n"
    return Layout(shards=shards, shard_index=text.encode())


def safetensors_header(tensors: Sequence[tuple[str, str, Sequence[int], int]], metadata: Mapping[str, str]) -> bytes:
    """The header of a safetensors file, length prefix included, for (name, dtype, shape, bytes) in order of bytes."""
    content: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, dtype, shape, size in tensors:
        content[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _HEADER_STEP)
    return struct.pack("<Q", len(text)) + text


def parse_size(text: str) -> int:
    """Bytes from ``5GB``, ``512MB``, ``2GiB``, ``1.5G`` or a plain number.

    Raises:
        CheckpointError: anything else, or nothing at all.
    """
    units = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
    stripped = text.strip().lower().removesuffix("b")
    number = stripped.rstrip("kmgti").strip()
    unit = stripped.removeprefix(number).strip()
    try:
        size = int(float(number) * units[unit])
    except (ValueError, KeyError, OverflowError):
        size = 0
    if size < 1:
        raise CheckpointError(f"cannot read the size {text!r}; write it like 5GB, 512MB or 2GiB")
    return size


def _copied(file: Path, start: int, end: int, tensor: str | None, made: Made | None = None) -> Segment:
    return Segment(start=start, end=end, source=file, offset=start, tensor=tensor, made=made)


def _described(entry: TensorEntry, offset: int) -> dict[str, Any]:
    return {entry.name: {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [offset, offset]}}


def _fresh_shard(name: str, entries: Sequence[TensorEntry], metadata: Mapping[str, str]) -> OutputShard:
    header = safetensors_header([(e.name, e.dtype, e.shape, e.end - e.start) for e in entries], metadata)
    segments = [Segment(start=0, end=len(header), source=header, offset=0, tensor=None)]
    for entry in entries:
        start, size = segments[-1].end, entry.end - entry.start
        if size:
            whole = _copied(entry.file, entry.start, entry.end, entry.name, entry.made)
            segments.append(replace(whole, start=start, end=start + size))
    return OutputShard(name=name, segments=tuple(segments))


def _metadata(index: CheckpointIndex) -> dict[str, str]:
    return read_metadata(index.shards[0]) or {"format": "pt"}
