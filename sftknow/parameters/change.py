"""What fine-tuning did to the parameters of a region, and the plan for undoing a share of it.

The files are read twice for all levels together (`passes`, then `ranking`), once for ``random``. Memory is bounded by
the block size, whatever the size of the model.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sftknow.parameters.pairs import BLOCK, CheckpointPair, pair_checkpoints
from sftknow.parameters.passes import Run, Survey, Tally, random_tallies, survey_region, watched
from sftknow.parameters.ranking import ordered_tallies
from sftknow.parameters.regions import OUTSIDE
from sftknow.parameters.relative import Measure
from sftknow.parameters.selection import check_strategy, parse_levels, random_cuts
from sftknow.parameters.statistics import share_of
from sftknow.records import LevelStatistics, ParameterChange, RestorePlan
from sftknow.storage.checkpoints import CheckpointReader


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


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What `analyse` found."""

    change: ParameterChange
    plan: RestorePlan
    tensors: tuple[TensorChange, ...]
    """In global order."""


def analyse(
    base: Path,
    tuned: Path,
    levels: Sequence[str],
    *,
    region: str = "transformer",
    layers: str | None = None,
    strategy: str = "top",
    seed: int = 0,
    epsilon: float = 1e-8,
    arithmetic: str = "float32",
    block: int = BLOCK,
) -> Analysis:
    """Rank the relative change r of every parameter of the region and cut the order at every level (paper, 5.1, B.2).

    Args:
        base: folder of the pretrained checkpoint, safetensors.
        tuned: folder of the fine-tuned one. Shards and dtypes may differ from the base's.
        levels: shares of the region, such as ``20%``, ``0.5%`` or ``1/8``.
        region: see `sftknow.parameters.regions`.
        layers: narrows the region to a range of layers, such as ``0-3``.
        strategy: ``top`` (largest r first), ``bottom`` (smallest first) or ``random``.
        seed: of ``random``.
        epsilon: added to |p|; rounded to float32.
        arithmetic: ``float32``, or ``bfloat16`` for the authors' rounding.
        block: elements read at a time; memory is proportional to it, results do not depend on it.

    Raises:
        CheckpointError: the checkpoints do not fit or cannot be compared, a value of the region is NaN or infinite, a
            level, region or other setting cannot be read.

    Warns:
        UserWarning: no value of the region changed.
    """
    wanted = parse_levels(levels)
    check_strategy(strategy)
    measure = Measure(epsilon=epsilon, arithmetic=arithmetic)
    if block < 1:
        raise ValueError("block must be at least 1")
    pair = pair_checkpoints(base, tuned, region, layers)
    passes = 3 if strategy == "random" else 2
    with (
        CheckpointReader(pair.base) as base_reader,
        CheckpointReader(pair.tuned) as tuned_reader,
        watched(passes * pair.elements, "comparing parameters") as advance,
    ):
        run = Run(pair, base_reader, tuned_reader, measure, block, advance)
        survey = Survey()
        if strategy == "random":
            tallies = [Tally(cut) for cut in random_cuts(pair.elements, wanted, seed, block, advance)]
            random_tallies(run, survey, tallies, seed)
        else:
            survey_region(run, survey, lambda *_: None)
            tallies = ordered_tallies(run, survey, wanted, strategy)
    change = _change(pair, survey, tallies, region, layers)
    if not change.changed:
        warnings.warn(f"{base} and {tuned} hold the same values in the region {region}: nothing changed", stacklevel=2)
    plan = RestorePlan(
        strategy=strategy,
        seed=seed,
        region=region,
        layers=layers,
        epsilon=epsilon,
        arithmetic=arithmetic,
        base_sha256=survey.base_hash.hexdigest(),
        tuned_sha256=survey.tuned_hash.hexdigest(),
        cuts=tuple(tally.cut for tally in tallies),
    )
    return Analysis(change=change, plan=plan, tensors=_tensor_changes(pair, survey, tallies))


def _change(
    pair: CheckpointPair, survey: Survey, tallies: list[Tally], region: str, layers: str | None
) -> ParameterChange:
    sizes = [tensor.elements for tensor in pair.tensors]
    whole, whole_zero_base = survey.all.sum(), survey.zero_base.sum()
    statistics = [
        LevelStatistics(
            level=tally.cut.level,
            selected=tally.cut.selected,
            selected_unchanged=tally.unchanged,
            concentration=share_of(tally.sum, whole),
            concentration_nonzero_base=share_of(tally.sum - tally.zero_base_sum, whole - whole_zero_base),
            by_layer=_by_layer(pair, tally.selected),
            by_module=_by_module(pair, tally.selected),
        )
        for tally in tallies
    ]
    return ParameterChange(
        region=region,
        layers=layers,
        elements=pair.elements,
        changed=sum(survey.changed),
        elements_by_layer=_by_layer(pair, sizes),
        elements_by_module=_by_module(pair, sizes),
        levels=tuple(statistics),
        histogram=survey.decades.table(survey.all.counts),
    )


def _by_layer(pair: CheckpointPair, counts: Sequence[int]) -> dict[str, int]:
    found: dict[int | None, int] = {}
    for tensor, count in zip(pair.tensors, counts, strict=True):
        found[tensor.place.layer] = found.get(tensor.place.layer, 0) + count
    ordered = sorted(found.items(), key=lambda item: (item[0] is None, item[0] or 0))
    return {OUTSIDE if layer is None else str(layer): count for layer, count in ordered}


def _by_module(pair: CheckpointPair, counts: Sequence[int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for tensor, count in zip(pair.tensors, counts, strict=True):
        found[tensor.place.module] = found.get(tensor.place.module, 0) + count
    return dict(sorted(found.items()))


def _tensor_changes(pair: CheckpointPair, survey: Survey, tallies: list[Tally]) -> tuple[TensorChange, ...]:
    return tuple(
        TensorChange(
            name=tensor.name,
            layer=tensor.place.layer,
            module=tensor.place.module,
            elements=tensor.elements,
            changed=survey.changed[i],
            selected=tuple(tally.selected[i] for tally in tallies),
        )
        for i, tensor in enumerate(pair.tensors)
    )
