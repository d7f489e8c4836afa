"""Which tensor of the base belongs to which one of the fine-tuned checkpoint, also where their names differ.

Names differ by the prefix that a model with a head puts before its body, by what a wrapper left in them, and by what
transformers itself renames and packs while it loads, so that a model that it saved need not look like the one that it
loaded. The last is looked up in transformers, and only where the first two leave a tensor of the region alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sftknow.checkpoints.reader import FLOAT_BITS, CheckpointIndex, TensorEntry
from sftknow.checkpoints.regions import OUTPUT_HEADS

if TYPE_CHECKING:
    from sftknow.models.loader_names import Landing, LoaderNames

_PREFIXES = ("model.", "transformer.", "gpt_neox.")
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod\.|base_model\.model\.(?=.*\.)|module\.)")
"""What torch.compile, peft and data-parallel wrappers put into names."""


@dataclass(frozen=True, kw_only=True)
class Partners:
    """The base's side of every tensor of a fine-tuned checkpoint."""

    entries: Mapping[str, TensorEntry | None]
    """By name in the fine-tuned checkpoint: where the base has its values, or None where it has none."""
    used: frozenset[str]
    """Tensors of the base that one of them belongs to."""
    dropped: frozenset[str] = frozenset()
    """Tensors of either that the model's class leaves out when it loads a checkpoint, by its own word."""


def match_by_name(base: CheckpointIndex, tuned: CheckpointIndex) -> Partners:
    """Partners by names that are the same but for a prefix, a wrapper, or what the output head is called."""
    bare = {_WRAPPERS.sub("", name): name for name in base.tensors}
    renamings: list[Callable[[str], str]] = [lambda name: name]
    for prefix in _PREFIXES:
        renamings.append(lambda name, prefix=prefix: name.removeprefix(prefix))  # type: ignore[misc]
        renamings.append(lambda name, prefix=prefix: prefix + name)  # type: ignore[misc]
    names = {name: _WRAPPERS.sub("", name) for name in tuned.tensors}
    # max keeps the first of equals, so names as they are win.
    rename = max(renamings, key=lambda rename: sum(rename(name) in bare for name in names.values()))
    found: dict[str, str | None] = {}
    for name, short in names.items():
        # A head lies outside of the body and never takes its prefix.
        heads = OUTPUT_HEADS if short in OUTPUT_HEADS else ()
        found[name] = next((bare[other] for other in (rename(short), short, *heads) if other in bare), None)
    return Partners(
        entries={name: None if other is None else base.tensors[other] for name, other in found.items()},
        used=frozenset(other for other in found.values() if other is not None),
    )


def match_by_loader(base: CheckpointIndex, tuned: CheckpointIndex, known: Partners) -> Partners:
    """`known`, and for what has no partner in it what transformers' loader makes of the names of both."""
    from sftknow.models.loader_names import loader_names

    loader = loader_names(tuned.folder) or loader_names(base.folder)
    if loader is None:
        return known
    landed: dict[str, list[tuple[Landing, TensorEntry]]] = {}
    for name, landing in _landings(loader, base).items():
        if landing is not None:
            landed.setdefault(landing.parameter, []).append((landing, base.tensors[name]))
    entries, used = dict(known.entries), set(known.used)
    for name, landing in _landings(loader, tuned).items():
        if entries[name] is not None or landing is None:
            continue
        parts = _stretch(landed.get(landing.parameter, []), landing.first, tuned.tensors[name].elements)
        if parts:
            entries[name] = _joined(parts, landing, tuned.tensors[name])
            used |= {part.name for part in parts}
    dropped = frozenset(
        name for index in (base, tuned) for name in index.tensors if loader.drops(_WRAPPERS.sub("", name))
    )
    return Partners(entries=entries, used=frozenset(used), dropped=dropped)


def _landings(loader: LoaderNames, index: CheckpointIndex) -> dict[str, Landing | None]:
    names = {_WRAPPERS.sub("", name): name for name in index.tensors}
    found = loader.landings({short: index.tensors[name].shape for short, name in names.items()})
    return {name: found[short] for short, name in names.items()}


def _stretch(landed: list[tuple[Landing, TensorEntry]], first: int, elements: int) -> list[TensorEntry]:
    """The parts of stored tensors that make up so many elements of a parameter, in order; none where there are gaps."""
    parts: list[TensorEntry] = []
    end = first + elements
    for landing, entry in sorted(landed, key=lambda item: item[0].first):
        start, stop = max(first, landing.first), min(end, landing.first + entry.elements)
        if start >= stop:
            continue
        if start != first + sum(part.elements for part in parts) or entry.dtype not in FLOAT_BITS:
            return []
        item = FLOAT_BITS[entry.dtype].itemsize
        offset = entry.start + (start - landing.first) * item
        shape = entry.shape if stop - start == entry.elements else (stop - start,)
        parts.append(replace(entry, shape=shape, start=offset, end=offset + (stop - start) * item))
    whole = sum(part.elements for part in parts) == elements and len({part.dtype for part in parts}) == 1
    return parts if whole else []


def _joined(parts: list[TensorEntry], landing: Landing, like: TensorEntry) -> TensorEntry:
    """One entry for parts that follow one another, in the shape of the fine-tuned tensor."""
    if len(parts) == 1:
        shape = parts[0].shape if sorted(parts[0].shape) == sorted(like.shape) else like.shape
        return replace(parts[0], shape=shape)
    return replace(parts[0], name=landing.parameter, shape=like.shape, parts=tuple(parts))
