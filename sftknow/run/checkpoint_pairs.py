"""One checkpoint pair: rank its parameters, restore it, write patches; for runs and for single commands."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sftknow.artifacts.levels import level_name, parse_levels
from sftknow.artifacts.manifests import read_manifest
from sftknow.checkpoints.adapters import is_adapter
from sftknow.checkpoints.reader import read_index
from sftknow.checkpoints.regions import place_of
from sftknow.errors import CheckpointError, RunError
from sftknow.models.identity import weights_sha256
from sftknow.models.references import restored_manifest
from sftknow.models.resolving import BaseModel, check_adapter_base, local_model, resolve_base
from sftknow.parameters.change import Analysis, analyse, dtype_note, unchanged_message
from sftknow.parameters.options import PairOptions, WriteOptions
from sftknow.parameters.pairs import pair_of
from sftknow.parameters.patch import PatchedCheckpoint, apply_patch, write_patch
from sftknow.parameters.restore import find_cut, refuse_equal, restore_layers, restore_levels
from sftknow.parameters.tables import read_plan
from sftknow.records import ModelRef, RestoredCheckpoint, RestorePlan
from sftknow.run.local_cards import card_writer
from sftknow.run.related import unlike

_NARROWED = ("F32 to BF16", "F32 to F16", "F16 to BF16")
"""Dtypes of base and fine-tuned model where setting a value back that differs by rounding alone changes nothing."""


@dataclass(frozen=True, kw_only=True)
class LocalPair:
    """A checkpoint pair on this machine's disk."""

    base: BaseModel
    tuned: Path

    @property
    def base_folder(self) -> Path:
        return Path(self.base.ref.path)

    @classmethod
    def find(cls, base: str, tuned: str) -> LocalPair:
        """Find both checkpoints; from the Hub they are pulled.

        Raises:
            CheckpointError: BASE was made from TUNED: they are swapped.
            ModelError, HubError: there is no such model.
        """
        found = ModelRef.parse(base)
        resolved = resolve_base(found.path, found.revision, None)
        pair = cls(base=resolved, tuned=Path(local_model(ModelRef.parse(tuned)).path))
        if is_adapter(pair.tuned):
            check_adapter_base(resolved, pair.tuned)
        else:
            refuse_swapped(pair, base, tuned)
        return pair

    def analyse(self, levels: Sequence[str], options: PairOptions) -> Analysis:
        """Rank the parameters (paper, 5.1); see `sftknow.parameters.change.analyse`. Unlike weights are noted."""
        found = analyse(self.base_folder, self.tuned, levels, **options.order)
        why = None if is_adapter(self.tuned) else unlike(self.base_folder, self.tuned)
        if why is None:
            return found
        note = f"{self.tuned} was hardly fine-tuned from {self.base.name} ({why}); is that its base?"
        return replace(found, notes=(*found.notes, note))

    def restore(
        self,
        plan: RestorePlan,
        outputs: Mapping[str, Path],
        options: PairOptions,
        write: WriteOptions | None = None,
        *,
        say: Callable[[str], object],
        verified: bool = False,
        notes: Mapping[str, Any] | None = None,
    ) -> list[RestoredCheckpoint]:
        """Write levels of a plan, each with its manifest and card; see `restore_levels`.

        Args:
            plan: of this very pair.
            outputs: by level, the folder to write.
            options: for its resources; the plan decides the order.
            write: how.
            say: gets a line where a folder could not be given a card.
            verified: the plan was made by this process just now.
            notes: recorded under ``restoration`` in each manifest.
        """
        write = write or WriteOptions()
        return restore_levels(
            self.base_folder,
            self.tuned,
            plan,
            outputs,
            manifests=self.manifests(outputs),
            resources=options.resources,
            links=write.links,
            shard_bytes=write.shard_bytes,
            verified=verified,
            notes=notes,
            finishing=card_writer(say),
        )

    def manifests(self, outputs: Mapping[str, Path]) -> dict[str, Mapping[str, Any]]:
        return {key: restored_manifest(self.base, self.tuned, folder) for key, folder in outputs.items()}


@dataclass(frozen=True, kw_only=True)
class Restoration:
    """What is set back in a checkpoint pair outside a run, and where it goes: all that `sftknow restore` asks for."""

    base: str
    """A folder, ``org/name[@revision]`` or ``lab``; so is ``tuned``."""
    tuned: str
    out: Path
    """The folder of one level, or of a folder for each of several."""
    levels: Sequence[str] = ()
    """Of the region, or of the plan; none takes all of the plan's."""
    plan_file: Path | None = None
    """A plan that `sftknow changes` wrote, for these very checkpoints."""
    order: PairOptions = field(default_factory=PairOptions)
    write: WriteOptions = field(default_factory=WriteOptions)
    say: Callable[[str], object] = print

    def models(self) -> list[RestoredCheckpoint]:
        """Write a model for each level.

        Raises:
            CheckpointError: what `analyse` and `restore_levels` raise; the checkpoints hold the same values.
        """
        pair, plan, levels = self._planned()
        verified = self.plan_file is None
        return pair.restore(plan, self._places(levels), self.order, self.write, say=self.say, verified=verified)

    def patches(self) -> list[tuple[str, Path, int]]:
        """Write a sparse file of the difference for each level: (level, file, how many values it changes).

        Raises:
            CheckpointError: as `models`.
        """
        pair, plan, levels = self._planned()
        done = []
        for level, place in self._places(levels).items():
            file = place if len(levels) == 1 else place.with_name(f"{place.name}.safetensors")
            manifest = restored_manifest(pair.base, pair.tuned, file.parent / "model")
            values = write_patch(
                pair.base_folder,
                pair.tuned,
                plan,
                level,
                file,
                manifest=manifest,
                verified=self.plan_file is None,
                resources=self.order.resources,
                say=self.say,
            )
            done.append((level, file, values))
        return done

    def layers(self, sweep: str) -> list[RestoredCheckpoint]:
        """Set whole layers back (paper, Table 11), each range of them in a folder of its own, such as ``layers-0-3``.

        One range alone goes to ``out`` itself.

        Args:
            sweep: see `layer_ranges`.

        Raises:
            CheckpointError: as `restore_layers`.
        """
        ranges = layer_ranges(sweep, self.base)
        pair = LocalPair.find(self.base, self.tuned)
        outputs = {text: self.out if len(ranges) == 1 else self.out / f"layers-{text}" for text in ranges}
        return restore_layers(
            pair.base_folder,
            pair.tuned,
            outputs,
            region=self.order.region,
            manifests=pair.manifests(outputs),
            resources=self.order.resources,
            links=self.write.links,
            shard_bytes=self.write.shard_bytes,
            common_rows=self.order.common_rows,
            ignore=self.order.ignore,
            finishing=card_writer(self.say),
        )

    def patched(self, patch: Path) -> PatchedCheckpoint:
        """Write the model that a patch makes of ``base``, forwards or back; see `apply_patch`."""
        folder = Path(local_model(ModelRef.parse(self.base)).path)
        return apply_patch(folder, patch, self.out, resources=self.order.resources, finishing=card_writer(self.say))

    def _places(self, levels: Sequence[str]) -> dict[str, Path]:
        return {level: self.out if len(levels) == 1 else self.out / level_name(level) for level in levels}

    def _planned(self) -> tuple[LocalPair, RestorePlan, Sequence[str]]:
        """The pair, its plan, and which of the plan's levels are wanted."""
        if self.levels:
            parse_levels(self.levels)
        pair = LocalPair.find(self.base, self.tuned)
        if self.plan_file:
            plan = read_plan(self.plan_file)
            if _of_nothing(plan):
                raise CheckpointError(f"{self.plan_file} says that nothing changed: there is nothing to restore")
            wanted = [find_cut(plan, level).level for level in self.levels] or [cut.level for cut in plan.cuts]
            parts = pair_of(pair.base_folder, pair.tuned, plan)
            for note in parts.notes:
                self.say(note)
            refuse_equal(parts, self.order.resources)
            return pair, plan, wanted
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that nothing changed is an error below
            found = pair.analyse(self.levels, self.order)
        refuse_unchanged(self, found)
        return pair, found.plan, self.levels


def refuse_unchanged(asked: Restoration, found: Analysis) -> None:
    """Raise CheckpointError where nothing changed, so that there is nothing to restore; say where rounding was.

    Args:
        asked: the pair, and who is told of other dtypes and of tensors outside of the region.
        found: what its analysis came to.
    """
    for note in found.notes:
        asked.say(note)
    change = found.change
    rounding_alone = change.dtypes in _NARROWED and not change.changed_beyond_rounding
    if not change.changed or rounding_alone:
        raise CheckpointError(f"there is nothing to restore: {unchanged_message(asked.base, asked.tuned, change)}")
    if change.dtypes:
        asked.say(dtype_note(change))


def _of_nothing(plan: RestorePlan) -> bool:
    """Whether a plan shows that no value changed: the most changed ones have r = 0."""
    cuts = [cut for cut in plan.cuts if cut.selected]
    return (
        plan.strategy == "top"
        and bool(cuts)
        and all((cut.threshold_bits, cut.ties) == (0, cut.selected) for cut in cuts)
    )


def order_inputs(options: PairOptions) -> dict[str, Any]:
    """What of the order decides results, for a step's inputs; nothing by the defaults, as in earlier versions."""
    usual = PairOptions().order
    changed = {name: value for name, value in options.order.items() if name != "resources" and value != usual[name]}
    return {"order": changed} if changed else {}


def analyse_pair(base: str, tuned: str, levels: Sequence[str], options: PairOptions) -> Analysis:
    """Rank the parameters of a checkpoint pair; see `sftknow.parameters.change.analyse`."""
    parse_levels(levels)
    return LocalPair.find(base, tuned).analyse(levels, options)


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


def _layer_count(folder: Path) -> int | None:
    layers = [place_of(name).layer for name in read_index(folder).tensors]
    return max((layer + 1 for layer in layers if layer is not None), default=None)


def refuse_swapped(pair: LocalPair, base: str, tuned: str) -> None:
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
