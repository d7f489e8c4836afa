"""Writes restored checkpoints: the fine-tuned one with the base's values where a plan's level says so.

Restored values are bit copies of the base's (rounded to the fine-tuned dtype where the dtypes differ), everything else
is a bit copy of the fine-tuned checkpoint, whose shards, headers, config, tokenizer and custom code the output has too.
All levels are written in one pass over both checkpoints (`sweep`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sftknow.artifacts.levels import parse_level
from sftknow.checkpoints.layout import OutputShard, layout_in_shards, layout_like
from sftknow.checkpoints.reader import narrow, nonfinite, values_differing, widen
from sftknow.checkpoints.regions import parse_layers, place_of
from sftknow.errors import CheckpointError
from sftknow.models.resolving import model_folder
from sftknow.parameters.hashing import verify_pair
from sftknow.parameters.options import Resources
from sftknow.parameters.outputs import Output, OutputFolders
from sftknow.parameters.pairs import CheckpointPair, TensorPair, pair_checkpoints, pair_of
from sftknow.parameters.passes import Bits, Chunk, for_each_chunk, shown
from sftknow.parameters.strategies import BY_CHANGE, check_strategy
from sftknow.parameters.sweep import Painter, Sweep
from sftknow.records import LevelCut, RestoredCheckpoint, RestorePlan

_MEGABYTE = 10**6
_MEGABYTES_A_SECOND = 1000

Finishing = Callable[[Path, Path], object]
"""Called with a folder that holds all but is not in its place yet, and with that place; what it adds is part of the
output."""


def restore(
    base: str | Path,
    tuned: str | Path,
    plan: RestorePlan,
    level: str,
    out: str | Path,
    *,
    manifest: Mapping[str, Any],
    resources: Resources | None = None,
) -> RestoredCheckpoint:
    """Write one level of a plan; see `restore_levels`."""
    return restore_levels(base, tuned, plan, {level: out}, manifests={level: manifest}, resources=resources)[0]


def restore_levels(
    base: str | Path,
    tuned: str | Path,
    plan: RestorePlan,
    outputs: Mapping[str, str | Path],
    *,
    manifests: Mapping[str, Mapping[str, Any]] | None = None,
    resources: Resources | None = None,
    links: bool = True,
    shard_bytes: int | None = None,
    verified: bool = False,
    notes: Mapping[str, Any] | None = None,
    finishing: Finishing | None = None,
) -> list[RestoredCheckpoint]:
    """Write the fine-tuned checkpoint with the selected elements set back to the base's values (paper, 5.1).

    Each folder appears under its name only when all of it is written, ``sftknow.json`` with it. A folder that an
    earlier restoration wrote is replaced; any other folder there is left alone. What a kill or a full disk cut off the
    next call continues: what is there is compared and kept where it is right.

    Args:
        base: the pretrained checkpoint that the plan was made from, as `analyse` takes it; shards do not matter.
        tuned: the fine-tuned one.
        plan: from `analyse`.
        outputs: by level, the folder to write. Levels are of the plan's.
        manifests: by level, what goes into ``sftknow.json`` as it is, next to ``restoration``, which is added here.
        resources: threads, memory and block sizes; the output does not depend on them.
        links: outputs that have the same bytes in a shard share one read-only file with several names (hard links),
            where the file system has them. The inputs are never linked.
        shard_bytes: largest size of a shard; None keeps the fine-tuned checkpoint's shards.
        verified: the plan was made by this process from these files just now, so that they are not hashed again.
        notes: added to what is recorded under ``restoration`` anyway.
        finishing: adds more files to each folder.

    Returns:
        In the order of ``outputs``.

    Raises:
        CheckpointError: a level the plan lacks, checkpoints that are not those of the plan, a folder that is an input
            or somebody else's, too little disk or memory, a base value too large for the fine-tuned dtype.
    """
    check_strategy(plan.strategy)
    base, tuned = model_folder(base), model_folder(tuned)
    places = {level: Path(folder) for level, folder in outputs.items()}
    cuts = {level: find_cut(plan, level) for level in places}
    _refuse_twice(list(cuts.values()))
    order = sorted(outputs, key=lambda level: cuts[level].selected)
    pair = pair_of(base, tuned, plan)
    job = WriteJob(pair, ", ".join(order), resources or Resources(), links=links, shard_bytes=shard_bytes)
    wanted = [
        Output(
            folder=places[level],
            manifest=(manifests or {}).get(level, {}),
            restoration={"level": cuts[level].level, **described(plan, cuts[level], pair)},
        )
        for level in order
    ]
    painter = LevelPainter(plan, [cuts[level] for level in order], pair)
    folders = job.prepare(wanted, painter, inputs=(base, tuned))
    if not verified:
        verify_pair(pair, plan, job.resources)
    counts = job.write(folders, painter, (3, len(order) + 1))
    restored = {}
    with folders:
        for i, level in enumerate(order):
            selected, differing, _ = counts[:, : i + 1].sum(axis=1).tolist()
            if selected != cuts[level].selected:
                raise CheckpointError(
                    f"the plan selects {cuts[level].selected} elements at {level}, but {selected} were found: it is "
                    "damaged, or the checkpoints changed meanwhile; make the plan again"
                )
            wanted[i].restoration |= {"selected": selected, "restored": differing, **(notes or {})}
            restored[level] = RestoredCheckpoint(checkpoint=places[level], level=cuts[level].level, restored=differing)
        folders.finish(finishing)
    return [restored[level] for level in outputs]


def restore_layers(
    base: Path,
    tuned: Path,
    outputs: Mapping[str, Path],
    *,
    region: str = "transformer",
    manifests: Mapping[str, Mapping[str, Any]] | None = None,
    resources: Resources | None = None,
    links: bool = True,
    shard_bytes: int | None = None,
    common_rows: bool = False,
    ignore: str | None = None,
    finishing: Finishing | None = None,
) -> list[RestoredCheckpoint]:
    """Write the fine-tuned checkpoint with whole layers set back to the base (paper, Table 11), a folder a range.

    Args:
        outputs: by range of layers, such as ``0-3``, the folder to write.
        region: what of these layers is set back.

    The other arguments, what is returned and what is raised are those of `restore_levels`, and `refuse_equal`'s.
    """
    ranges = {text: parse_layers(text) for text in outputs}
    # One by one first, so that a range beyond the last layer is refused by name.
    options: dict[str, Any] = {"common_rows": common_rows, "ignore": ignore}
    single = {text: pair_checkpoints(base, tuned, region, text, **options) for text in ranges}
    pair = pair_checkpoints(base, tuned, region, ",".join(ranges), **options)
    refuse_equal(pair, resources or Resources())
    what = f"layers {', '.join(ranges)}"
    job = WriteJob(pair, what, resources or Resources(), links=links, shard_bytes=shard_bytes)
    wanted = [
        Output(
            folder=outputs[text],
            manifest=(manifests or {}).get(text, {}),
            restoration={
                "level": "100%",
                "strategy": "layers",
                "region": region,
                "layers": text,
                "elements": single[text].elements,
            },
        )
        for text in ranges
    ]
    painter = LayerPainter(list(ranges.values()))
    folders = job.prepare(wanted, painter, inputs=(base, tuned))
    counts = job.write(folders, painter, (3, len(ranges)))
    restored = []
    with folders:
        for i, text in enumerate(ranges):
            if counts[2, i]:
                raise CheckpointError(
                    f"{base} or {tuned} has {counts[2, i]} NaN or infinite values in layers {text}; use checkpoints "
                    "without them"
                )
            wanted[i].restoration |= {"selected": int(counts[0, i]), "restored": int(counts[1, i])}
            restored.append(
                RestoredCheckpoint(checkpoint=outputs[text], level=f"layers {text}", restored=int(counts[1, i]))
            )
        folders.finish(finishing)
    return restored


def refuse_equal(pair: CheckpointPair, resources: Resources) -> None:
    """Raise CheckpointError where setting the whole region back would change no value; reads up to the first change."""

    class ChangedError(Exception):
        pass

    def compare(chunk: Chunk, bits: Bits) -> None:
        tensor = pair.tensors[chunk.position]
        base, tuned = bits
        dtype = tensor.tuned.dtype
        if tensor.base.dtype != dtype:
            base = narrow(widen(base, tensor.base.dtype), dtype)
        if not np.array_equal(base, tuned) and (widen(base, dtype) != widen(tuned, dtype)).any():
            raise ChangedError

    try:
        for_each_chunk(pair, ("base", "tuned"), compare, "comparing parameters", resources)
    except ChangedError:
        return
    raise CheckpointError(
        f"there is nothing to restore: {pair.base.folder} and {pair.tuned.folder} hold the same values in the region"
        f"{' but for rounding' if any(t.base.dtype != t.tuned.dtype for t in pair.tensors) else ''}"
    )


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


class WriteJob:
    """Several outputs of one layout: `prepare` their folders, then `write` the weights.

    Args:
        pair: whose fine-tuned side the outputs are like.
        what: is restored, for the progress bar.
        links: see `restore_levels`, as ``shard_bytes``.
    """

    def __init__(
        self, pair: CheckpointPair, what: str, resources: Resources, *, links: bool, shard_bytes: int | None = None
    ) -> None:
        self._pair = pair
        self._what = what
        self._links = links
        self.resources = resources
        self._layout = layout_in_shards(pair.tuned, shard_bytes) if shard_bytes else layout_like(pair.tuned)

    def prepare(self, wanted: Sequence[Output], painter: Painter, *, inputs: Sequence[Path]) -> OutputFolders:
        """The folders, once it is clear that they may be written and that there is room."""
        folders = OutputFolders(wanted, self._layout, self._pair.tuned, inputs)
        kinds = [painter.kinds(shard) for shard in self._layout.shards] if self._links else None
        folders.refuse_full_disk(kinds)
        return folders

    def write(self, folders: OutputFolders, painter: Painter, counts: tuple[int, ...]) -> NDArray[np.int64]:
        """Write the weights of all outputs; returns what the painter counted. What fails the next start continues."""
        from sftknow.parameters.compiled import compiling_announced

        total = self._layout.bytes * len(folders.outputs) // _MEGABYTE
        quiet = _MEGABYTES_A_SECOND * self.resources.quiet
        with (
            folders.writing(),
            compiling_announced(),
            shown(total, f"restoring {self._what}", unit="MB", quiet=quiet) as advance,
        ):
            return Sweep(
                self._layout,
                folders.partial,
                {tensor.name: tensor for tensor in self._pair.tensors},
                painter,
                counts=counts,
                resources=self.resources,
                links=self._links,
                advance=advance,
            ).run()


class LevelPainter:
    """Makes blocks of several nested levels of one plan.

    Counts, shape (3, levels + 1), by rank: elements, those of them whose value is changed, those whose bits are.

    Args:
        cuts: in ascending order of what they select.
        pair: whose region the plan is for.
    """

    def __init__(self, plan: RestorePlan, cuts: Sequence[LevelCut], pair: CheckpointPair) -> None:
        from sftknow.parameters.leveling import LevelSelector

        self.outputs = len(cuts)
        self._cuts = cuts
        self._strategy = plan.strategy
        self._selector = LevelSelector(plan, cuts)
        self._region = frozenset(tensor.name for tensor in pair.tensors)

    def kinds(self, shard: OutputShard) -> Sequence[Hashable]:
        if self._region.isdisjoint(shard.tensors):
            return ["as fine-tuned"] * self.outputs
        return [self._kind(cut, i) for i, cut in enumerate(self._cuts)]

    def _kind(self, cut: LevelCut, i: int) -> Hashable:
        if not cut.selected:
            return "as fine-tuned"
        if self._strategy not in BY_CHANGE or cut.threshold_bits:
            return i
        # The level ends amid the elements that did not change.
        return "all that changed" if self._strategy == "top" else "as fine-tuned"

    def paint(
        self,
        tensor: TensorPair,
        first: int,
        base: NDArray[Any],
        tuned: NDArray[Any],
        rows: NDArray[Any],
        start: int,
        counts: NDArray[np.int64],
    ) -> None:
        from sftknow.parameters.blending import blend_rows

        ranks = np.empty(base.size, dtype=np.uint8)
        self._selector.ranks(base, tensor.base.dtype, tuned, tensor.tuned.dtype, tensor.first + first, ranks)
        restored = in_tuned_dtype(base, tensor, ranks, self.outputs)
        sign = tuned.dtype.type(1 << (8 * tuned.itemsize - 1))
        blend_rows(ranks, restored, tuned, ~sign, rows, start, counts)


class LayerPainter:
    """Makes blocks of outputs that have some layers whole from the base.

    Counts, shape (3, outputs): selected elements, those of them whose value differs, values that are not finite.

    Args:
        layers: by output.
    """

    def __init__(self, layers: Sequence[frozenset[int]]) -> None:
        self.outputs = len(layers)
        self._layers = layers

    def kinds(self, shard: OutputShard) -> Sequence[Hashable]:
        there = {place_of(name).layer for name in shard.tensors}
        return [layers & there for layers in self._layers]

    def paint(
        self,
        tensor: TensorPair,
        first: int,
        base: NDArray[Any],
        tuned: NDArray[Any],
        rows: NDArray[Any],
        start: int,
        counts: NDArray[np.int64],
    ) -> None:
        broken = sum(nonfinite(base, tensor.base.dtype)) + sum(nonfinite(tuned, tensor.tuned.dtype))
        bits = tuned if broken else in_tuned_dtype(base, tensor, np.zeros(base.size, dtype=np.uint8), 1)
        differing = values_differing(bits, tuned, tensor.tuned.dtype)
        for i, layers in enumerate(self._layers):
            row = rows[i, start : start + tuned.size]
            if tensor.place.layer in layers:
                row[:] = bits
                counts[:, i] += (base.size, differing, broken)
            else:
                row[:] = tuned


def in_tuned_dtype(base: NDArray[Any], tensor: TensorPair, ranks: NDArray[np.uint8], below: int) -> NDArray[Any]:
    """The base's bits, or its values rounded to nearest even in the fine-tuned dtype where the dtypes differ.

    Raises:
        CheckpointError: a value whose rank is ``below`` that does not fit that dtype.
    """
    if tensor.base.dtype == tensor.tuned.dtype:
        return base
    bits = narrow(widen(base, tensor.base.dtype), tensor.tuned.dtype)
    if any(nonfinite(bits[ranks < below], tensor.tuned.dtype)):
        raise CheckpointError(
            f"{tensor.name}: a value of {tensor.base.file.parent} is too large for {tensor.tuned.dtype}, the dtype of "
            f"{tensor.tuned.file.parent}; save the fine-tuned model in {tensor.base.dtype} and make the plan again"
        )
    return bits


def described(plan: RestorePlan, cut: LevelCut, pair: CheckpointPair) -> dict[str, Any]:
    """What ``sftknow.json`` says of a level, but for the counts."""
    return {
        "elements": pair.elements,
        "strategy": plan.strategy,
        "seed": plan.seed,
        "region": plan.region,
        "layers": plan.layers,
        "common_rows": plan.common_rows,
        "ignore": plan.ignore,
        "epsilon": plan.epsilon,
        "arithmetic": plan.arithmetic,
        "compare_in": plan.compare_in,
        "threshold_bits": cut.threshold_bits,
        "ties": cut.ties,
        "tie_end": cut.tie_end,
        "base_sha256": plan.base_sha256,
        "tuned_sha256": plan.tuned_sha256,
    }


def _refuse_twice(cuts: Sequence[LevelCut]) -> None:
    for i, cut in enumerate(cuts):
        if cut in cuts[:i]:
            raise CheckpointError(f"the level {cut.level} was asked for twice")
