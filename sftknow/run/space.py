"""How much of the disk a run will take, and whether it is there: asked before the first hour of work, not at the last.

Sizes follow from the number of the model's values and the dtype that the recipe stores. Only two things are not known
beforehand: which cell turns out best (it counts as one more), and how small a delta gets (`DELTA_SHARES`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sftknow.checkpoints.dtypes import stored_dtype, stored_values
from sftknow.errors import RunError
from sftknow.machine import free_space
from sftknow.recipes.schema import Recipe
from sftknow.run.cells import grid_cells, names_of

DELTA_SHARES = {"gentle": 0.20, "strong": 0.45, "own": 0.85}
"""Bytes of a delta ÷ bytes of the whole checkpoint, rounded up from what `python -m tests.benchmarks.deltas` measures:
weights of 16 bits after a learning rate like the paper's (0.17), after one like the lab's (0.42), and values that are
stored for themselves because base and fine-tuned model differ in dtype (0.78)."""

_GENTLE = 5e-5
"""Learning rate up to which few bits move."""

FACT_BYTES, ANSWER_BYTES, TEXT_BYTES = 160, 48, 2
"""Bytes on disk of a graded fact, of an answered question, and of a kept continuation, measured on the lab."""

CELL_BYTES = 400_000
"""Of a cell's analyses, marks and tables."""

_WORKERS = 8
"""Cells under way at once that are counted on a cluster whose size the recipe leaves open."""

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_OTHER_FILES = (".json", ".model", ".txt", ".jinja")


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """What storing a model depends on."""

    parameters: int
    """Values in all tensors, tied ones once."""
    dtype: str | None
    """Dtype that most of them are stored in; None where they are of a kind that fine-tuning does not write."""
    other_files: int = 0
    """Bytes of tokenizer, configuration and the like."""

    def whole(self, dtype: str) -> int:
        """Bytes of a checkpoint in that dtype."""
        return self.parameters * ITEM_BYTES[dtype] + self.other_files


@dataclass(frozen=True, kw_only=True)
class Part:
    """One kind of files."""

    name: str
    count: int
    each: int
    """Bytes."""

    @property
    def bytes(self) -> int:
        return self.count * self.each


@dataclass(frozen=True, kw_only=True)
class Left:
    """What a run has still to write."""

    cells: int
    """Fine-tuned models that are not stored yet."""
    levels: int
    """Restored checkpoints that are not written yet."""
    facts: int = 0
    """Facts to grade."""
    tries: int = 0
    """Continuations to keep; 0 where they are not kept."""
    answers: int = 0
    """Questions to ask, of all models together."""


def model_size(folder: Path) -> ModelSize:
    """The size of a model on this machine, from its files' headers.

    Raises:
        CheckpointError: a file of weights is damaged.
    """
    other = [file for file in folder.iterdir() if file.is_file() and file.suffix in _OTHER_FILES]
    return ModelSize(
        parameters=sum(stored_values(folder).values()),
        dtype=stored_dtype(folder),
        other_files=sum(file.stat().st_size for file in other),
    )


def restored_cells(recipe: Recipe) -> int:
    """Most cells that the recipe restores: ``best`` may be one that is named as well."""
    cells, wanted = len(grid_cells(recipe.grid)), recipe.restore.cells
    if wanted == "all":
        return cells
    return min(cells, 1 if wanted == "best" else len(names_of(recipe.grid, wanted, "restore.cells")))


def parts(recipe: Recipe, model: ModelSize, left: Left, *, delta_share: float | None = None) -> Iterator[Part]:
    """What the run will write, kind by kind.

    Args:
        recipe: what is to be done.
        model: the base.
        left: what is not there yet.
        delta_share: of a delta in the whole checkpoint, where it is known; None for `expected_delta_share`.
    """
    small = recipe.grid.storage == "delta"
    whole = model.whole(saved_dtype(recipe, model))
    share = delta_share or expected_delta_share(recipe, model)
    each = int(whole * share) if small else whole
    if left.facts:
        yield Part(name="graded facts", count=1, each=left.facts * FACT_BYTES + left.tries * TEXT_BYTES)
    if left.answers:
        yield Part(name="answers", count=1, each=left.answers * ANSWER_BYTES)
    if left.cells:
        kept = "differences to the base" if small else "whole checkpoints"
        yield Part(name=f"fine-tuned models ({kept})", count=left.cells, each=each + CELL_BYTES)
    if left.levels:
        yield Part(name="restored checkpoints", count=left.levels, each=whole)
    if recipe.general.tasks:
        yield Part(name="other tasks' models", count=len(recipe.general.tasks) + 1, each=whole)
    scratch = _scratch(recipe, model)
    if left.cells and scratch:
        yield Part(name="scratch while training", count=min(left.cells, _at_once(recipe)), each=scratch)
    elif left.levels and small:
        yield Part(name="scratch while restoring", count=1, each=whole)


def saved_dtype(recipe: Recipe, model: ModelSize) -> str:
    """Dtype that fine-tuned models of this base are written in."""
    return recipe.sft.saving_like(model.dtype).save_dtype or ""


def expected_delta_share(recipe: Recipe, model: ModelSize) -> float:
    """What a delta of such a training usually comes to; see `DELTA_SHARES`."""
    if model.dtype != saved_dtype(recipe, model) or model.dtype == "float32":
        return DELTA_SHARES["own"]
    return DELTA_SHARES["gentle" if recipe.sft.learning_rate <= _GENTLE else "strong"]


def check_space(path: Path, wanted: list[Part]) -> None:
    """Refuse a run that would fill the disk.

    Args:
        path: the run directory, there or not.
        wanted: of `parts`.

    Raises:
        RunError: one line with the numbers and the ways out.
    """
    need = sum(part.bytes for part in wanted)
    _, free = free_space(path)
    if need <= free:
        return
    largest = sorted(wanted, key=lambda part: -part.bytes)[:2]
    what = ", ".join(f"{part.count:,} × {size_text(part.each)} {part.name}" for part in largest)
    raise RunError(
        f"the run needs {size_text(need)} more in {path} ({what}) and {size_text(free)} are free there; keep models "
        "small (grid.storage: delta), take fewer cells or levels (grid.sizes, grid.seeds, restore.cells, "
        "restore.levels), or give another --out"
    )


def size_text(count: float) -> str:
    """Bytes for people: decimal units, three digits."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:,.3g} {unit}" if count < 1000 * factor else f"{count / factor:,.0f} {unit}"
    return f"{count / 1e3:,.0f} kB"


def _scratch(recipe: Recipe, model: ModelSize) -> int:
    """Bytes that one cell takes for a while, on top of what stays, while it is trained, measured and stored."""
    whole = model.whole(saved_dtype(recipe, model)) if recipe.grid.storage == "delta" else 0
    snapshots = 0
    if recipe.tracking.save_steps:
        # Weights and AdamW's two moments; the trainer keeps two snapshots and writes the third before one goes.
        snapshots = 3 * 3 * model.parameters * ITEM_BYTES[recipe.sft.load_dtype]
    return max(whole, snapshots)


def _at_once(recipe: Recipe) -> int:
    grid = recipe.grid
    return grid.processes if grid.engine == "local" else grid.ray.replicas or _WORKERS
