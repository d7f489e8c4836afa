"""Rank and restore one checkpoint pair outside a run; used by `sftknow changes` and `sftknow restore`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sftknow.parameters.change import Analysis, analyse
from sftknow.parameters.restore import restore
from sftknow.pipeline.base import local_model, resolve_base
from sftknow.pipeline.cells import level_name
from sftknow.pipeline.training import restored_manifest
from sftknow.records import ModelRef, RestoredCheckpoint


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """What decides the order of the parameters of a checkpoint pair; see `sftknow.parameters.change.analyse`."""

    region: str = "transformer"
    layers: str | None = None
    strategy: str = "top"
    seed: int = 0
    epsilon: float = 1e-8
    arithmetic: str = "float32"


def analyse_pair(base: str, tuned: str, levels: Sequence[str], options: PairOptions) -> Analysis:
    """Rank the parameters of a checkpoint pair; see `sftknow.parameters.change.analyse`."""
    return analyse(
        Path(local_model(ModelRef.parse(base)).path),
        Path(local_model(ModelRef.parse(tuned)).path),
        levels,
        region=options.region,
        layers=options.layers,
        strategy=options.strategy,
        seed=options.seed,
        epsilon=options.epsilon,
        arithmetic=options.arithmetic,
    )


def restore_pair(
    base: str, tuned: str, levels: Sequence[str], out: Path, options: PairOptions
) -> list[RestoredCheckpoint]:
    """Restore a checkpoint at one level (into ``out``) or several (into folders of ``out`` named after the levels)."""
    found = ModelRef.parse(base)
    resolved = resolve_base(found.path, found.revision, None)
    local = replace(resolved.ref, dtype=None)
    tuned_folder = Path(local_model(ModelRef.parse(tuned)).path)
    plan = analyse_pair(local.path, str(tuned_folder), levels, options).plan
    restored = []
    for level in levels:
        target = out if len(levels) == 1 else out / level_name(level)
        manifest = restored_manifest(resolved, tuned_folder, target)
        restored.append(restore(Path(local.path), tuned_folder, plan, level, target, manifest=manifest))
    return restored
