"""A restoration as a sparse file: which elements change, and by how much, so that it goes forwards and back.

It is a safetensors file. A tensor NAME of the region is cut into blocks of 2^18 elements (row-major). Where anything of
it changes it has two tensors here:

    NAME#blocks   U64, shape (blocks, 3): by block the values that change, the bytes of their places, and of their steps
    NAME#packed   U8: block after block its places and its steps, packed as in `sftknow.checkpoints.packing`

A place is written as its distance (uint32) from the one before it in the block, less one; the first from the block's
begin. A step is the restored value's bit pattern minus the fine-tuned one's, modulo 2^width, folded. Values whose bits
stay are not in the file. The metadata hold shapes and dtypes, and the hashes of the region before and after: the file
fits one model only, and which way it goes is seen from the model.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sftknow.checkpoints.index import TensorEntry, read_header, read_metadata
from sftknow.checkpoints.packing import PackingError, fold, pack, unfold, unpack
from sftknow.checkpoints.reader import FLOAT_BITS, CheckpointReader
from sftknow.errors import CheckpointError
from sftknow.parameters.pairs import TensorPair
from sftknow.untrusted import parse_json, shaped

TABLE, PACKED = "#blocks", "#packed"
BLOCK = 1 << 18
"""Elements of a block; the last one of a tensor may be shorter."""
_FORMAT = "sftknow-patch"
_VERSION = "2"
_AGAIN = "make the patch again"
_PLACE = np.dtype("<u4")
_COUNT = np.dtype("<u8")

Block = tuple[NDArray[np.int64], NDArray[Any]]
"""What changes in a block: places within the tensor, ascending, and steps (unsigned, of the values' width)."""


@dataclass(frozen=True, kw_only=True)
class PatchHeader:
    """What a patch says of itself."""

    restoration: Mapping[str, Any]
    """As in the ``sftknow.json`` of the restored model."""
    manifest: Mapping[str, Any]
    """What else belongs there."""
    tuned_sha256: str
    """`RegionHash` of the fine-tuned model."""
    restored_sha256: str
    """And of the restored one."""
    shapes: Mapping[str, tuple[int, ...]]
    """By tensor of the region, in global order: the shape that places count in."""
    dtypes: Mapping[str, str]
    """By tensor of the region: the dtype of its values."""

    def metadata(self) -> dict[str, str]:
        """For the safetensors header, whose metadata are strings."""
        return {"format": _FORMAT, "version": _VERSION, "patch": json.dumps(asdict(self), ensure_ascii=False)}


def block_count(elements: int) -> int:
    """How many blocks a tensor of that size has."""
    return -(-elements // BLOCK)


def packed_blocks(places: NDArray[np.intp], steps: NDArray[Any], count: int) -> Iterator[tuple[int, bytes, bytes]]:
    """The blocks of a run of elements that begins with a block, packed: (values that change, places, steps).

    Args:
        places: which elements change, counted from the run's first, ascending.
        steps: shape (places,), unsigned; overwritten.
        count: the run's elements.
    """
    begins = np.arange(0, count, BLOCK)
    bounds = [*np.searchsorted(places, begins).tolist(), places.size]
    for begin, start, end in zip(begins.tolist(), bounds, bounds[1:], strict=False):
        if start == end:
            yield 0, b"", b""
            continue
        distances = np.diff(places[start:end], prepend=begin - 1) - 1
        yield end - start, pack(distances.astype(_PLACE)), pack(fold(steps[start:end]))


def patch_metadata(file: Path) -> dict[str, str]:
    """The metadata of a patch of whatever version. Raises CheckpointError where it is none."""
    if not file.is_file():
        raise CheckpointError(f"{file} is not there; give the file that `sftknow restore --patch` wrote")
    read_header(file)  # refuses what is damaged
    metadata = read_metadata(file)
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(f"{file} is no patch of sftknow; give the file that `sftknow restore --patch` wrote")
    return metadata


class PatchFile:
    """Reads a patch. Use as a context manager; several threads may read at once.

    Raises:
        CheckpointError: it is no patch, damaged, or of another version.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        metadata = patch_metadata(file)
        if metadata.get("version") != _VERSION:
            raise CheckpointError(
                f"{file} was written by another version of sftknow; use that, or {_AGAIN} with this one"
            )
        content = parse_json(metadata.get("patch", ""), file, error=CheckpointError, way_out=_AGAIN)
        header: PatchHeader = shaped(content, PatchHeader, file, error=CheckpointError, way_out=_AGAIN)
        self.header = header
        entries = {entry.name: entry for entry in read_header(file)}
        self._reader = CheckpointReader()
        self._decoded = threading.local()
        self._tables = {name: self._table(name, entries) for name in header.shapes if name + TABLE in entries}
        self._packed = {name: entries[name + PACKED] for name in self._tables}
        self._starts = {
            name: np.concatenate([[0], np.cumsum(table[:, 1:].sum(axis=1))]) for name, table in self._tables.items()
        }

    def __enter__(self) -> PatchFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.__exit__()

    @property
    def values(self) -> int:
        """How many values it changes."""
        return sum(int(table[:, 0].sum()) for table in self._tables.values())

    def between(self, tensor: TensorPair, first: int, last: int) -> Block:
        """What the patch has for elements ``first … last − 1`` of a tensor, places counted from ``first``."""
        width = FLOAT_BITS[self.header.dtypes[tensor.name]]
        found: list[Block] = [(np.empty(0, dtype=np.int64), np.empty(0, dtype=width))]
        if tensor.name in self._tables:
            for number in range(first // BLOCK, block_count(last)):
                places, steps = self._block(tensor.name, number, width)
                part = slice(*np.searchsorted(places, (first, last)))
                found.append((places[part] - first, steps[part]))
        places, steps = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return places, steps

    def _block(self, name: str, number: int, width: np.dtype[Any]) -> Block:
        """A block; this thread's last one is kept, since windows of a tensor follow one another."""
        if getattr(self._decoded, "key", None) != (name, number):
            count, of_places, of_steps = self._tables[name][number].tolist()
            offset = self._packed[name].start + int(self._starts[name][number])
            packed = self._read(offset, of_places + of_steps, np.dtype("u1")).tobytes()
            try:
                distances = unpack(packed[:of_places], _PLACE, count) if count else np.empty(0, dtype=_PLACE)
                steps = unfold(unpack(packed[of_places:], width, count)) if count else np.empty(0, dtype=width)
            except PackingError as error:
                raise self._damaged(name, error) from None
            places = number * BLOCK + np.cumsum(distances.astype(np.int64) + 1) - 1
            end = min((number + 1) * BLOCK, math.prod(self.header.shapes[name]))
            if count and places[-1] >= end:
                raise self._damaged(name, "a place beyond its end")
            self._decoded.key, self._decoded.block = (name, number), (places, steps)
        block: Block = self._decoded.block
        return block

    def _table(self, name: str, entries: Mapping[str, TensorEntry]) -> NDArray[np.int64]:
        """A tensor's table of blocks, which fits its shape and its bytes."""
        rows = block_count(math.prod(self.header.shapes[name]))
        entry, packed = entries[name + TABLE], entries.get(name + PACKED)
        if (entry.dtype, entry.shape) != ("U64", (rows, 3)) or packed is None or packed.dtype != "U8":
            raise self._damaged(name, "other shapes than its own")
        table = self._read(entry.start, 3 * rows, _COUNT).reshape(rows, 3)
        if not (table[:, 0] <= BLOCK).all() or not (table[:, 1:] <= packed.elements).all():
            raise self._damaged(name, "impossible counts")
        if int(table[:, 1:].sum()) != packed.elements or self.header.dtypes.get(name) not in FLOAT_BITS:
            raise self._damaged(name, "impossible sizes")
        return table.astype(np.int64)

    def _read(self, offset: int, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        found: NDArray[Any] = np.empty(count, dtype=dtype)
        if count:
            try:
                self._reader.read_bytes(self.file, offset, found)
            except (EOFError, OSError) as error:
                raise CheckpointError(f"{self.file} cannot be read ({error}); {_AGAIN}") from None
        return found

    def _damaged(self, name: str, why: object) -> CheckpointError:
        return CheckpointError(f"{self.file} is damaged ({name}: {why}); {_AGAIN}")
