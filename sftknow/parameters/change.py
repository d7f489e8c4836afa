"""What fine-tuning did to the parameters of a region, and the plan for undoing a share of it.

The files are read once for all levels together, or twice where a sample misled (`ranking`), by several threads
(`survey`). Memory is bounded, whatever the size of the model.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sftknow.artifacts.levels import parse_levels
from sftknow.checkpoints.regions import OUTSIDE
from sftknow.errors import CheckpointError
from sftknow.models.resolving import model_folder
from sftknow.parameters.compiled import compiling_announced
from sftknow.parameters.key_order import Workload
from sftknow.parameters.leveling import MOST_LEVELS
from sftknow.parameters.options import Resources
from sftknow.parameters.pairs import CheckpointPair, pair_checkpoints
from sftknow.parameters.passes import PIECE
from sftknow.parameters.ranking import LevelCounts, rank_by_change, rank_by_keys
from sftknow.parameters.relative import Measure
from sftknow.parameters.statistics import QuarterDecades, histogram_sum, share_of
from sftknow.parameters.strategies import BY_CHANGE, check_strategy
from sftknow.parameters.survey import Survey
from sftknow.records import LevelStatistics, ParameterChange, RestorePlan
from sftknow.shown import Shown


@dataclass(frozen=True, kw_only=True)
class TensorChange:
    """One tensor of the region."""

    name: str
    layer: int | None
    module: str
    elements: int
    changed: int
    selected: tuple[int, ...]
    """Selected elements for each level, in the order of the levels."""
    change: float = math.nan
    """Sum of r over the tensor, in float64. NaN in an analysis of an earlier version, which did not record it."""
    change_nonzero_base: float = math.nan
    """The same without elements whose base value is 0."""


@dataclass(frozen=True, kw_only=True)
class Analysis(Shown):
    """What `analyse` found."""

    change: ParameterChange
    plan: RestorePlan
    tensors: tuple[TensorChange, ...]
    """In global order."""
    notes: tuple[str, ...] = ()
    """Lines on tensors outside of the region that only one checkpoint has, and the like; not kept on disk."""

    def headline(self) -> str:
        """How much of the region changed at all."""
        change = self.change
        return f"{change.changed:,} of {change.elements:,} parameters of the region {change.region} changed"

    def rows(self) -> list[dict[str, Any]]:
        """One row a level (the paper's Table 3)."""
        names = ("level", "selected", "selected_unchanged", "concentration", "concentration_nonzero_base")
        return [{name: getattr(level, name) for name in names} for level in self.change.levels]


def analyse(
    base: str | Path,
    tuned: str | Path,
    levels: Sequence[str] = ("1%", "5%", "20%"),
    *,
    region: str = "transformer",
    layers: str | None = None,
    strategy: str = "top",
    seed: int = 0,
    epsilon: float = 1e-8,
    arithmetic: str = "float32",
    compare_in: str = "coarser",
    common_rows: bool = False,
    ignore: str | None = None,
    resources: Resources | None = None,
) -> Analysis:
    """Rank every parameter of the region, by its relative change r, and cut the order at every level (paper, 5.1, B.2).

    Args:
        base: the pretrained checkpoint, safetensors: a folder, ``org/name[@revision]`` or ``lab``.
        tuned: the fine-tuned one. Shards and dtypes may differ from the base's.
        levels: shares of the region, such as ``20%``, ``0.5%`` or ``1/8``.
        region: see `sftknow.checkpoints.regions`.
        layers: narrows the region to a range of layers, such as ``0-3``.
        strategy: ``top`` (largest r first), ``bottom`` (smallest first), ``random`` or another one that is registered
            (`sftknow.parameters.strategies`).
        seed: of ``random``, and of others that ask for it.
        epsilon: added to |p|; rounded to float32.
        arithmetic: ``float32``, or ``bfloat16`` for the authors' rounding.
        compare_in: where the two are stored in different dtypes, compare them in the ``coarser`` one, so that writing
            in another dtype is no change, or as ``stored``.
        common_rows: see `pair_checkpoints`; so is ``ignore``.
        resources: threads, memory and block sizes; results do not depend on it.

    Raises:
        CheckpointError: the checkpoints do not fit or cannot be compared, a value of the region is NaN or infinite, a
            level, region or other setting cannot be read.

    Warns:
        UserWarning: no value of the region changed.
    """
    base, tuned, wanted = model_folder(base), model_folder(tuned), parse_levels(levels)
    if len(wanted) > MOST_LEVELS:
        raise CheckpointError(f"{len(wanted)} levels are too many at once; give at most {MOST_LEVELS}")
    check_strategy(strategy)
    measure = Measure(epsilon=epsilon, arithmetic=arithmetic, compare_in=compare_in)
    pair = pair_checkpoints(base, tuned, region, layers, common_rows=common_rows, ignore=ignore)
    resources = resources or Resources()
    resources = replace(resources, block=min(resources.block, PIECE))
    work = Workload(pair=pair, measure=measure, strategy=strategy, seed=seed, resources=resources, levels=len(wanted))
    with compiling_announced():
        survey, counts = (rank_by_change if strategy in BY_CHANGE else rank_by_keys)(work, wanted)
    change = _change(work, survey, counts, region, layers)
    if not change.changed:
        warnings.warn(unchanged_message(f"{base}", f"{tuned}", change), stacklevel=2)
    assert survey.hashes is not None
    plan = RestorePlan(
        strategy=strategy,
        seed=seed,
        region=region,
        layers=layers,
        common_rows=common_rows,
        ignore=ignore,
        epsilon=epsilon,
        arithmetic=arithmetic,
        compare_in=compare_in,
        base_sha256=survey.hashes[0].hexdigest(),
        tuned_sha256=survey.hashes[1].hexdigest(),
        cuts=tuple(level.cut for level in counts),
    )
    return Analysis(change=change, plan=plan, tensors=_tensor_changes(pair, survey, counts), notes=pair.notes)


def unchanged_message(base: str, tuned: str, change: ParameterChange) -> str:
    """What to say of a pair in which no value changed."""
    same = f"{base} and {tuned} hold the same values in the region {change.region}: nothing changed"
    return f"{same} beyond rounding ({dtype_note(change)})" if change.changed_as_stored else same


def dtype_note(change: ParameterChange) -> str:
    """Of a pair in two dtypes: how much changed beyond rounding, how much at all, and which of them was looked at."""
    beyond, stored = change.changed_beyond_rounding or 0, change.changed_as_stored or 0
    way = "compared in the coarser dtype; --compare-in stored counts rounding as change"
    if change.compare_in == "stored":
        way = "compared as stored, where rounding counts as change; --compare-in coarser leaves it out"
    return (
        f"base and fine-tuned model are stored in two dtypes, {change.dtypes}: of {change.elements:,} parameters "
        f"{beyond:,} ({beyond / change.elements:.2%}) changed beyond rounding, {stored:,} "
        f"({stored / change.elements:.2%}) at all; {way}"
    )


def _change(
    work: Workload, survey: Survey, levels: list[LevelCounts], region: str, layers: str | None
) -> ParameterChange:
    pair = work.pair
    sizes = [tensor.elements for tensor in pair.tensors]
    zero_base = histogram_sum(survey.histogram[1::2].sum(axis=0))
    whole = histogram_sum(survey.histogram[0::2].sum(axis=0)) + zero_base
    statistics = [
        LevelStatistics(
            level=level.cut.level,
            selected=level.cut.selected,
            selected_unchanged=level.unchanged,
            concentration=share_of(level.sum, whole),
            concentration_nonzero_base=share_of(level.sum - level.zero_base_sum, whole - zero_base),
            by_layer=_by_layer(pair, level.selected.tolist()),
            by_module=_by_module(pair, level.selected.tolist()),
        )
        for level in levels
    ]
    changed = int(survey.changed.sum(dtype=np.int64))
    mixed = {(tensor.base.dtype, tensor.tuned.dtype) for tensor in pair.tensors}
    mixed = {dtypes for dtypes in mixed if dtypes[0] != dtypes[1]}
    beyond, stored = survey.mixed_changes.tolist()
    alike = changed - (beyond if work.measure.compare_in == "coarser" else stored)  # of tensors in one dtype
    return ParameterChange(
        region=region,
        layers=layers,
        elements=pair.elements,
        changed=changed,
        compare_in=work.measure.compare_in,
        dtypes=", ".join(f"{before} to {after}" for before, after in sorted(mixed)) or None,
        changed_beyond_rounding=alike + beyond if mixed else None,
        changed_as_stored=alike + stored if mixed else None,
        elements_by_layer=_by_layer(pair, sizes),
        elements_by_module=_by_module(pair, sizes),
        levels=tuple(statistics),
        histogram=QuarterDecades(survey.above_edge).table(survey.histogram[:, :, 0].sum(axis=0)),
    )


def _by_layer(pair: CheckpointPair, counts: Sequence[int]) -> dict[str, int]:
    found: Counter[int | None] = Counter()
    for tensor, count in zip(pair.tensors, counts, strict=True):
        found[tensor.place.layer] += count
    ordered = sorted(found.items(), key=lambda item: (item[0] is None, item[0] or 0))
    return {OUTSIDE if layer is None else str(layer): count for layer, count in ordered}


def _by_module(pair: CheckpointPair, counts: Sequence[int]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for tensor, count in zip(pair.tensors, counts, strict=True):
        found[tensor.place.module] += count
    return dict(sorted(found.items()))


def _tensor_changes(pair: CheckpointPair, survey: Survey, levels: list[LevelCounts]) -> tuple[TensorChange, ...]:
    changed = [0] * len(pair.tensors)
    sums: list[list[float]] = [[] for _ in pair.tensors]
    zero_sums: list[list[float]] = [[] for _ in pair.tensors]
    found = zip(survey.chunks, survey.changed.tolist(), survey.sums.tolist(), strict=True)
    for chunk, count, (nonzero, zero) in found:
        changed[chunk.position] += count
        sums[chunk.position].append(nonzero)
        zero_sums[chunk.position].append(zero)
    return tuple(
        TensorChange(
            name=tensor.name,
            layer=tensor.place.layer,
            module=tensor.place.module,
            elements=tensor.elements,
            changed=changed[i],
            selected=tuple(int(level.selected[i]) for level in levels),
            change=math.fsum(sums[i] + zero_sums[i]),
            change_nonzero_base=math.fsum(sums[i]),
        )
        for i, tensor in enumerate(pair.tensors)
    )
