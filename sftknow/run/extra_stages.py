"""Stages that a recipe has to ask for: whole layers restored (Table 11), other tasks (Table 5)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from sftknow.artifacts.files import digest
from sftknow.artifacts.scores import write_eval
from sftknow.artifacts.stages import Stage
from sftknow.errors import GeneralTaskError, RecipeError
from sftknow.evaluation.general.tasks import TASKS
from sftknow.evaluation.general.xsum import ARTICLE_WORDS
from sftknow.evaluation.harness import Harness
from sftknow.models.loading import load_model, load_tokenizer
from sftknow.parameters.change import analyse
from sftknow.parameters.in_memory import ModelLevels
from sftknow.recipes.schema import Recipe
from sftknow.records import ModelRef, RestorePlan, Split
from sftknow.run.cell_stages import evaluation_stage
from sftknow.run.cells import grid_cells
from sftknow.run.checkpoint_pairs import layer_ranges
from sftknow.run.checks import cells_named
from sftknow.run.general_ability import GeneralOptions, check_tasks, general_ability
from sftknow.run.stored_cells import whole
from sftknow.run.training import sft_recipe
from sftknow.run.workbench import Workbench

ABILITY = "ability"
"""Folder of the other tasks in a run directory; a run directory of its own."""
_ALL = "100%"


class LayerSweep:
    """Each range of layers of a fine-tuned model set back to the base as a whole, and scored (paper, E.2 and Table 11).

    The model is loaded once and moved from range to range in memory. It is scored on the in-domain test split, as in
    the paper; nothing but the scores stays on disk.

    Args:
        bench: the run.
        each: layers a range.
    """

    def __init__(self, bench: Workbench, each: int) -> None:
        self.bench = bench
        self.ranges = layer_ranges(str(each), bench.base.ref.path)
        splits = bench.recipe.evaluation.splits
        self.split: Split = "test" if "test" in splits else splits[0]

    def score(self, name: str, weights: str) -> None:
        """Score a fine-tuned model with each range set back; what is done is skipped.

        Args:
            name: of the cell.
            weights: what identifies its weights.

        Raises:
            CheckpointError: the model cannot be moved between levels in memory; see `ModelLevels`.
        """
        stages = {layers: self._stage(name, weights, layers) for layers in self.ranges}
        waiting = {layers: stage for layers, stage in stages.items() if not stage.complete}
        if not waiting:
            return
        bench = self.bench
        bench.say(f"restoring layers {', '.join(waiting)} of {name}, each alone")
        with whole(bench.base, bench.path / "models" / name) as tuned:
            ref = ModelRef(path=str(tuned), dtype=bench.recipe.model.named_dtype)
            model, tokenizer = load_model(ref, device=bench.recipe.model.device), load_tokenizer(ref)
            base = Path(bench.base.ref.path)
            for layers, stage in waiting.items():
                stage.start()
                moving = ModelLevels(model, base, tuned, self._plan(base, tuned, layers))
                moving.to(_ALL)
                scores = self.harness.score(
                    model,
                    tokenizer,
                    name=f"{name}@layers-{layers}",
                    work=stage.folder,
                    key=self._key(weights, layers),
                )
                moving.to("0%")
                write_eval(stage.folder, scores)
                stage.finish()

    @cached_property
    def harness(self) -> Harness:
        """Questions of that split alone, tokenised once for all models."""
        return self.bench.harness_of((self.split,))

    def _plan(self, base: Path, tuned: Path, layers: str) -> RestorePlan:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a range in which nothing changed is a result, too
            return analyse(base, tuned, (_ALL,), region=self.bench.recipe.parameters.region, layers=layers).plan

    def _key(self, weights: str, layers: str) -> str:
        region = self.bench.recipe.parameters.region
        return digest({"base": self.bench.base.sha256, "tuned": weights, "region": region, "layers": layers})

    def _stage(self, name: str, weights: str, layers: str) -> Stage:
        return evaluation_stage(self.bench, f"{name}@layers-{layers}", self._key(weights, layers), [self.split])


def cells_to_sweep(recipe: Recipe) -> set[str]:
    """Names of the cells whose layers are set back, range by range; ``best`` may be among them.

    Raises:
        RecipeError: it names a cell that is not in the grid.
    """
    if not recipe.restore.layers:
        return set()
    wanted = recipe.restore.layer_cells
    if wanted is None:
        return cells_named(recipe)
    names = [cell.name for cell in grid_cells(recipe.grid)]
    for name in wanted:
        if name != "best" and name not in names:
            raise RecipeError(f"restore.layer_cells: {name} is not in the grid; it has {', '.join(names)}")
    return set(wanted)


def check_other_tasks(recipe: Recipe) -> None:
    """Raise GeneralTaskError where the other tasks' data are named and cannot be there, before any work is done."""
    section = recipe.general
    if not section.tasks:
        return
    for name in section.tasks:
        if name not in TASKS:
            raise RecipeError(f"general.tasks: there is no task called {name}; there are {', '.join(TASKS)}")
    check_tasks(section.tasks, section.data)
    for name, folder in section.data.items():
        if not Path(folder).expanduser().is_dir():
            raise GeneralTaskError(f"general.data.{name}: there is no folder {folder}")


def other_tasks(bench: Workbench, levels: Sequence[str]) -> None:
    """The paper's Table 5 for the run's base, in ``ability/``; what is done is skipped.

    Args:
        bench: the run.
        levels: shares to restore where the recipe's ``general`` names none.

    Raises:
        GeneralTaskError: data that cannot be used.
        RecipeError: fewer rows than asked for.
        HubError: the Hub refused or could not be reached.
        ModelError: the base cannot be asked such tasks, as where its context is too short.
    """
    section, model = bench.recipe.general, bench.recipe.model
    if not section.tasks:
        return
    sft = bench.recipe.sft.model_copy(update={"max_length": section.max_length})
    general_ability(
        replace(bench.base, ref=replace(bench.base.ref, dtype=None)),
        section.tasks,
        bench.path / ABILITY,
        data={name: Path(folder).expanduser() for name, folder in section.data.items()},
        size=None if section.size == "all" else section.size,
        seed=section.seed,
        recipe=sft_recipe(sft),
        levels=section.levels or levels,
        options=GeneralOptions(
            few_shot=section.few_shot,
            limit=section.limit,
            article_words=section.article_words or ARTICLE_WORDS,
            batch_size=section.batch_size,
            device=model.device,
            dtype=model.named_dtype,
        ),
        say=bench.say,
    )
