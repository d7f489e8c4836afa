"""Rank and restore one checkpoint pair outside a run; used by `sftknow changes` and `sftknow restore`."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sftknow.artifacts.levels import level_name, parse_levels
from sftknow.artifacts.manifests import read_manifest
from sftknow.checkpoints.reader import read_index
from sftknow.errors import CheckpointError, RunError
from sftknow.models.identity import weights_sha256
from sftknow.models.references import restored_manifest
from sftknow.models.resolving import BaseModel, local_model, resolve_base
from sftknow.parameters.change import Analysis, analyse
from sftknow.parameters.passes import Resources
from sftknow.parameters.patch import apply_patch, write_patch
from sftknow.parameters.regions import place_of
from sftknow.parameters.restore import find_cut, restore_layers, restore_levels
from sftknow.parameters.tables import read_plan
from sftknow.records import ModelRef, RestoredCheckpoint, RestorePlan
from sftknow.run.local_cards import write_card


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """How the parameters of a pair are put in order: keywords of `sftknow.parameters.change.analyse`."""

    region: str = "transformer"
    layers: str | None = None
    strategy: str = "top"
    seed: int = 0
    epsilon: float = 1e-8
    arithmetic: str = "float32"
    common_rows: bool = False
    resources: Resources = field(default_factory=Resources)
    """Threads and memory; no result depends on them."""


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """How restored checkpoints are written, `PairOptions.resources` apart; see `restore_levels`."""

    links: bool = True
    shard_bytes: int | None = None
    say: Callable[[str], object] = print
    """Gets a line where a folder could not be given a card."""


@dataclass(frozen=True, kw_only=True)
class LocalPair:
    """A checkpoint pair on this machine's disk."""

    base: BaseModel
    tuned: Path

    @property
    def base_folder(self) -> Path:
        return Path(self.base.ref.path)


def local_pair(base: str, tuned: str) -> LocalPair:
    """Find both checkpoints; from the Hub they are pulled.

    Raises:
        CheckpointError: BASE was made from TUNED: they are swapped.
        ModelError, HubError: there is no such model.
    """
    found = ModelRef.parse(base)
    resolved = resolve_base(found.path, found.revision, None)
    tuned_folder = Path(local_model(ModelRef.parse(tuned)).path)
    pair = LocalPair(base=replace(resolved, ref=replace(resolved.ref, dtype=None)), tuned=tuned_folder)
    _refuse_swapped(pair, base, tuned)
    return pair


def analyse_pair(base: str, tuned: str, levels: Sequence[str], options: PairOptions) -> Analysis:
    """Rank the parameters of a checkpoint pair; see `sftknow.parameters.change.analyse`."""
    parse_levels(levels)
    return analyse_local(local_pair(base, tuned), levels, options)


def analyse_local(pair: LocalPair, levels: Sequence[str], options: PairOptions) -> Analysis:
    """`analyse_pair` for checkpoints that are found already."""
    return analyse(pair.base_folder, pair.tuned, levels, **vars(options))


def restore_pair(
    base: str,
    tuned: str,
    levels: Sequence[str],
    out: Path,
    options: PairOptions,
    write: WriteOptions | None = None,
    *,
    plan_file: Path | None = None,
) -> list[RestoredCheckpoint]:
    """Restore a checkpoint at one level (into ``out``) or several (into folders of ``out`` named after the levels).

    Args:
        levels: of the region, or of the plan; none takes all of the plan's.
        options: what decides the order; the plan decides it where there is one.
        plan_file: a plan that `sftknow changes` wrote, for these very checkpoints.

    Raises:
        CheckpointError: what `analyse` and `restore_levels` raise; the checkpoints hold the same values.
    """
    write = write or WriteOptions()
    pair, plan, levels = _planned(base, tuned, levels, options, plan_file)
    outputs = _places(levels, out)
    return restore_levels(
        pair.base_folder,
        pair.tuned,
        plan,
        outputs,
        manifests=_manifests(pair, outputs),
        resources=options.resources,
        links=write.links,
        shard_bytes=write.shard_bytes,
        verified=plan_file is None,
        finishing=card_writer(write.say),
    )


def patch_pair(
    base: str,
    tuned: str,
    levels: Sequence[str],
    out: Path,
    options: PairOptions,
    *,
    plan_file: Path | None = None,
) -> list[tuple[str, Path, int]]:
    """Write patches instead of models: one level to the file ``out``, several to files in the folder ``out``.

    Returns:
        (level, file, how many values it changes) for each.

    Raises:
        CheckpointError: as `restore_pair`.
    """
    pair, plan, levels = _planned(base, tuned, levels, options, plan_file)
    done = []
    for level in levels:
        file = out if len(levels) == 1 else out / f"{level_name(level)}.safetensors"
        manifest = restored_manifest(pair.base, pair.tuned, file.parent / "model")
        values = write_patch(
            pair.base_folder, pair.tuned, plan, level, file, manifest=manifest, verified=plan_file is None
        )
        done.append((level, file, values))
    return done


def restore_layer_ranges(
    base: str, tuned: str, ranges: Sequence[str], out: Path, options: PairOptions, write: WriteOptions
) -> list[RestoredCheckpoint]:
    """Set whole layers back (paper, Table 11), each range of them in a folder of its own, such as ``out/layers-0-3``.

    One range alone goes to ``out`` itself.

    Raises:
        CheckpointError: as `restore_layers`.
    """
    pair = local_pair(base, tuned)
    outputs = {text: out if len(ranges) == 1 else out / f"layers-{text}" for text in ranges}
    return restore_layers(
        pair.base_folder,
        pair.tuned,
        outputs,
        region=options.region,
        manifests=_manifests(pair, outputs),
        resources=options.resources,
        links=write.links,
        shard_bytes=write.shard_bytes,
        common_rows=options.common_rows,
        finishing=card_writer(write.say),
    )


def patch_model(model: str, patch: Path, out: Path, options: PairOptions, write: WriteOptions) -> RestoredCheckpoint:
    """Write the model that a patch makes of another one, forwards or back; see `apply_patch`."""
    folder = Path(local_model(ModelRef.parse(model)).path)
    return apply_patch(folder, patch, out, resources=options.resources, finishing=card_writer(write.say))


def layer_ranges(text: str, base: str) -> list[str]:
    """Ranges of a layer sweep: ``0-3,4-7`` as they are, or a number of layers each, over all that the model has.

    Raises:
        CheckpointError: it is neither, or the model's config.json does not say how many layers it has.
    """
    if not re.fullmatch(r"\s*\d{1,5}\s*", text):
        return [part.strip() for part in text.split(",")]
    each = int(text)
    found = ModelRef.parse(base)
    folder = Path(resolve_base(found.path, found.revision, None).ref.path)
    layers = _layer_count(folder)
    if each < 1 or layers is None:
        raise CheckpointError(
            f"cannot make ranges of {each} layers of {base} (layers: {layers}); give them by name, such as 0-3,4-7"
        )
    return [f"{first}-{min(first + each, layers) - 1}" for first in range(0, layers, each)]


def _planned(
    base: str, tuned: str, levels: Sequence[str], options: PairOptions, plan_file: Path | None
) -> tuple[LocalPair, RestorePlan, Sequence[str]]:
    """The pair, its plan, and which of the plan's levels are wanted."""
    if levels:
        parse_levels(levels)
    plan = read_plan(plan_file) if plan_file else None
    if plan is not None:
        wanted = [find_cut(plan, level).level for level in levels] or [cut.level for cut in plan.cuts]
        return local_pair(base, tuned), plan, wanted
    pair = local_pair(base, tuned)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that nothing changed is an error below
        found = analyse_local(pair, levels, options)
    if not found.change.changed:
        raise CheckpointError(
            f"{base} and {tuned} hold the same values in the region {options.region}: there is nothing to restore"
        )
    return pair, found.plan, levels


def _places(levels: Sequence[str], out: Path) -> dict[str, Path]:
    return {level: out if len(levels) == 1 else out / level_name(level) for level in levels}


def _manifests(pair: LocalPair, outputs: Mapping[str, Path]) -> dict[str, Mapping[str, Any]]:
    return {key: restored_manifest(pair.base, pair.tuned, folder) for key, folder in outputs.items()}


def card_writer(say: Callable[[str], object]) -> Callable[[Path, Path], None]:
    """What gives each restored folder its card, for `restore_levels`; a line where it cannot."""

    def write(partial: Path, place: Path) -> None:
        reason = write_card(partial, place.resolve().name)
        if reason:
            say(f"no card in {place}: {reason}")

    return write


def _layer_count(folder: Path) -> int | None:
    layers = [place_of(name).layer for name in read_index(folder).tensors]
    return max((layer + 1 for layer in layers if layer is not None), default=None)


def _refuse_swapped(pair: LocalPair, base: str, tuned: str) -> None:
    """BASE's manifest may name TUNED by its weights or by the name that it is given here."""
    try:
        manifest = read_manifest(pair.base_folder, "model") or {}
    except RunError:  # somebody else's file of that name
        return
    origin = manifest.get("base")
    if not isinstance(origin, Mapping) or not (manifest.get("sft") or manifest.get("restoration")):
        return
    if origin.get("path") == tuned or origin.get("sha256") == weights_sha256(pair.tuned):
        raise CheckpointError(
            f"{base} was fine-tuned from {tuned}: BASE and TUNED are swapped; give them in that order"
        )
