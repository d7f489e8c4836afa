"""Two checkpoints side by side: do they fit, and which tensors make up the region, in global order."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sftknow.artifacts.manifests import read_manifest
from sftknow.checkpoints.adapters import is_adapter
from sftknow.checkpoints.merged import merged_index
from sftknow.checkpoints.reader import (
    FLOAT_BITS,
    CheckpointIndex,
    TensorEntry,
    listed,
    read_index,
)
from sftknow.checkpoints.regions import OUTPUT_HEADS, Place, Region, named_part, natural_order, parse_region, place_of
from sftknow.errors import CheckpointError, RunError
from sftknow.parameters.matching import Partners, match_by_loader, match_by_name
from sftknow.records import RestorePlan

_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "lm_head.bias")
_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers")
_ADAPTER = re.compile(r"\.(?:lora_|base_layer\.)")


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
    notes: tuple[str, ...] = ()
    """Lines on tensors that only one of them has and that the region does not need."""

    @property
    def elements(self) -> int:
        """n: parameters in the region."""
        return sum(tensor.elements for tensor in self.tensors)


def pair_checkpoints(
    base: Path,
    tuned: Path,
    region: str,
    layers: str | None,
    *,
    common_rows: bool = False,
    ignore: str | None = None,
) -> CheckpointPair:
    """Index both checkpoints, check that they are of one architecture, and find the region's tensors.

    Only headers are read. Shards and dtypes may differ, and names as `matching` says. What only one of them has is no
    obstacle where the region does not need it: the fine-tuned model's stays as it is, the base's is left out. A
    fine-tuned checkpoint may be a LoRA adapter of the base's.

    Args:
        common_rows: accept a vocabulary of another size: of embeddings and output head the rows that both have are
            compared, the first ones; further rows of the fine-tuned checkpoint belong to no region.
        ignore: a regular expression; tensors whose names contain a match are in no region and may be missing.

    Raises:
        CheckpointError: what `read_index` raises; other shapes, tensors of the region that one of them lacks, BASE and
            TUNED swapped or one folder, a tied output head stored twice within the region, an empty region, dtypes
            that cannot be compared.
    """
    wanted = parse_region(region, layers, ignore)
    base_index = read_index(base)
    tuned_index = merged_index(base_index, tuned) if is_adapter(tuned) else read_index(tuned)
    _refuse_swapped(base, tuned)
    wanted = replace(wanted, depth=_depth(tuned_index.config) or _depth(base_index.config))
    if wanted.names != ("all",):
        wanted = replace(wanted, parts=_parts(base_index) | _parts(tuned_index))
    partners = match_by_name(base_index, tuned_index)
    if any(_alone(base_index, tuned_index, partners, wanted)):
        partners = match_by_loader(base_index, tuned_index, partners)
    if not common_rows:
        _refuse_other_vocabulary(base_index, tuned_index, partners, wanted)
    notes = _refuse_other_tensors(base_index, tuned_index, partners, wanted, region)
    _refuse_double_head(tuned_index, partners, wanted)

    tensors: list[TensorPair] = []
    first = 0
    for name in natural_order([name for name in tuned_index.tensors if name in wanted]):
        entry, other = tuned_index.tensors[name], partners.entries[name]
        if other is None:  # not needed, by `_alone`
            continue
        if entry.shape != other.shape:
            rows = min(entry.shape[0], other.shape[0])
            entry, other = _first_rows(entry, rows), _first_rows(other, rows)
        pair = TensorPair(name=name, base=other, tuned=entry, place=place_of(name), first=first)
        _refuse_dtype(pair.base, base)
        _refuse_dtype(pair.tuned, tuned)
        tensors.append(pair)
        first += entry.elements
    _refuse_empty(tuned_index, tensors, wanted, region, layers)
    return CheckpointPair(base=base_index, tuned=tuned_index, tensors=tuple(tensors), notes=notes)


def pair_of(base: Path, tuned: Path, plan: RestorePlan) -> CheckpointPair:
    """`pair_checkpoints` as a plan has it."""
    return pair_checkpoints(base, tuned, plan.region, plan.layers, common_rows=plan.common_rows, ignore=plan.ignore)


def _parts(index: CheckpointIndex) -> dict[str, str]:
    """What the model's classes say of tensors whose names do not say what they are."""
    names = [name for name in index.tensors if named_part(name) is None]
    if not names:
        return {}
    from sftknow.models.loader_names import loader_names

    loader = loader_names(index.folder)
    return loader.parts({name: entry.shape for name, entry in index.tensors.items()}, names) if loader else {}


def _depth(config: Mapping[str, Any]) -> int | None:
    """How many decoder layers a config.json speaks of; the largest number where it has several."""
    inner = config.get("text_config")
    place = inner if isinstance(inner, Mapping) else config
    return max((place[key] for key in _DEPTHS if type(place.get(key)) is int), default=None)


def _alone(
    base: CheckpointIndex, tuned: CheckpointIndex, partners: Partners, wanted: Region
) -> tuple[list[str], list[str]]:
    """Tensors that the other checkpoint lacks and needs: of the base, of the fine-tuned one."""
    missing = [name for name in base.tensors if name not in partners.used]
    extra = [name for name, entry in partners.entries.items() if entry is None]
    return (
        [name for name in missing if _is_needed(name, tuned, partners, wanted)],
        [name for name in extra if _is_needed(name, base, partners, wanted)],
    )


def _first_rows(entry: TensorEntry, rows: int) -> TensorEntry:
    size = (entry.end - entry.start) // entry.shape[0] * rows if entry.shape[0] else 0
    return replace(entry, shape=(rows, *entry.shape[1:]), end=entry.start + size)


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


def _refuse_other_vocabulary(base: CheckpointIndex, tuned: CheckpointIndex, partners: Partners, wanted: Region) -> None:
    for name, other in partners.entries.items():
        if other and not wanted.ignores(name) and _differs_in_rows(name, other.shape, tuned.tensors[name].shape):
            before, after = other.shape[0], tuned.tensors[name].shape[0]
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


def _refuse_other_tensors(
    base: CheckpointIndex, tuned: CheckpointIndex, partners: Partners, wanted: Region, region: str
) -> tuple[str, ...]:
    """Refuse a region that one of them does not have whole; returns what to say of tensors outside of it."""
    missing, extra = _alone(base, tuned, partners, wanted)
    for names, lacking, having in ((missing, tuned, base), (extra, base, tuned)):
        if not names:
            continue
        way_out = "are they of one model? Leave such tensors out of the comparison with --ignore PATTERN"
        if any(_ADAPTER.search(name) for name in names):
            way_out = "an adapter must be merged (merge_and_unload) before the model is saved"
        raise CheckpointError(f"{lacking.folder} lacks tensors that {having.folder} has: {listed(names)}; {way_out}")
    for name, other in partners.entries.items():
        before, after = other.shape if other else None, tuned.tensors[name].shape
        if before is not None and before != after and not place_of(name).buffer and not wanted.ignores(name):
            if _differs_in_rows(name, before, after):  # asked for, else it had been refused by now
                continue
            raise CheckpointError(
                f"{name} has shape {list(before)} in {base.folder} and {list(after)} in {tuned.folder}; "
                "give the very model that was fine-tuned as BASE"
            )
    stay = [name for name, entry in partners.entries.items() if entry is None and _is_told(name)]
    left = [name for name in base.tensors if name not in partners.used and _is_told(name)]
    notes = []
    if stay:
        notes.append(
            f"copied from {tuned.folder} as they are, since {base.folder} has no such tensors and the region {region} "
            f"needs none: {listed(stay)}"
        )
    if left:
        notes.append(f"{tuned.folder} has no {listed(left)} as {base.folder} has; the region {region} needs none")
    return tuple(notes)


def _is_told(name: str) -> bool:
    """Whether a tensor that only one checkpoint has deserves a line: no buffer, no output head that may be tied."""
    return name not in OUTPUT_HEADS and not place_of(name).buffer


def _is_needed(name: str, index: CheckpointIndex, partners: Partners, wanted: Region) -> bool:
    """Whether it is an error that this checkpoint lacks a tensor that the other one has."""
    if name in OUTPUT_HEADS:  # without it a model that does not tie it could not be used
        return index.tied is False and not wanted.ignores(name)
    further = wanted.beyond(place_of(name)) or name.startswith("mtp.") or ".mtp." in name
    return name in wanted and not further and name not in partners.dropped


def _refuse_double_head(tuned: CheckpointIndex, partners: Partners, region: Region) -> None:
    for head in OUTPUT_HEADS:
        if head in tuned.tensors and head in region and (tuned.tied or partners.entries[head] is None):
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
