"""Two checkpoints side by side: do they fit, and which tensors make up the region, in global order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sftknow.artifacts.manifests import read_manifest
from sftknow.checkpoints.reader import (
    FLOAT_BITS,
    CheckpointIndex,
    TensorEntry,
    listed,
    read_index,
)
from sftknow.errors import CheckpointError, RunError
from sftknow.parameters.regions import OUTPUT_HEADS, Place, Region, natural_order, parse_region, place_of

_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "lm_head.bias")
_PREFIXES = ("model.", "transformer.", "gpt_neox.")


@dataclass(frozen=True, kw_only=True)
class TensorPair:
    """One tensor of the region in both checkpoints."""

    name: str
    """Its name in the fine-tuned checkpoint."""
    base: TensorEntry
    """Cut down to the common rows where they are compared, as `tuned` is."""
    tuned: TensorEntry
    place: Place
    first: int
    """Global index of its first element: tensors in natural order of their names, elements row-major."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what is compared."""
        return self.tuned.shape

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


def pair_checkpoints(
    base: Path, tuned: Path, region: str, layers: str | None, *, common_rows: bool = False
) -> CheckpointPair:
    """Index both checkpoints, check that they are of one architecture, and find the region's tensors.

    Only headers are read. Shards and dtypes may differ. Names may differ by the prefix that a model with a head puts
    before its body (``h.0…`` and ``transformer.h.0…``).

    Args:
        common_rows: accept a vocabulary of another size: of embeddings and output head the rows that both have are
            compared, the first ones; further rows of the fine-tuned checkpoint belong to no region.

    Raises:
        CheckpointError: what `read_index` raises; other shapes, missing or extra tensors, BASE and TUNED swapped or
            one folder, a tied output head stored twice within the region, an empty region, dtypes that cannot be
            compared.
    """
    wanted = parse_region(region, layers)
    base_index, tuned_index = read_index(base), read_index(tuned)
    _refuse_swapped(base, tuned)
    partner = _partners(base_index, tuned_index)
    if not common_rows:
        _refuse_other_vocabulary(base_index, tuned_index, partner)
    _refuse_other_tensors(base_index, tuned_index, partner)
    _refuse_double_head(tuned_index, partner, wanted)

    tensors: list[TensorPair] = []
    first = 0
    for name in natural_order([name for name in tuned_index.tensors if name in wanted]):
        entry, other = tuned_index.tensors[name], base_index.tensors[partner[name] or name]
        if entry.shape != other.shape:
            rows = min(entry.shape[0], other.shape[0])
            entry, other = _first_rows(entry, rows), _first_rows(other, rows)
        pair = TensorPair(name=name, base=other, tuned=entry, place=place_of(name), first=first)
        _refuse_dtype(pair.base, base)
        _refuse_dtype(pair.tuned, tuned)
        tensors.append(pair)
        first += entry.elements
    _refuse_empty(tuned_index, tensors, wanted, region, layers)
    return CheckpointPair(base=base_index, tuned=tuned_index, tensors=tuple(tensors))


def _first_rows(entry: TensorEntry, rows: int) -> TensorEntry:
    size = (entry.end - entry.start) // entry.shape[0] * rows if entry.shape[0] else 0
    return replace(entry, shape=(rows, *entry.shape[1:]), end=entry.start + size)


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
    if base.resolve() == tuned.resolve():
        raise CheckpointError(f"BASE and TUNED are one folder, {base}: nothing can have changed; give two checkpoints")
    try:
        manifest = read_manifest(base, "model") or {}
    except RunError:  # somebody else's file of that name says nothing about the order
        return
    origin = manifest.get("base")
    path = origin.get("path") if isinstance(origin, Mapping) else None
    if isinstance(path, str) and any(p.resolve() == tuned.resolve() for p in (Path(path), base / path)):
        raise CheckpointError(
            f"{base} was fine-tuned from {tuned}: BASE and TUNED are swapped; give them in that order"
        )


def _refuse_other_vocabulary(base: CheckpointIndex, tuned: CheckpointIndex, partner: Mapping[str, str | None]) -> None:
    for name, other in partner.items():
        if other and _differs_in_rows(name, base.tensors[other].shape, tuned.tensors[name].shape):
            before, after = base.tensors[other].shape[0], tuned.tensors[name].shape[0]
            verb, rest = "shrank", "the output has as many"
            if after > before:
                verb, rest = "grew", "further rows stay as they were fine-tuned"
            raise CheckpointError(
                f"the vocabulary {verb}: {name} has {before} rows in {base.folder}, {after} in {tuned.folder}; compare "
                f"the first {min(before, after)} with --common-rows ({rest}), or "
                f"bring the fine-tuned model back with resize_token_embeddings({before}) and save it"
            )


def _differs_in_rows(name: str, before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Whether an embedding or an output head has another vocabulary, all else being the same."""
    embedding = name in OUTPUT_HEADS or name.endswith(_EMBEDDINGS)
    return embedding and bool(before and after) and before[0] != after[0] and before[1:] == after[1:]


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
            if _differs_in_rows(name, before.shape, after.shape):  # asked for, else it had been refused by now
                continue
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
