"""Two checkpoints side by side: do they fit, which tensors make up the region, and their blocks in global order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from sftknow.errors import CheckpointError, RunError
from sftknow.parameters.regions import OUTPUT_HEADS, Place, Region, natural_order, parse_region, place_of
from sftknow.storage.artifacts import digest
from sftknow.storage.checkpoints import (
    FLOAT_BITS,
    CheckpointIndex,
    CheckpointReader,
    TensorEntry,
    listed,
    read_index,
)
from sftknow.storage.manifests import read_manifest

BLOCK = 1 << 22
"""Elements read at a time by default; a block of both models with all that is computed on it takes about 200 MB."""

_PREFIXES = ("model.", "transformer.", "gpt_neox.")


@dataclass(frozen=True, kw_only=True)
class TensorPair:
    """One tensor of the region in both checkpoints."""

    name: str
    """Its name in the fine-tuned checkpoint."""
    base: TensorEntry
    tuned: TensorEntry
    place: Place
    first: int
    """Global index of its first element: tensors in natural order of their names, elements row-major."""

    @property
    def elements(self) -> int:
        return self.tuned.elements


@dataclass(frozen=True, kw_only=True)
class CheckpointPair:
    """A base and a fine-tuned checkpoint that fit, and the tensors of a region in global order."""

    base: CheckpointIndex
    tuned: CheckpointIndex
    tensors: tuple[TensorPair, ...]

    @property
    def elements(self) -> int:
        """n: parameters in the region."""
        return sum(tensor.elements for tensor in self.tensors)


def pair_checkpoints(base: Path, tuned: Path, region: str, layers: str | None) -> CheckpointPair:
    """Index both checkpoints, check that they are of one architecture, and find the region's tensors.

    Only headers are read. Shards and dtypes may differ. Names may differ by the prefix that a model with a head puts
    before its body (``h.0…`` and ``transformer.h.0…``).

    Raises:
        CheckpointError: what `read_index` raises; other shapes, missing or extra tensors, BASE and TUNED swapped,
            a tied output head stored twice within the region, an empty region, dtypes that cannot be compared.
    """
    wanted = parse_region(region, layers)
    base_index, tuned_index = read_index(base), read_index(tuned)
    _refuse_swapped(base, tuned)
    partner = _partners(base_index, tuned_index)
    _refuse_other_vocabulary(base_index, tuned_index, partner)
    _refuse_other_tensors(base_index, tuned_index, partner)
    _refuse_double_head(tuned_index, partner, wanted)

    tensors: list[TensorPair] = []
    first = 0
    for name in natural_order([name for name in tuned_index.tensors if name in wanted]):
        entry, other = tuned_index.tensors[name], base_index.tensors[partner[name] or name]
        pair = TensorPair(name=name, base=other, tuned=entry, place=place_of(name), first=first)
        _refuse_dtype(pair.base, base)
        _refuse_dtype(pair.tuned, tuned)
        tensors.append(pair)
        first += entry.elements
    _refuse_empty(tuned_index, tensors, wanted, region, layers)
    return CheckpointPair(base=base_index, tuned=tuned_index, tensors=tuple(tensors))


def blocks(
    tensor: TensorPair, base: CheckpointReader, tuned: CheckpointReader, block: int
) -> Iterator[tuple[int, NDArray[Any], NDArray[Any]]]:
    """The stored bits of a tensor in both checkpoints: (first element within the tensor, base, fine-tuned)."""
    for first in range(0, tensor.elements, block):
        count = min(block, tensor.elements - first)
        yield first, base.read(tensor.base, first, count), tuned.read(tensor.tuned, first, count)


class RegionHash:
    """SHA-256 over names, dtypes, shapes and bytes of a region's tensors, independent of shards and block size.

    Feed every tensor's bytes in order with `update`, calling `close` after each tensor; then read `hexdigest`.
    """

    def __init__(self) -> None:
        self._tensors: list[tuple[str, str, tuple[int, ...], str]] = []
        self._current = hashlib.sha256()

    def update(self, bits: NDArray[Any]) -> None:
        self._current.update(bits.data)

    def close(self, entry: TensorEntry) -> None:
        self._tensors.append((entry.name, entry.dtype, entry.shape, self._current.hexdigest()))
        self._current = hashlib.sha256()

    def hexdigest(self) -> str:
        return digest(self._tensors)


def hash_region(
    index: CheckpointIndex, entries: Sequence[TensorEntry], block: int, advance: Callable[[int], object]
) -> str:
    """The `RegionHash` of the entries, given in global order. Reads every byte; ``advance`` is told of the elements."""
    found = RegionHash()
    with CheckpointReader(index) as reader:
        for entry in entries:
            for first in range(0, entry.elements, block):
                bits = reader.read(entry, first, min(block, entry.elements - first))
                found.update(bits)
                advance(bits.size)
            found.close(entry)
    return found.hexdigest()


def _partners(base: CheckpointIndex, tuned: CheckpointIndex) -> Mapping[str, str | None]:
    """For every tensor of the fine-tuned checkpoint its name in the base, or None where the base has none."""
    renamings: list[Callable[[str], str]] = [lambda name: name]
    for prefix in _PREFIXES:
        renamings.append(lambda name, prefix=prefix: name.removeprefix(prefix))  # type: ignore[misc]
        renamings.append(lambda name, prefix=prefix: prefix + name)  # type: ignore[misc]
    # max keeps the first of equals, so names as they are win.
    rename = max(renamings, key=lambda rename: sum(rename(name) in base.tensors for name in tuned.tensors))

    def partner(name: str) -> str | None:
        # A head lies outside of the body and never takes its prefix.
        return next((other for other in (rename(name), name) if other in base.tensors), None)

    return {name: partner(name) for name in tuned.tensors}


def _refuse_swapped(base: Path, tuned: Path) -> None:
    try:
        manifest = read_manifest(base, "model") or {}
    except RunError:  # somebody else's file of that name says nothing about the order
        return
    origin = manifest.get("base")
    path = origin.get("path") if isinstance(origin, Mapping) else None
    if isinstance(path, str) and base.resolve() != tuned.resolve() and Path(path).resolve() == tuned.resolve():
        raise CheckpointError(
            f"{base} was fine-tuned from {tuned}: BASE and TUNED are swapped; give them in that order"
        )


def _refuse_other_vocabulary(base: CheckpointIndex, tuned: CheckpointIndex, partner: Mapping[str, str | None]) -> None:
    for name, other in partner.items():
        before = base.tensors[other].shape if other else ()
        after = tuned.tensors[name].shape
        embedding = name in OUTPUT_HEADS or name.endswith(("embed_tokens.weight", "wte.weight", "embed_in.weight"))
        if embedding and before and before[0] != after[0] and before[1:] == after[1:]:
            verb = "grew" if after[0] > before[0] else "shrank"
            raise CheckpointError(
                f"the vocabulary {verb}: {name} has {before[0]} rows in {base.folder}, {after[0]} in {tuned.folder}; "
                f"bring the fine-tuned model back with resize_token_embeddings({before[0]}) and save it, then compare"
            )


def _refuse_other_tensors(base: CheckpointIndex, tuned: CheckpointIndex, partner: Mapping[str, str | None]) -> None:
    paired = set(partner.values())
    missing = [name for name in base.tensors if name not in paired and _is_needed(name, tuned)]
    extra = [name for name, other in partner.items() if other is None and _is_needed(name, base)]
    way_out = "are they of one model? An adapter must be merged, a wrapper's prefix taken off, before saving"
    if missing:
        raise CheckpointError(f"{tuned.folder} lacks tensors that {base.folder} has: {listed(missing)}; {way_out}")
    if extra:
        raise CheckpointError(f"{base.folder} lacks tensors that {tuned.folder} has: {listed(extra)}; {way_out}")
    for name, other in partner.items():
        before, after = base.tensors[other or name] if other else None, tuned.tensors[name]
        if before and before.shape != after.shape and not place_of(name).buffer:
            raise CheckpointError(
                f"{name} has shape {list(before.shape)} in {base.folder} and {list(after.shape)} in {tuned.folder}; "
                "give the very model that was fine-tuned as BASE"
            )


def _is_needed(name: str, index: CheckpointIndex) -> bool:
    """Whether it is an error that this checkpoint lacks a tensor that the other one has."""
    tied_head = name in OUTPUT_HEADS and index.tied is not False
    return not tied_head and not place_of(name).buffer


def _refuse_double_head(tuned: CheckpointIndex, partner: Mapping[str, str | None], region: Region) -> None:
    for head in OUTPUT_HEADS:
        if head in tuned.tensors and head in region and (tuned.tied or partner[head] is None):
            raise CheckpointError(
                f"{tuned.folder} ties its output head to its embedding but stores it a second time ({head}), so its "
                "parameters would count twice; load and save it with transformers, or choose the region transformer"
            )


def _refuse_empty(
    tuned: CheckpointIndex, tensors: Sequence[TensorPair], wanted: Region, region: str, layers: str | None
) -> None:
    there = {place_of(name).layer for name in tuned.tensors}
    absent = sorted((wanted.layers or frozenset()) - there)
    if absent:
        last = max((layer for layer in there if layer is not None), default=None)
        has = "no layers by their names" if last is None else f"layers 0 to {last}"
        raise CheckpointError(f"layers {layers}: {tuned.folder} has {has}, so no layer {absent[0]}")
    if not sum(tensor.elements for tensor in tensors):
        raise CheckpointError(
            f"no tensor of {tuned.folder} is in the region {region!r}; names are like {listed(list(tuned.tensors))}: "
            "choose them with the region re:PATTERN"
        )


def _refuse_dtype(entry: TensorEntry, folder: Path) -> None:
    if entry.dtype not in FLOAT_BITS:
        raise CheckpointError(
            f"{folder}: {entry.name} is stored as {entry.dtype}; the region must be in BF16, F16 or F32 "
            "(save the model in one of these, or narrow the region)"
        )
