"""What the steps of a run share, each made when it is first used and then kept: facts, data set, base, harness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from sftknow.answers import Synonyms
from sftknow.artifacts.files import read_json
from sftknow.artifacts.levels import level_name
from sftknow.artifacts.mastery_data import MasteryData
from sftknow.artifacts.stages import RunDirectory
from sftknow.checkpoints.dtypes import stored_dtype
from sftknow.divergence.base import BaseView
from sftknow.divergence.options import DivergenceOptions
from sftknow.evaluation.harness import Harness
from sftknow.facts.sources import FactSet, load_facts
from sftknow.facts.topics import Topic, load_topics
from sftknow.models.identity import identity_by_time
from sftknow.models.loading import load_model, load_tokenizer
from sftknow.models.resolving import BaseModel, resolve_base
from sftknow.parameters.options import PairOptions
from sftknow.recipes.schema import Recipe
from sftknow.records import BUCKETS, ModelRef, Split
from sftknow.run.cells import Cell, by_seed, grid_cells, levels_of
from sftknow.run.checkpoint_pairs import LocalPair
from sftknow.run.grading import grade_dataset, grading_inputs
from sftknow.run.steps import Step
from sftknow.run.token_pairs import next_logits, rows_of, view_base
from sftknow.run.training import TrainingSetup
from sftknow.training.train import LoadedBase, load_base

PROVENANCE = "provenance.json"


class Workbench:
    """A recipe, the run directory that it works in, and everything expensive that several steps need.

    Args:
        recipe: what to do.
        directory: the locked run directory.
        say: gets one line for each step that begins.
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
        self._measured: tuple[int, ...] = ()
        self._harnesses: dict[tuple[Split, ...], Harness] = {}
        self.unmeasured = False
        """The base starts no answer early enough for token divergence, which is left out; `Experiment` finds out."""

    # ---- models -------------------------------------------------------------------------------------------------

    @cached_property
    def base(self) -> BaseModel:
        """The base model; in a run of an earlier version under the identity by which that knew it."""
        model = self.recipe.model
        base = self._base or resolve_base(model.path, model.revision, model.named_dtype)
        provenance = self.path / PROVENANCE
        if provenance.is_file():
            began_with = read_json(provenance).get("base", {}).get("weights_sha256")
            if began_with != base.sha256 and began_with == identity_by_time(Path(base.ref.path)):
                return replace(base, sha256=began_with)
        return base

    @cached_property
    def baselines(self) -> dict[str, BaseModel]:
        """The models that are only evaluated, by the names that they are scored under.

        Raises:
            ModelError: there is no such model.
            HubError: the Hub refused.
        """
        model = self.recipe.model
        asked = self.recipe.grid.asked
        found = {path: resolve_base(path, None, model.named_dtype) for path in dict.fromkeys(asked.values())}
        return {name: found[path] for name, path in asked.items()}

    @cached_property
    def loaded_base(self) -> LoadedBase:
        """The base in memory, from which every cell starts."""
        return load_base(ModelRef(path=self.base.ref.path), self.recipe.sft)

    # ---- facts --------------------------------------------------------------------------------------------------

    @cached_property
    def topics(self) -> dict[str, Topic]:
        return load_topics(self.recipe.facts.topics)

    @cached_property
    def synonyms(self) -> Synonyms:
        return Synonyms.load(self.recipe.facts.synonyms, numbers=self.recipe.facts.numbers)

    @cached_property
    def facts(self) -> FactSet:
        section = self.recipe.facts
        return load_facts(
            section.source,
            topics=self.topics,
            synonyms=self.synonyms,
            limit=section.limit,
            seed=section.seed,
            disjoint=section.disjoint,
            columns=section.columns,
        )

    @property
    def grading(self) -> Step:
        """Sample every statement of every fact and write the mastery-split data set (paper, 3.1 and F.1)."""
        section = self.recipe.grading
        return Step.of(
            self.directory.stage("mastery", grading_inputs(self.base, self.facts, self.topics, section)),
            "grading: how well does the base model know each fact?",
            lambda folder: grade_dataset(
                self.base,
                self.facts,
                self.topics,
                self.synonyms,
                section,
                work=folder,
                out=folder / "dataset",
                device=self.recipe.model.device,
            ),
        )

    @cached_property
    def dataset(self) -> MasteryData:
        """The graded facts. There is one only once the grading is done."""
        return MasteryData(self.path / "mastery" / "dataset")

    @cached_property
    def cells(self) -> list[Cell]:
        """The grid's cells that the graded facts can fill, seed by seed in an arena; `left_out` has the others."""
        found = [cell for cell in grid_cells(self.recipe.grid) if cell.fits(self.train_counts)]
        return by_seed(found) if self.recipe.arena.draws else found

    @property
    def left_out(self) -> list[Cell]:
        """The grid's cells that ask for more facts than their bucket holds."""
        return [cell for cell in grid_cells(self.recipe.grid) if not cell.fits(self.train_counts)]

    @cached_property
    def train_counts(self) -> tuple[int, ...]:
        """Graded training facts of each bucket."""
        return tuple(self.dataset.count("train", bucket) for bucket in BUCKETS)

    # ---- how the recipe wants it done -----------------------------------------------------------------------------

    def training(self, cell: Cell | None = None, *, max_length: int | None = None) -> TrainingSetup:
        """How a cell, or another task, is trained.

        Args:
            cell: of the grid; one with LoRA or a strategy has the recipe's settings of it.
            max_length: longest example in tokens; None for the recipe's.
        """
        recipe = self.recipe
        lora = recipe.lora if cell is not None and cell.lora else None
        known = recipe.sft.saving_like(stored_dtype(Path(self.base.ref.path)))
        strategy = recipe.strategy(cell.strategy) if cell is not None and cell.strategy else None
        sft = replace(known, lora=lora, strategy=strategy, max_length=max_length or recipe.sft.max_length)
        return TrainingSetup(recipe=sft, options=recipe.tracking, accelerate=recipe.accelerate)

    @property
    def order(self) -> PairOptions:
        """In what order parameters are restored."""
        return self.recipe.parameters

    @property
    def levels(self) -> Sequence[str]:
        """Levels that are restored."""
        return levels_of(self.recipe)

    def pair(self, tuned: Path) -> LocalPair:
        """The base and a fine-tuned model with whole weights."""
        return LocalPair(base=self.base, tuned=tuned)

    def ref(self, folder: Path) -> ModelRef:
        """A model in the dtype that the run's models are asked in."""
        return ModelRef(path=str(folder), dtype=self.recipe.model.named_dtype)

    def asked(self, folder: Path) -> tuple[Any, Any]:
        """A model as the run's models are asked, and its tokenizer."""
        ref = self.ref(folder)
        return load_model(ref, device=self.recipe.model.device).eval(), load_tokenizer(ref)

    # ---- questions ------------------------------------------------------------------------------------------------

    @cached_property
    def harness(self) -> Harness:
        """Tasks and tokens, made once for all models."""
        return self._harness(self.recipe.evaluation.splits)

    @property
    def layer_split(self) -> Split:
        """The split that models with whole layers set back are scored on: in-domain test, as in the paper."""
        splits = self.recipe.evaluation.splits
        return "test" if "test" in splits else splits[0]

    def asking(self, splits: Sequence[Split]) -> Harness:
        """Tasks of those of the recipe's splits that have questions, made once."""
        filled = tuple(
            split
            for split in splits
            if split in self.recipe.evaluation.splits and any(self.dataset.count(split, bucket) for bucket in BUCKETS)
        )
        if filled not in self._harnesses:
            self._harnesses[filled] = self._harness(filled)
        return self._harnesses[filled]

    @cached_property
    def layer_harness(self) -> Harness:
        return self._harness((self.layer_split,))

    def _harness(self, splits: Sequence[Split]) -> Harness:
        model = self.recipe.model
        return Harness(
            self.dataset.folder,
            splits=splits,
            batch_size=model.batch_size,
            device=model.device,
            limit=self.recipe.evaluation.limit,
        )

    @property
    def divergence(self) -> DivergenceOptions:
        """Of the recipe's buckets those up to the highest that has test facts, once they are graded."""
        model, asked = self.recipe.model, self.recipe.divergence
        if not self._measured and self.grading.complete:
            filled = [bucket for bucket in BUCKETS if self.dataset.count("test", bucket)]
            below = tuple(bucket for bucket in asked.buckets if bucket <= max(filled, default=-1))
            self._measured = below or tuple(filled[-1:]) or asked.buckets
        buckets = self._measured or asked.buckets
        return replace(asked, buckets=buckets, batch_size=model.batch_size, device=model.device)

    @cached_property
    def base_view(self) -> BaseView:
        """What the base predicts, computed once for all fine-tuned models."""
        ref = replace(self.base.ref, dtype=self.divergence.dtype)
        return view_base(ref, rows_of(self.dataset, self.divergence), self.topics, self.divergence)

    @cached_property
    def base_logits(self) -> Tensor:
        """Those of the base at the statements of `base_view`, in the dtype that the run's models are asked in."""
        return next_logits(self.base_view, self.asked(Path(self.base.ref.path))[0])


def restored_name(cell: str, level: str) -> str:
    """What a run calls a restored model: ``b2-n240-s0@5pct``; the fine-tuned model itself at 0 %."""
    return cell if level == "0%" else f"{cell}@{level_name(level)}"
