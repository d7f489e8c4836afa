"""One run of a recipe: every stage in order, each skipped where it is done, continued where it was cut off."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from sftknow.errors import RecipeError, RunError, SftknowError
from sftknow.evaluation.results import read_eval
from sftknow.pipeline.base import link_base, resolve_base
from sftknow.pipeline.cell_stages import CellStages, evaluate
from sftknow.pipeline.cells import level_name
from sftknow.pipeline.exposures import write_exposures
from sftknow.pipeline.grading import describe_facts, grade_dataset, grading_inputs, topics_sha256
from sftknow.pipeline.provenance import provenance
from sftknow.pipeline.references import dataset_reference
from sftknow.pipeline.stored_cells import store_small
from sftknow.pipeline.workbench import Workbench
from sftknow.recipes.load import dump_recipe
from sftknow.recipes.schema import Recipe
from sftknow.report.compose import write_report
from sftknow.storage.artifacts import RunDirectory, write_json, write_text

HEADLINE = "cbqa_mastery_{split}"


class Experiment:
    """A recipe at work in a run directory that the caller holds open.

    The order is the order of the paper: facts, mastery, and for every cell of the grid fine-tuning, accuracy,
    divergence and parameters; then restoration and the report. `run` does it all.

    Args:
        recipe: what to do.
        directory: the locked run directory.
        say: gets one line for each stage that begins.
    """

    def __init__(self, recipe: Recipe, directory: RunDirectory, say: Callable[[str], None] = print) -> None:
        self.recipe = recipe
        self.path = directory.path
        self.say = say
        self.bench = Workbench(recipe, directory, say)
        self.failed: dict[str, str] = {}
        """Cells that failed, with the reason."""

    def run(self) -> Path:
        """Do what is not done yet; return the path of ``report.html``.

        Raises:
            RunError: a cell failed. The others are done all the same, and so is the report.
        """
        self.write_inputs()
        self.grade()
        bench = self.bench
        cells = [CellStages(bench, cell) for cell in bench.cells]
        to_restore = self._cells_named()
        evaluate(bench, "base", self.path / "models" / "base", bench.base.sha256)
        for name, model in self.recipe.grid.baselines.items():
            self._guarded(name, partial(self.evaluate_baseline, name, model))
        done = [cell for cell in cells if self._guarded(cell.name, partial(self._train_and_measure, cell))]
        if done:
            best = self.best(done)
            chosen = [c for c in done if c.name in to_restore or (c is best and "best" in to_restore)]
            restored = [
                c for c in chosen if self._guarded(f"restoring {c.name}", partial(c.restore, self.restore_levels))
            ]
            if best in restored:
                self.choose(best.name)
        page = self.report()
        self._tell_failures(len(cells))
        return page

    # ---- facts and mastery --------------------------------------------------------------------------------------

    def write_inputs(self) -> None:
        """Record the recipe and where everything comes from; refuse what cannot work before any work is done."""
        bench = self.bench
        facts, base = bench.facts, bench.base
        self.say(f"base model: {base.name}")
        for line in describe_facts(facts, bench.topics, self.recipe.grading):
            self.say(line)
        write_text(self.path / "recipe.yaml", dump_recipe(self.recipe))
        hashes = {"topics": topics_sha256(bench.topics), "synonyms": bench.synonyms.sha256}
        write_json(self.path / "provenance.json", provenance(self.recipe, base, facts, hashes))
        write_exposures(self.path / "facts" / "exposures.parquet", facts)

    def grade(self) -> None:
        """Sample every statement of every fact and write the mastery-split data set (paper, 3.1 and F.1)."""
        bench, section = self.bench, self.recipe.grading
        inputs = grading_inputs(bench.base, bench.facts, bench.topics, section)
        stage = bench.directory.stage("mastery", inputs)
        if not stage.complete:
            self.say("grading: how well does the base model know each fact?")
            stage.start()
            grade_dataset(
                bench.base,
                bench.facts,
                bench.topics,
                bench.synonyms,
                section,
                work=stage.folder,
                out=stage.folder / "dataset",
                device=self.recipe.model.device,
            )
            stage.finish()
        linked = self.path / "models" / "base"
        link_base(bench.base, linked, dataset_reference(bench.dataset, linked))

    # ---- the grid -------------------------------------------------------------------------------------------------

    def _train_and_measure(self, cell: CellStages) -> None:
        cell.fine_tune()
        cell.measure()
        if self.recipe.grid.storage == "delta":
            store_small(self.bench.base, cell.folder)

    def evaluate_baseline(self, name: str, model: str) -> None:
        """Score a model that is not trained here, such as the base's instruct version (paper, Table 7)."""
        found = resolve_base(model, None, self.recipe.model.named_dtype)
        evaluate(self.bench, name, Path(found.ref.path), found.sha256)

    def _guarded(self, name: str, work: Callable[[], object]) -> bool:
        """Do one cell's work; note why it failed and go on with the others. A kill or Ctrl-C still ends the run."""
        try:
            work()
        except SftknowError as error:
            self._note_failure(name, str(error))
            return False
        except Exception as error:
            # Not the user's to mend: what went wrong is kept whole for a bug report, and the other cells go on.
            write_text(self.path / "failures" / f"{name.replace('/', '-')}.txt", traceback.format_exc())
            self._note_failure(name, f"{type(error).__name__}: {error}; see failures/ in the run directory")
            return False
        return True

    def _note_failure(self, name: str, reason: str) -> None:
        self.failed[name] = reason
        self.say(f"{name} failed: {reason}")

    def _tell_failures(self, cells: int) -> None:
        if not self.failed:
            return
        reasons = "; ".join(f"{name} ({reason})" for name, reason in self.failed.items())
        raise RunError(
            f"{len(self.failed)} of {cells + len(self.recipe.grid.baselines)} models failed: {reasons}. The others and "
            "the report are done; start the same command again to try these again"
        )

    # ---- restoration ----------------------------------------------------------------------------------------------

    @property
    def _choosing_split(self) -> str:
        return "dev" if "dev" in self.recipe.evaluation.splits else self.recipe.evaluation.splits[0]

    def _headline(self, model: str, split: str) -> float:
        return read_eval(self.path / "evaluation" / model).value(HEADLINE.format(split=split)).value

    def best(self, cells: Sequence[CellStages]) -> CellStages:
        """The fine-tuned model with the highest mean accuracy on dev (on test where there is no dev)."""
        return max(cells, key=lambda cell: self._headline(cell.name, self._choosing_split))

    def _cells_named(self) -> set[str]:
        """Names of the cells that the recipe wants restored; ``best`` may be among them.

        Raises:
            RecipeError: it names a cell that is not in the grid.
        """
        wanted, names = self.recipe.restore.cells, [cell.name for cell in self.bench.cells]
        if wanted == "all":
            return {*names, "best"}
        asked = {"best"} if wanted == "best" else set(wanted)
        for name in sorted(asked - {"best"}):
            if name not in names:
                raise RecipeError(f"restore.cells: {name} is not in the grid; it has {', '.join(names)}")
        return asked

    @property
    def restore_levels(self) -> Sequence[str]:
        """Levels that are restored; they must be among the analysed ones."""
        return self.recipe.restore.levels or self.recipe.parameters.levels

    def choose(self, cell: str) -> None:
        """Choose the level on dev and confirm it on test; the paper chooses on test."""
        levels = ["0%", *self.restore_levels]
        models = {level: cell if level == "0%" else f"{cell}@{level_name(level)}" for level in levels}
        split = self._choosing_split
        level = max(levels, key=lambda item: self._headline(models[item], split))
        scores = {
            part: {item: self._headline(models[item], part) for item in levels}
            for part in self.recipe.evaluation.splits
            if part != "train"
        }
        write_json(
            self.path / "choice.json",
            {"cell": cell, "level": level, "model": models[level], "chosen_on": split, **scores},
        )

    # ---- the end --------------------------------------------------------------------------------------------------

    def report(self) -> Path:
        """Tables, figures and the page."""
        self.say("writing the report")
        return write_report(self.path, self.path / "report")
