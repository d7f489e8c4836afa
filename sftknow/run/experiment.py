"""One run of a recipe: every stage in order, each skipped where it is done, continued where it was cut off."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from sftknow.artifacts.choice import BESIDE, Measured, choose, choose_level
from sftknow.artifacts.files import read_json, write_json, write_text
from sftknow.artifacts.levels import UNTOUCHED
from sftknow.artifacts.scores import read_scores
from sftknow.artifacts.stages import RunDirectory
from sftknow.cluster import Outcome
from sftknow.errors import CheckpointError, MasteryDataError, RunError, SftknowError
from sftknow.models.references import dataset_reference
from sftknow.models.resolving import place_base
from sftknow.recipes.load import dump_recipe
from sftknow.recipes.schema import Recipe
from sftknow.records import BUCKETS
from sftknow.report import arena
from sftknow.report.compose import write_report
from sftknow.run.arena import base_step, in_arena, write_arena
from sftknow.run.beside import train_beside
from sftknow.run.cell_steps import CellSteps, model_evaluation
from sftknow.run.checks import (
    cells_named,
    cells_to_sweep,
    check_facts,
    check_graded,
    check_machine,
    check_models,
    check_words,
)
from sftknow.run.cluster_grid import check_cluster, train_on_cluster
from sftknow.run.exposures import write_exposures
from sftknow.run.forecast import check_parts, check_rows, check_window
from sftknow.run.general_ability import ABILITY, Ability, general_ability
from sftknow.run.grading import describe_facts, topics_sha256
from sftknow.run.provenance import provenance
from sftknow.run.regrading import graded_again, shown_examples
from sftknow.run.space import check_space, model_size, parts
from sftknow.run.standing import Standing, left_to_write, standing
from sftknow.run.stored_cells import whole
from sftknow.run.time_left import TimeLeft
from sftknow.run.workbench import PROVENANCE, Workbench, restored_name


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
        self.check()
        self.write_inputs()
        self.grade()
        recipe, bench = self.recipe, self.bench
        check_graded(bench)
        cells = [CellSteps(bench, cell) for cell in bench.cells]
        now = standing(bench)
        self._check_disk(now)
        model_evaluation(bench, "base", self.path / "models" / "base", bench.base.sha256).do(self.say)
        self._guarded("the base with examples", self.show_examples)
        for name, model in bench.baselines.items():
            step = model_evaluation(bench, name, Path(model.ref.path), model.sha256)
            self._guarded(name, partial(step.do, self.say))
        if recipe.arena.draws and cells:
            base_step(bench, bench.cells).do(self.say)
        done = self._grid(cells, now)
        write_arena(bench, done)
        if done:
            best = self.best(done)

            def chosen(names: set[str]) -> list[CellSteps]:
                return [cell for cell in done if cell.name in names or (cell is best and "best" in names)]

            restored = [c for c in chosen(cells_named(recipe)) if self._guarded(f"restoring {c.name}", c.restore)]
            if best in restored:
                self.choose(best.name)
            self._guarded(f"grading {best.name}", partial(self.grade_again, best))
            for cell in restored if recipe.restore.controls else ():
                self._guarded(f"controls of {cell.name}", partial(self.control, cell))
            for cell in chosen(cells_to_sweep(recipe)):
                work = partial(cell.restore_layers, recipe.restore.layers)
                self._guarded(f"restoring layers of {cell.name}", work)
        if recipe.general.tasks:
            self._guarded("other tasks", self.other_tasks)
        page = self.report()
        if bench.left_out and not cells:
            self.say("no model was trained:")
            check_graded(bench)
        self._tell_failures(len(cells))
        return page

    # ---- facts and mastery --------------------------------------------------------------------------------------

    def write_inputs(self) -> None:
        """Record the recipe and where everything comes from."""
        bench = self.bench
        facts, base = bench.facts, bench.base
        self.say(f"base model: {base.name}")
        for line in describe_facts(facts, bench.topics, self.recipe.grading):
            self.say(line)
        write_text(self.path / "recipe.yaml", dump_recipe(self.recipe))
        hashes = {"topics": topics_sha256(bench.topics), "synonyms": bench.synonyms.sha256}
        noted = self.path / PROVENANCE
        before = read_json(noted) if noted.is_file() else None
        write_json(noted, provenance(self.recipe, base, facts, hashes, before))
        write_exposures(self.path / "facts" / "exposures.parquet", facts)

    def check(self) -> None:
        """Refuse what cannot work before any work is done: names, devices, models, facts, cluster, disk."""
        recipe, bench = self.recipe, self.bench
        check_words(recipe)
        check_machine(bench)
        check_models(bench)
        now = standing(bench)
        if now.cells_left:
            check_parts(bench)
        check_rows(bench)
        if not now.graded:
            check_facts(bench)
            check_window(bench)
        if now.cells_left and recipe.grid.engine == "ray":
            check_cluster(recipe, self.path)
        self._check_disk(now)

    def _check_disk(self, now: Standing) -> None:
        recipe, bench = self.recipe, self.bench
        counts = bench.facts.counts()
        left = left_to_write(
            recipe,
            now,
            facts=len(bench.facts.facts),
            questions=sum(counts[split] for split in recipe.evaluation.splits),
        )
        check_space(self.path, list(parts(recipe, model_size(Path(bench.base.ref.path)), left)))

    def grade(self) -> None:
        """Sample every statement of every fact and write the mastery-split data set (paper, 3.1 and F.1)."""
        bench = self.bench
        bench.grading.do(self.say)
        linked = self.path / "models" / "base"
        place_base(bench.base, linked, dataset_reference(bench.dataset, linked))

    def show_examples(self) -> None:
        """Score the base with solved examples before each question."""
        step = shown_examples(self.bench) if self.recipe.grid.buckets else None
        if step is not None:
            try:
                step.do(self.say)
            except MasteryDataError as error:  # too few training facts to show; the rest of the run does without
                self.say(f"the base is not asked with solved examples: {error}")

    def grade_again(self, cell: CellSteps) -> None:
        """Grade test facts by the best model, and by its chosen level: what is knowledge in what it gained."""
        level = self._level(cell.name) if (self.path / "restored" / cell.name).is_dir() else UNTOUCHED
        with whole(self.bench.base, cell.folder) as folder:
            asked = [(cell.name, folder, cell.weights)]
            if level != UNTOUCHED:
                stage = cell.restored[level]
                asked.append((restored_name(cell.name, level), stage.folder, stage.inputs["weights"]))
            for name, place, weights in asked:
                step = graded_again(self.bench, name, place, weights)
                if step is not None:
                    step.do(self.say)

    # ---- the grid -------------------------------------------------------------------------------------------------

    def _grid(self, cells: Sequence[CellSteps], now: Standing) -> list[CellSteps]:
        """Train and measure every cell that is not done; return those that did not fail."""
        if self.recipe.grid.engine == "ray":
            return train_on_cluster(self.bench, cells, failed=self._cluster_failure)
        if self.recipe.grid.processes > 1:
            write = partial(write_arena, self.bench)
            return train_beside(self.bench, cells, failed=self._cluster_failure, finished=write)
        if not all(cell.complete for cell in cells):
            try:
                self.bench.base_view  # noqa: B018 - where nothing can be measured, every cell would fail by it
            except MasteryDataError as error:
                if any(in_arena(self.recipe, cell.cell) for cell in cells):
                    raise  # which is measured at the same statements
                self.bench.unmeasured = True
                self.say(f"token divergence is not measured, the rest is done: {error} (divergence.window)")
        time_left = TimeLeft(self.bench, now)
        made = []
        for number, cell in enumerate(cells, 1):
            if cell.name not in now.done:
                self.say(f"cell {number} of {len(cells)}: {cell.name}{time_left}")
            if self._guarded(cell.name, cell.do):
                made.append(cell)
                write_arena(self.bench, [cell])
            time_left.finished(cell.name)
        return made

    def _guarded(self, name: str, work: Callable[[], object]) -> bool:
        """Do one cell's work; note why it failed and go on with the others. A kill or Ctrl-C still ends the run."""
        try:
            work()
        except SftknowError as error:
            self._note_failure(name, str(error))
            return False
        except Exception as error:
            self._note_failure(name, f"{type(error).__name__}: {error}", traceback.format_exc())
            return False
        return True

    def _cluster_failure(self, name: str, outcome: Outcome) -> None:
        self._note_failure(name, str(outcome.failure), outcome.traceback)

    def _note_failure(self, name: str, reason: str, trace: str | None = None) -> None:
        if trace is not None:
            # A bug, and not the user's mistake: the whole traceback is kept for a report, and the other cells go on.
            write_text(self.path / "failures" / f"{name.replace('/', '-')}.txt", trace)
            reason += "; see failures/ in the run directory"
        self.failed[name] = reason
        self.say(f"{name} failed: {reason}")

    def _tell_failures(self, cells: int) -> None:
        if not self.failed:
            return
        reasons = "; ".join(f"{name} ({reason})" for name, reason in self.failed.items())
        raise RunError(
            f"{len(self.failed)} of {cells + len(self.recipe.grid.asked)} models failed: {reasons}. The others and "
            "the report are done; start the same command again to try these again"
        )

    # ---- restoration ----------------------------------------------------------------------------------------------

    @property
    def _scored_splits(self) -> list[str]:
        """Splits with a question; facts of one's own may have none out of domain."""
        data = self.bench.dataset
        return [
            split for split in self.recipe.evaluation.splits if any(data.count(split, bucket) for bucket in BUCKETS)
        ]

    @property
    def _choosing_split(self) -> str:
        return "dev" if "dev" in self._scored_splits else self._scored_splits[0]

    def _measured(self, model: str, split: str) -> Measured:
        return Measured.of(read_scores(self.path / "evaluation" / model), split)

    def best(self, cells: Sequence[CellSteps]) -> CellSteps:
        """The fine-tuned model that is best on dev (on test where there is no dev), by ``restore.choose_by``."""
        split, by_name = self._choosing_split, {cell.name: cell for cell in cells}
        scores = {name: self._measured(name, split) for name in by_name}
        return by_name[choose(scores, self._measured("base", split), self.recipe.restore.choose_by)]

    def choose(self, cell: str) -> None:
        """Choose the level on dev and confirm it on test; the paper chooses on test."""
        split, parts = self._choosing_split, [part for part in self._scored_splits if part != "train"]
        scores = {part: self._by_level(cell, part) for part in dict.fromkeys((*parts, split))}
        level, by = self._level(cell), self.recipe.restore.choose_by
        about = {"cell": cell, "level": level, "model": restored_name(cell, level), "chosen_on": split, "chosen_by": by}
        values = {
            name: {part: {level: getattr(found, name) for level, found in scores[part].items()} for part in parts}
            for name in ("acc", *BESIDE)
        }
        write_json(self.path / "choice.json", about | values.pop("acc") | values)

    def _by_level(self, cell: str, split: str) -> dict[str, Measured]:
        """What a restored model scores on a split at every level, unrestored first."""
        return {level: self._measured(restored_name(cell, level), split) for level in (UNTOUCHED, *self.bench.levels)}

    def _level(self, cell: str) -> str:
        """The level that is chosen for a restored model."""
        return choose_level(self._by_level(cell, self._choosing_split), self.recipe.restore.choose_by)

    def control(self, cell: CellSteps) -> None:
        """Score the controls of the level that is best on dev for a model; none where that restores nothing.

        A model that is packed in memory in another order than on disk has none: that is said, and no failure.
        """
        level = self._level(cell.name)
        if level == UNTOUCHED:
            self.say(f"{cell.name}: no level is better than leaving it as it is, so there is nothing to compare with")
        else:
            try:
                cell.score_controls(level, self.recipe.restore.controls)
            except CheckpointError as error:
                self.say(f"{cell.name}: restoring it is compared with nothing (restore.controls): {error}")

    # ---- the rest -----------------------------------------------------------------------------------------------

    def other_tasks(self) -> None:
        """The paper's Table 5 for the run's base, in ``ability/``; what is done is skipped.

        Raises:
            GeneralTaskError: data that cannot be used.
            RecipeError: fewer rows than asked for.
            HubError: the Hub refused or could not be reached.
            ModelError: the base cannot be asked such tasks, as where its context is too short.
        """
        section, model, bench = self.recipe.general, self.recipe.model, self.bench
        ability = Ability.of(
            replace(section, device=model.device, dtype=model.named_dtype),
            training=bench.training(max_length=section.max_length),
            levels=bench.levels,
            order=bench.order,
        )
        general_ability(bench.base, ability, self.path / ABILITY, self.say)

    def report(self) -> Path:
        """Tables, figures and the page."""
        self.say("writing the report")
        page = write_report(self.path, self.path / "report")
        if self.recipe.arena.draws:
            arena.write(self.path)
        return page
