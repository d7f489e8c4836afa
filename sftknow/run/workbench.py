"""What the stages of a run share, each made when it is first used and then kept: facts, data set, base, harness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from sftknow.answers import Synonyms
from sftknow.artifacts.mastery_data import MasteryData
from sftknow.artifacts.stages import RunDirectory
from sftknow.divergence.base import BaseView, measure_base
from sftknow.divergence.forward import load_for_logits
from sftknow.divergence.selection import select_prompts
from sftknow.errors import RecipeError
from sftknow.evaluation.harness import Harness
from sftknow.facts.sources import FactSet, load_facts
from sftknow.facts.topics import Topic, load_topics
from sftknow.models.resolving import BaseModel, resolve_base
from sftknow.parameters.change import Analysis, analyse
from sftknow.recipes.schema import Recipe
from sftknow.records import Split
from sftknow.run.cells import Cell, grid_cells
from sftknow.run.training import sft_recipe
from sftknow.training.recipe import SFTRecipe
from sftknow.training.train import LoadedBase, TrainingOptions, load_base


class Workbench:
    """A recipe, the run directory that it works in, and everything expensive that several stages need.

    Args:
        recipe: what to do.
        directory: the locked run directory.
        say: gets one line for each stage that begins.
        base: the base model, where it is known already; None finds it.
    """

    def __init__(
        self, recipe: Recipe, directory: RunDirectory, say: Callable[[str], None], *, base: BaseModel | None = None
    ) -> None:
        self.recipe = recipe
        self._base = base
        self.directory = directory
        self.path = directory.path
        self.say = say

    @cached_property
    def base(self) -> BaseModel:
        model = self.recipe.model
        return self._base or resolve_base(model.path, model.revision, model.named_dtype)

    @cached_property
    def baselines(self) -> dict[str, BaseModel]:
        """The models that are only evaluated, by the recipe's names.

        Raises:
            ModelError: there is no such model.
            HubError: the Hub refused.
        """
        model = self.recipe.model
        return {name: resolve_base(path, None, model.named_dtype) for name, path in self.recipe.grid.baselines.items()}

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
        """The graded facts. There is one only once the grading is done."""
        return MasteryData(self.path / "mastery" / "dataset")

    @cached_property
    def cells(self) -> list[Cell]:
        """The grid's cells.

        Raises:
            RecipeError: a cell asks for more facts than the graded data has. It is raised before any training.
        """
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

    def sft(self, cell: Cell) -> SFTRecipe:
        """How a cell is trained."""
        return sft_recipe(self.recipe.sft, self.recipe.lora if cell.lora else None)

    @property
    def training_options(self) -> TrainingOptions:
        section = self.recipe.tracking
        return TrainingOptions(report_to=section.report_to, save_steps=section.save_steps)

    @cached_property
    def loaded_base(self) -> LoadedBase:
        """The base in memory, from which every cell starts."""
        return load_base(replace(self.base.ref, dtype=None), sft_recipe(self.recipe.sft))

    @cached_property
    def harness(self) -> Harness:
        """Tasks and tokens, made once for all models."""
        return self.harness_of(self.recipe.evaluation.splits)

    def harness_of(self, splits: Sequence[Split]) -> Harness:
        """Tasks and tokens of some splits."""
        section = self.recipe.evaluation
        return Harness(
            self.dataset.folder,
            splits=splits,
            batch_size=self.recipe.model.batch_size,
            device=self.recipe.model.device,
            limit=section.limit,
        )

    def analyse(self, tuned: Path) -> Analysis:
        """The parameter changes of a fine-tuned model, as the recipe asks (paper, 5.1)."""
        section = self.recipe.parameters
        return analyse(
            Path(self.base.ref.path),
            tuned,
            section.levels,
            region=section.region,
            layers=section.layers,
            strategy=section.strategy,
            seed=section.seed,
            epsilon=section.epsilon,
            arithmetic=section.arithmetic,
        )

    @cached_property
    def base_view(self) -> BaseView:
        """What the base predicts, computed once for all fine-tuned models."""
        section = self.recipe.divergence
        model, tokenizer = load_for_logits(self.base.ref, device=self.recipe.model.device)
        rows = [row for bucket in section.buckets for row in self.dataset.bucket("test", bucket)]
        templates = {name: topic.templates for name, topic in self.topics.items()}
        selection = select_prompts(rows, templates, buckets=section.buckets)
        return measure_base(
            model,
            tokenizer,
            selection,
            window=section.window,
            prompt=section.base_prompt,
            batch_size=self.recipe.model.batch_size,
        )
