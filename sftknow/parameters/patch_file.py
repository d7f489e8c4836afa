"""A restoration as a sparse file: which elements, their restored values, and the fine-tuned ones to go back.

It is a safetensors file. For every tensor NAME of the region it has three tensors of equal length, in ascending order
of the element's place within NAME (row-major):

    NAME#place      U32, or U64 for tensors of 2^32 elements and more
    NAME#restored   the base's values, in the dtype of the fine-tuned checkpoint
    NAME#tuned      the fine-tuned values

Elements whose bits a level leaves as they are are not in it. The metadata hold the hashes of the region before and
after, so that the file fits one model only, and which way it goes is seen from the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sftknow.checkpoints.index import TensorEntry, read_header, read_metadata
from sftknow.checkpoints.reader import FLOAT_BITS, CheckpointReader
from sftknow.errors import CheckpointError
from sftknow.parameters.pairs import TensorPair
from sftknow.untrusted import parse_json, shaped

PLACE, RESTORED, TUNED = "#place", "#restored", "#tuned"
_FORMAT = "sftknow-patch"
_VERSION = "1"
_AGAIN = "make the patch again"
_PLACES: dict[str, np.dtype[Any]] = {"U32": np.dtype("<u4"), "U64": np.dtype("<u8")}


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

    def metadata(self) -> dict[str, str]:
        """For the safetensors header, whose metadata are strings."""
        return {"format": _FORMAT, "version": _VERSION, "patch": json.dumps(asdict(self), ensure_ascii=False)}


def place_dtype(elements: int) -> tuple[str, np.dtype[Any]]:
    """The safetensors name and the NumPy dtype of places in a tensor of that size."""
    return ("U32", np.dtype("<u4")) if elements < 2**32 else ("U64", np.dtype("<u8"))


class PatchFile:
    """Reads a patch. Use as a context manager; several threads may read at once.

    Raises:
        CheckpointError: it is no patch, or damaged.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        if not file.is_file():
            raise CheckpointError(f"{file} is not there; give the file that `sftknow restore --patch` wrote")
        self._entries = {entry.name: entry for entry in read_header(file)}
        metadata = read_metadata(file)
        if metadata.get("format") != _FORMAT:
            raise CheckpointError(f"{file} is no patch of sftknow; give the file that `sftknow restore --patch` wrote")
        if metadata.get("version") != _VERSION:
            raise CheckpointError(f"{file} was written by another version of sftknow; upgrade, or make the patch again")
        content = parse_json(metadata.get("patch", ""), file, error=CheckpointError, way_out=_AGAIN)
        header: PatchHeader = shaped(content, PatchHeader, file, error=CheckpointError, way_out=_AGAIN)
        self.header = header
        for name in self.header.shapes:
            self._check(name)
        self._reader = CheckpointReader()

    def __enter__(self) -> PatchFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.__exit__()

    @property
    def values(self) -> int:
        """How many values it changes."""
        return sum(self._entries[name + PLACE].elements for name in self.header.shapes)

    def dtype(self, name: str) -> str:
        """The dtype of a tensor's values."""
        return self._entries[name + TUNED].dtype

    def between(
        self, tensor: TensorPair, first: int, last: int
    ) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[Any]]:
        """What the patch has for elements ``first … last − 1`` of a tensor: places from ``first``, restored, tuned."""
        places = self._entries[tensor.name + PLACE]
        start = self._search(places, first, 0)
        # No place is there twice, so as many as there are elements are enough.
        end = min(places.elements, start + last - first)
        found = self._read(places, start, end).astype(np.int64)
        found = found[: int(np.searchsorted(found, last))]
        end = start + found.size
        values = [self._read(self._entries[tensor.name + part], start, end) for part in (RESTORED, TUNED)]
        return found - first, values[0], values[1]

    def _search(self, places: TensorEntry, place: int, low: int) -> int:
        """The first entry that is not below ``place``."""
        high = places.elements
        while low < high:
            middle = (low + high) // 2
            if int(self._read(places, middle, middle + 1)[0]) < place:
                low = middle + 1
            else:
                high = middle
        return low

    def _read(self, entry: TensorEntry, start: int, end: int) -> NDArray[Any]:
        dtype = _PLACES.get(entry.dtype) or FLOAT_BITS[entry.dtype]
        found: NDArray[Any] = np.empty(end - start, dtype=dtype)
        if end > start:
            try:
                self._reader.read_bytes(self.file, entry.start + start * dtype.itemsize, found)
            except (EOFError, OSError) as error:
                raise CheckpointError(f"{self.file} cannot be read ({error}); make the patch again") from None
        return found

    def _check(self, name: str) -> None:
        parts = [self._entries.get(name + part) for part in (PLACE, RESTORED, TUNED)]
        whole = all(part is not None for part in parts) and len({part.shape for part in parts if part}) == 1
        known = whole and parts[0] is not None and parts[0].dtype in ("U32", "U64")
        if not known or any(part is None or part.dtype not in FLOAT_BITS for part in parts[1:]):
            raise CheckpointError(f"{self.file} is damaged (the entries of {name}); make the patch again")
