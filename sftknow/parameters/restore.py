"""Writes a restored checkpoint: the fine-tuned one with the base's values where a plan's level says so.

Restored values are bit copies of the base's (rounded to the fine-tuned dtype where the dtypes differ), everything else
is a bit copy of the fine-tuned checkpoint, whose shards, headers, config, tokenizer and custom code the output has too.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sftknow.errors import CheckpointError, RunError
from sftknow.parameters.pairs import BLOCK, CheckpointPair, TensorPair, blocks, hash_region, pair_checkpoints
from sftknow.parameters.passes import watched
from sftknow.parameters.relative import Measure, changes
from sftknow.parameters.selection import Selector, check_strategy, order_keys, parse_level, random_keys
from sftknow.records import LevelCut, RestoredCheckpoint, RestorePlan
from sftknow.storage.artifacts import atomic_folder
from sftknow.storage.checkpoint_writer import output_bytes
from sftknow.storage.checkpoints import CheckpointReader, CheckpointWriter, narrow, nonfinite, widen
from sftknow.storage.manifests import MANIFEST, read_manifest, write_manifest

_SPARE_BYTES = 1 << 20  # for the manifest and the folders themselves


def restore(
    base: Path,
    tuned: Path,
    plan: RestorePlan,
    level: str,
    out: Path,
    *,
    manifest: Mapping[str, Any],
    block: int = BLOCK,
) -> RestoredCheckpoint:
    """Write the fine-tuned checkpoint with the selected elements set back to the base's values (paper, 5.1).

    The folder appears under its name only when all of it is written, ``sftknow.json`` with it. An ``out`` that an
    earlier restoration wrote is replaced; any other folder there is left alone.

    Args:
        base: folder of the pretrained checkpoint that the plan was made from.
        tuned: folder of the fine-tuned one.
        plan: from `analyse`.
        level: one of the plan's levels.
        out: the folder to write.
        manifest: goes into ``sftknow.json`` as it is, beside ``restoration``, which is added here.
        block: elements handled at a time; memory is proportional to it, the output does not depend on it.

    Raises:
        CheckpointError: a level the plan lacks, checkpoints that are not those of the plan, an ``out`` that is an input
            or somebody else's, a full disk, a base value too large for the fine-tuned dtype. Nothing is left behind.
    """
    cut = find_cut(plan, level)
    check_strategy(plan.strategy)
    measure = Measure(epsilon=plan.epsilon, arithmetic=plan.arithmetic)
    _refuse_output(out, base, tuned)
    pair = pair_checkpoints(base, tuned, plan.region, plan.layers)
    _refuse_full_disk(out, pair)
    with watched(3 * pair.elements, f"restoring {level}") as advance:
        _refuse_other_checkpoints(pair, plan, block, advance)
        try:
            with atomic_folder(out) as partial:
                selected, restored = _write(pair, plan, cut, measure, partial, block, advance)
                restoration = {
                    "level": cut.level,
                    "selected": selected,
                    "restored": restored,
                    "elements": pair.elements,
                    "strategy": plan.strategy,
                    "seed": plan.seed,
                    "region": plan.region,
                    "layers": plan.layers,
                    "epsilon": plan.epsilon,
                    "arithmetic": plan.arithmetic,
                    "threshold_bits": cut.threshold_bits,
                    "ties": cut.ties,
                    "base_sha256": plan.base_sha256,
                    "tuned_sha256": plan.tuned_sha256,
                }
                write_manifest(partial, "model", {**manifest, "restoration": restoration})
        except OSError as error:
            raise CheckpointError(f"{out} cannot be written: {error.strerror or error}") from error
    return RestoredCheckpoint(checkpoint=out, level=cut.level, restored=restored)


def find_cut(plan: RestorePlan, level: str) -> LevelCut:
    """The plan's cut for a level, also where it is written differently (``1/5`` for ``20%``).

    Raises:
        CheckpointError: the plan has no such level.
    """
    share = parse_level(level)
    for cut in plan.cuts:
        if cut.level == level or parse_level(cut.level) == share:
            return cut
    has = ", ".join(cut.level for cut in plan.cuts)
    raise CheckpointError(f"the plan has no level {level}, only {has}; make a plan that has it")


def _write(
    pair: CheckpointPair,
    plan: RestorePlan,
    cut: LevelCut,
    measure: Measure,
    folder: Path,
    block: int,
    advance: Callable[[int], object],
) -> tuple[int, int]:
    """Write weights and side files; return how many elements were selected and how many of them had another value."""
    selector = Selector(cut, plan.strategy)
    selected = restored = 0
    with (
        CheckpointReader(pair.base) as base_reader,
        CheckpointReader(pair.tuned) as tuned_reader,
        CheckpointWriter(folder, pair.tuned, {tensor.name for tensor in pair.tensors}) as writer,
    ):
        for tensor in pair.tensors:
            for first, base, tuned in blocks(tensor, base_reader, tuned_reader, block):
                if plan.strategy == "random":
                    keys = random_keys(plan.seed, tensor.first + first, base.size)
                else:
                    found = changes(base, tensor.base.dtype, tuned, tensor.tuned.dtype, measure)
                    keys = order_keys(found.all_bits(), plan.strategy)
                mask = selector.mask(keys)
                replacement = _in_tuned_dtype(base, tensor, mask)
                result = np.where(mask, replacement, tuned)
                writer.write(tensor.tuned, first, result)
                selected += int(mask.sum())
                restored += _differing(result, tuned, tensor.tuned.dtype)
                advance(base.size)
        writer.finish()
    if selected != cut.selected or selector.ties_left:
        raise CheckpointError(
            f"the plan selects {cut.selected} elements at {cut.level}, but {selected} were found: it is damaged, or "
            "the checkpoints changed meanwhile; make the plan again"
        )
    return selected, restored


def _in_tuned_dtype(base: NDArray[Any], tensor: TensorPair, mask: NDArray[np.bool_]) -> NDArray[Any]:
    """The base's bits, or its values rounded to nearest even in the fine-tuned dtype where the dtypes differ."""
    if tensor.base.dtype == tensor.tuned.dtype:
        return base
    bits = narrow(widen(base, tensor.base.dtype), tensor.tuned.dtype)
    if any(nonfinite(bits[mask], tensor.tuned.dtype)):
        raise CheckpointError(
            f"{tensor.name}: a value of {tensor.base.file.parent} is too large for {tensor.tuned.dtype}, the dtype of "
            f"{tensor.tuned.file.parent}; save the fine-tuned model in {tensor.base.dtype} and make the plan again"
        )
    return bits


def _differing(after: NDArray[Any], before: NDArray[Any], dtype: str) -> int:
    """How many values differ as numbers; +0 and −0 do not."""
    index = np.flatnonzero(after != before)
    return int((widen(after[index], dtype) != widen(before[index], dtype)).sum())


def _refuse_output(out: Path, base: Path, tuned: Path) -> None:
    target = out.resolve()
    for source in (base.resolve(), tuned.resolve()):
        if target == source or target in source.parents or source in target.parents:
            raise CheckpointError(f"{out} is, holds or lies within the checkpoint {source}; give another folder")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        ours = "restoration" in (read_manifest(out, "model") or {}) if out.is_dir() else False
    except RunError:
        ours = False
    if not ours:
        raise CheckpointError(f"{out} is there and no restored model ({MANIFEST} does not say so); give another folder")


def _refuse_full_disk(out: Path, pair: CheckpointPair) -> None:
    needed = output_bytes(pair.tuned) + _SPARE_BYTES
    parent = out.resolve().parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise CheckpointError(
            f"{out} needs {needed / 1e9:.2f} GB and {parent} has {free / 1e9:.2f} GB left; make room there"
        )


def _refuse_other_checkpoints(
    pair: CheckpointPair, plan: RestorePlan, block: int, advance: Callable[[int], object]
) -> None:
    sides = (
        (pair.base, [tensor.base for tensor in pair.tensors], plan.base_sha256),
        (pair.tuned, [tensor.tuned for tensor in pair.tensors], plan.tuned_sha256),
    )
    for index, entries, expected in sides:
        if hash_region(index, entries, block, advance) != expected:
            raise CheckpointError(
                f"{index.folder} is not the checkpoint that the plan was made from (other bytes in the region "
                f"{plan.region}); make the plan again"
            )
