"""One run of a recipe: every stage in order, each skipped where it is done, continued where it was cut off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

from sftknow.answers import Synonyms
from sftknow.errors import RecipeError
from sftknow.evaluation.harness import Harness
from sftknow.evaluation.results import read_eval, write_eval
from sftknow.facts.sources import FactSet, load_facts
from sftknow.facts.topics import Topic, load_topics
from sftknow.finetuning.recipe import SFTRecipe
from sftknow.finetuning.train import LoadedBase, load_base
from sftknow.parameters.change import analyse
from sftknow.parameters.restore import restore
from sftknow.parameters.tables import read_analysis, write_analysis
from sftknow.pipeline.base import BaseModel, link_base, resolve_base, weights_sha256
from sftknow.pipeline.cells import Cell, grid_cells, level_name
from sftknow.pipeline.exposures import write_exposures
from sftknow.pipeline.grading import grade_dataset, grading_inputs
from sftknow.pipeline.provenance import provenance
from sftknow.pipeline.training import dataset_reference, restored_manifest, train_cell
from sftknow.recipes.load import dump_recipe
from sftknow.recipes.schema import Recipe
from sftknow.records import EvalRun, ModelRef
from sftknow.report.compose import write_report
from sftknow.storage.artifacts import RunDirectory, digest, write_json, write_text
from sftknow.storage.mastery_data import MasteryData
from sftknow.tokens.analysis import measure_divergence
from sftknow.tokens.base import BaseView, measure_base
from sftknow.tokens.forward import load_for_logits
from sftknow.tokens.selection import select_prompts
from sftknow.tokens.tables import write_divergence

HEADLINE = "cbqa_mastery_{split}"


class Experiment:
    """A recipe at work in a run directory that the caller holds open.

    The order of the methods below is the order of the paper: facts, mastery, fine-tuning, accuracy, divergence,
    parameters, restoration, report. `run` calls them all.

    Args:
        recipe: what to do.
        directory: the locked run directory.
        say: gets one line for each stage that begins.
    """

    def __init__(self, recipe: Recipe, directory: RunDirectory, say: Callable[[str], None] = print) -> None:
        self.recipe = recipe
        self.directory = directory
        self.path = directory.path
        self.say = say

    # ---- what the stages share, made at first use -------------------------------------------------------------

    @cached_property
    def base(self) -> BaseModel:
        model = self.recipe.model
        return resolve_base(model.path, model.revision, model.dtype)

    @cached_property
    def topics(self) -> dict[str, Topic]:
        extra = self.recipe.facts.topics
        return load_topics(Path(extra) if extra else None)

    @cached_property
    def synonyms(self) -> Synonyms:
        extra = self.recipe.facts.synonyms
        return Synonyms.load(Path(extra) if extra else None)

    @cached_property
    def facts(self) -> FactSet:
        section = self.recipe.facts
        return load_facts(
            section.source, topics=self.topics, synonyms=self.synonyms, limit=section.limit, seed=section.seed
        )

    @cached_property
    def dataset(self) -> MasteryData:
        return MasteryData(self.path / "mastery" / "dataset")

    @cached_property
    def cells(self) -> list[Cell]:
        """The grid's cells that the graded data can fill; a size beyond a bucket is an error before any training."""
        cells = grid_cells(self.recipe.grid)
        counts = [self.dataset.count("train", bucket) for bucket in range(5)]
        for cell in cells:
            there = sum(counts) if cell.bucket is None else counts[cell.bucket]
            if there < (cell.size or 1):
                raise RecipeError(
                    f"{cell.name} asks for {cell.size or 'all'} training facts, but "
                    f"{'the data set' if cell.bucket is None else f'bucket {cell.bucket}'} has {there}; "
                    f"change grid.buckets or grid.sizes (facts per bucket: {counts})"
                )
        return cells

    @cached_property
    def _sft(self) -> SFTRecipe:
        return SFTRecipe(**self.recipe.sft.model_dump())

    @cached_property
    def _loaded_base(self) -> LoadedBase:
        return load_base(replace(self.base.ref, dtype=None), self._sft)

    @cached_property
    def _harness(self) -> Harness:
        section = self.recipe.evaluation
        return Harness(
            self.dataset.folder,
            splits=section.splits,
            batch_size=self.recipe.model.batch_size,
            device=self.recipe.model.device,
            limit=section.limit,
        )

    @cached_property
    def _base_view(self) -> BaseView:
        section = self.recipe.divergence
        model, tokenizer = load_for_logits(self.base.ref, device=self.recipe.model.device)
        rows = self.dataset.bucket("test", 4)
        selection = select_prompts(rows, {name: topic.templates for name, topic in self.topics.items()})
        return measure_base(
            model,
            tokenizer,
            selection,
            window=section.window,
            prompt=section.prompt,
            batch_size=self.recipe.model.batch_size,
        )

    # ---- stages -----------------------------------------------------------------------------------------------

    def run(self) -> Path:
        """Do what is not done yet; return the path of ``report.html``."""
        self.write_inputs()
        self.grade()
        cells = [self.fine_tune(cell) for cell in self.cells]
        self.evaluate("base", self.path / "models" / "base")
        for cell in cells:
            self.evaluate(cell, self.path / "models" / cell)
        for cell in cells:
            self.diverge(cell)
        for cell in cells:
            self.analyse(cell)
        best = self.best_cell()
        for cell in self.cells_to_restore(best):
            self.restore(cell)
        self.choose(best)
        return self.report()

    def write_inputs(self) -> None:
        """Record the recipe and where everything comes from; refuse what cannot work before any work is done."""
        self.say(f"facts: {len(self.facts.facts):,} from {self.facts.source}; base model: {self.base.name}")
        for reason, count in self.facts.removed.items():
            self.say(f"  left out: {count:,} ({reason})")
        write_text(self.path / "recipe.yaml", dump_recipe(self.recipe))
        hashes = {
            "topics": digest({name: asdict(topic) for name, topic in self.topics.items()}),
            "synonyms": self.synonyms.sha256,
        }
        write_json(self.path / "provenance.json", provenance(self.recipe, self.base, self.facts, hashes))
        write_exposures(self.path / "facts" / "exposures.parquet", self.facts)

    def grade(self) -> None:
        """Sample every statement of every fact and write the mastery-split data set (paper, 3.1 and F.1)."""
        section = self.recipe.grading
        stage = self.directory.stage("mastery", grading_inputs(self.base, self.facts, self.topics, section))
        if not stage.complete:
            self.say("grading: how well does the base model know each fact?")
            stage.start()
            grade_dataset(
                self.base,
                self.facts,
                self.topics,
                self.synonyms,
                section,
                work=stage.folder,
                out=stage.folder / "dataset",
                device=self.recipe.model.device,
            )
            stage.finish()
        linked = self.path / "models" / "base"
        link_base(self.base, linked, dataset_reference(self.dataset, linked))

    def fine_tune(self, cell: Cell) -> str:
        """Train one cell of the grid (paper, 3.3); return its name."""
        stage = self.directory.stage(
            f"models/{cell.name}",
            {
                "base": self.base.sha256,
                "data": self.dataset.fingerprint,
                "cell": asdict(cell),
                "sft": asdict(self._sft),
            },
        )
        if not stage.complete:
            self.say(f"fine-tuning {cell.name}")
            stage.start()
            trained = train_cell(
                self.base, self.dataset, cell, stage.folder, recipe=self._sft, loaded=self._loaded_base
            )
            stage.finish({"steps": trained.steps, "final_loss": trained.final_loss})
        return cell.name

    def evaluate(self, name: str, checkpoint: Path) -> EvalRun:
        """Score one model on the cbqa_mastery tasks (paper, 3.3)."""
        section = self.recipe.evaluation
        stage = self.directory.stage(
            f"evaluation/{name}",
            {
                "weights": weights_sha256(checkpoint),
                "dtype": self.recipe.model.dtype,
                "data": self.dataset.fingerprint,
                "splits": section.splits,
                "limit": section.limit,
            },
        )
        if not stage.complete:
            self.say(f"evaluating {name}")
            stage.start()
            ref = ModelRef(path=str(checkpoint), dtype=self.recipe.model.dtype)
            write_eval(stage.folder, self._harness.score_path(ref, name=name))
            stage.finish()
        return read_eval(stage.folder)

    def diverge(self, cell: str) -> None:
        """How far the first predicted token of a cell moved from the base's (paper, 4.1)."""
        section = self.recipe.divergence
        checkpoint = self.path / "models" / cell
        stage = self.directory.stage(
            f"divergence/{cell}",
            {
                "base": self.base.sha256,
                "weights": weights_sha256(checkpoint),
                "dtype": self.recipe.model.dtype,
                "data": self.dataset.fingerprint,
                "divergence": section.model_dump(),
            },
        )
        if not stage.complete:
            self.say(f"token divergence of {cell}")
            stage.start()
            ref = ModelRef(path=str(checkpoint), dtype=self.recipe.model.dtype)
            model, tokenizer = load_for_logits(ref, device=self.recipe.model.device)
            result = measure_divergence(
                self._base_view, model, tokenizer, k=section.k, bootstrap=section.bootstrap, seed=0
            )
            write_divergence(stage.folder, result)
            stage.finish()

    def analyse(self, cell: str) -> None:
        """Which parameters of a cell changed, and how much (paper, 5.1)."""
        section = self.recipe.parameters
        checkpoint = self.path / "models" / cell
        stage = self.directory.stage(
            f"changes/{cell}",
            {"base": self.base.sha256, "weights": weights_sha256(checkpoint), "parameters": section.model_dump()},
        )
        if not stage.complete:
            self.say(f"parameter changes of {cell}")
            stage.start()
            analysis = analyse(
                Path(self.base.ref.path),
                checkpoint,
                section.levels,
                region=section.region,
                layers=section.layers,
                strategy=section.strategy,
                seed=section.seed,
                epsilon=section.epsilon,
                arithmetic=section.arithmetic,
            )
            write_analysis(stage.folder, analysis)
            stage.finish()

    def best_cell(self) -> str:
        """The fine-tuned model with the highest mean accuracy on dev (on test where there is no dev)."""
        return max((cell.name for cell in self.cells), key=lambda name: self._headline(name, self._choosing_split))

    @property
    def _choosing_split(self) -> str:
        return "dev" if "dev" in self.recipe.evaluation.splits else self.recipe.evaluation.splits[0]

    def _headline(self, model: str, split: str) -> float:
        return read_eval(self.path / "evaluation" / model).value(HEADLINE.format(split=split)).value

    def cells_to_restore(self, best: str) -> list[str]:
        """Names of the cells that the recipe wants restored.

        Raises:
            RecipeError: it names a cell that is not in the grid.
        """
        wanted = self.recipe.restore.cells
        names = [cell.name for cell in self.cells]
        if wanted == "all":
            return names
        chosen: list[str] = []
        for name in ("best",) if wanted == "best" else wanted:
            if name != "best" and name not in names:
                raise RecipeError(f"restore.cells: {name} is not in the grid; it has {', '.join(names)}")
            resolved = best if name == "best" else name
            if resolved not in chosen:
                chosen.append(resolved)
        return chosen

    @property
    def restore_levels(self) -> Sequence[str]:
        """Levels that are restored; they must be among the analysed ones."""
        return self.recipe.restore.levels or self.recipe.parameters.levels

    def restore(self, cell: str) -> None:
        """Set a cell's most changed parameters back, level by level, and score each (paper, 5.2)."""
        tuned = self.path / "models" / cell
        plan = read_analysis(self.path / "changes" / cell).plan
        for level in self.restore_levels:
            name = f"{cell}/{level_name(level)}"
            stage = self.directory.stage(
                f"restored/{name}",
                {"base": self.base.sha256, "weights": weights_sha256(tuned), "plan": plan, "level": level},
            )
            if not stage.complete:
                self.say(f"restoring {level} of {cell}")
                stage.start()
                manifest = restored_manifest(self.base, tuned, stage.folder)
                restored = restore(Path(self.base.ref.path), tuned, plan, level, stage.folder, manifest=manifest)
                stage.finish({"restored": restored.restored})
            self.evaluate(f"{cell}@{level_name(level)}", stage.folder)

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
            {
                "cell": cell,
                "level": level,
                "model": models[level],
                "chosen_on": split,
                **scores,
            },
        )

    def report(self) -> Path:
        """Tables, figures and the page."""
        self.say("writing the report")
        return write_report(self.path, self.path / "report")
