"""How far a run directory is with a recipe. Only looks: nothing is written, nothing is locked, no weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sftknow.recipes.schema import Recipe
from sftknow.run.cell_steps import CellSteps, model_evaluation
from sftknow.run.cells import Cell, grid_cells, levels_of
from sftknow.run.space import Left, restored_cells
from sftknow.run.workbench import Workbench


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What is done of a recipe in a run directory."""

    graded: bool
    cells: tuple[Cell, ...]
    """All of the grid."""
    trained: frozenset[str]
    """Names of the cells that are trained."""
    done: frozenset[str]
    """Those that are measured and stored, too."""
    scored: frozenset[str]
    """Base and baselines that are scored."""
    levels: int
    """Restored checkpoints that the recipe asks for, at most."""
    restored: int
    """Those that are written."""

    @property
    def cells_left(self) -> tuple[Cell, ...]:
        return tuple(cell for cell in self.cells if cell.name not in self.done)


def nothing_done(recipe: Recipe) -> Standing:
    """The standing of a run that was never started."""
    return Standing(
        graded=False,
        cells=tuple(grid_cells(recipe.grid)),
        trained=frozenset(),
        done=frozenset(),
        scored=frozenset(),
        levels=restored_cells(recipe) * len(levels_of(recipe)),
        restored=0,
    )


def standing(bench: Workbench) -> Standing:
    """What is done in the run directory that the bench works in.

    Raises:
        ModelError, FactsError, HubError: base model or facts are not there.
    """
    recipe = bench.recipe
    at_first = nothing_done(recipe)
    if not bench.grading.complete:
        return at_first
    cells = [CellSteps(bench, cell) for cell in bench.cells]
    models = {"base": bench.base, **bench.baselines}
    done = frozenset(cell.name for cell in cells if cell.complete)
    restored = sum(stage.complete for cell in cells if cell.name in done for stage in cell.restored.values())
    return Standing(
        graded=True,
        cells=tuple(bench.cells),
        trained=frozenset(cell.name for cell in cells if cell.training.complete),
        done=done,
        scored=frozenset(
            name
            for name, model in models.items()
            if model_evaluation(bench, name, Path(model.ref.path), model.sha256).complete
        ),
        levels=at_first.levels,
        restored=min(restored, at_first.levels),
    )


def left_to_write(recipe: Recipe, now: Standing, *, facts: int = 0, questions: int = 0, statements: int = 0) -> Left:
    """What is still to be written.

    Args:
        recipe: what is asked.
        now: how far it is.
        facts: to be graded, in all.
        questions: asked of each model.
        statements: of all facts together.
    """
    models = len(now.cells_left) + (now.levels - now.restored) + len(recipe.grid.asked) + 1 - len(now.scored)
    return Left(
        cells=len(now.cells_left),
        levels=now.levels - now.restored,
        facts=0 if now.graded else facts,
        tries=0 if now.graded or not recipe.grading.keep_texts else statements * recipe.grading.samples,
        answers=models * questions,
    )
