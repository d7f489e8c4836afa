"""The steps of one model of the grid: train, evaluate, diverge, analyse; restore levels and whole layers."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from sftknow.artifacts.divergence import write_divergence
from sftknow.artifacts.files import digest
from sftknow.artifacts.levels import level_name
from sftknow.artifacts.manifests import read_manifest
from sftknow.artifacts.scores import write_eval
from sftknow.artifacts.stages import Stage
from sftknow.checkpoints.deltas import is_delta
from sftknow.divergence.forward import load_for_logits
from sftknow.evaluation.harness import Harness
from sftknow.models.identity import weights_sha256
from sftknow.models.loading import named_dtype
from sftknow.parameters.options import PairOptions
from sftknow.parameters.tables import read_analysis, write_analysis
from sftknow.prompts import CHAT
from sftknow.records import EvalRun, ModelRef, RestorePlan, Split
from sftknow.run.arena import CellArena, in_arena
from sftknow.run.cells import Cell
from sftknow.run.checkpoint_pairs import layer_ranges
from sftknow.run.controls import Controls, control_names
from sftknow.run.grading import topics_sha256
from sftknow.run.moving import MovedModel
from sftknow.run.steps import Step
from sftknow.run.stored_cells import store_small, whole
from sftknow.run.token_pairs import measure
from sftknow.run.training import FactDraw, train, training_cost
from sftknow.run.workbench import Workbench, restored_name

_ALL = "100%"


class TunedModel:
    """A fine-tuned model of a run while its steps need it: its whole weights, and itself in memory; a context manager.

    Both are made when they are first asked for.
    """

    def __init__(self, bench: Workbench, folder: Path) -> None:
        self.bench = bench
        self.folder = folder
        self._stack = ExitStack()

    def __enter__(self) -> TunedModel:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self.__dict__.pop("loaded", None)

    @cached_property
    def checkpoint(self) -> Path:
        """A folder with the whole weights."""
        return self._stack.enter_context(whole(self.bench.base, self.folder))

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """Model and tokenizer, in the dtype that divergence is measured in."""
        options = self.bench.divergence
        return load_for_logits(ModelRef(path=str(self.checkpoint), dtype=options.dtype), device=options.device)

    def score(self, asked: Asked, work: Path) -> EvalRun:
        """Its scores. One load serves this and divergence where both want the same dtype."""
        bench, ref = self.bench, self.bench.ref(self.checkpoint)
        if (ref.dtype or named_dtype(ref)) != bench.divergence.dtype:
            return bench.harness.score_path(ref, name=asked.name, work=work, key=asked.weights)
        return bench.harness.score(
            *self.loaded, name=asked.name, fact_ids=self.training_facts, work=work, key=asked.weights
        )

    def moved(self, harness: Harness) -> MovedModel:
        """The model in memory at levels of its restoration."""
        model = self.bench.recipe.model
        pair = self.bench.pair(self.checkpoint)
        return MovedModel(pair, harness, dtype=model.named_dtype, device=model.device, say=self.bench.say)

    @property
    def training_facts(self) -> list[str] | None:
        """The model's own training facts, where they are asked; None for one that names none."""
        if "train" not in self.bench.recipe.evaluation.splits:
            return None
        manifest = read_manifest(self.checkpoint, "model") or {}
        return list(manifest.get("sft", {}).get("fact_ids", ())) or None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A model that is scored."""

    name: str
    """What the run calls it: ``b2-n240-s0``, ``b2-n240-s0@5pct``."""
    weights: str
    """What identifies its weights."""


def evaluation_step(
    bench: Workbench,
    models: Mapping[str, Asked],
    score: Callable[[str, Path], EvalRun],
    title: str,
    splits: Sequence[Split] | None = None,
) -> Step:
    """Score models on the cbqa_mastery tasks (paper, 3.3).

    Args:
        bench: the run.
        models: which, by labels for the title.
        score: scores one: gets its label and a folder for partial work.
        title: see `Step`.
        splits: None for all of the recipe's.
    """
    recipe = bench.recipe
    stages = {
        label: bench.directory.stage(
            f"evaluation/{asked.name}",
            {
                "weights": asked.weights,
                "dtype": recipe.model.dtype,
                # In half precision the make-up of a batch can decide a near tie.
                "batch_size": recipe.model.batch_size,
                "data": bench.dataset.fingerprint,
                "splits": recipe.evaluation.splits if splits is None else splits,
                "limit": recipe.evaluation.limit,
            },
        )
        for label, asked in models.items()
    }

    def work(folders: Mapping[str, Path]) -> Iterator[None]:
        for label, folder in folders.items():
            write_eval(folder, score(label, folder))
            yield None

    return Step(stages=stages, title=title, work=work)


def model_evaluation(bench: Workbench, name: str, folder: Path, weights: str) -> Step:
    """Score the base, or a model that is only evaluated; as NAME-chat in its own chat template."""
    chat = name != "base" and name not in bench.recipe.grid.baselines
    weights = f"{weights}{CHAT}" if chat else weights
    return evaluation_step(
        bench,
        {name: Asked(name=name, weights=weights)},
        lambda _, work: bench.harness.score_path(bench.ref(folder), name=name, work=work, key=weights, chat=chat),
        f"evaluating {name}",
    )


class CellSteps:
    """The steps of one fine-tuned model.

    Args:
        bench: the run.
        cell: which model.
    """

    def __init__(self, bench: Workbench, cell: Cell) -> None:
        self.bench = bench
        self.cell = cell
        self.name = cell.name
        self.folder = bench.path / "models" / cell.name

    @property
    def weights(self) -> str:
        """What identifies the trained weights."""
        return str(self.training.outputs["weights"])

    @property
    def complete(self) -> bool:
        """Whether the model is trained, measured and kept as the recipe wants it."""
        if not (self.training.complete and all(step.complete for step in self._measuring(self._model))):
            return False
        return self.bench.recipe.grid.storage == "full" or is_delta(self.folder)

    def do(self) -> None:
        """Do whatever of it is not done yet, up to how it is stored."""
        self.training.do(self.bench.say)
        with self._model as model:
            for step in self._measuring(model):
                step.do(self.bench.say)
        if self.bench.recipe.grid.storage == "delta":
            store_small(self.bench.base, self.folder)

    @property
    def _model(self) -> TunedModel:
        return TunedModel(self.bench, self.folder)

    def _measuring(self, model: TunedModel) -> tuple[Step, ...]:
        divergence = () if self.bench.unmeasured else (self.divergence(model),)
        steps: tuple[Step, ...] = (self.evaluation(model), *divergence, self.changes(model))
        return (*steps, CellArena(self).step(model)) if in_arena(self.bench.recipe, self.cell) else steps

    # ---- train and measure ----------------------------------------------------------------------------------------

    @property
    def training(self) -> Step:
        """Train the model (paper, 3.3)."""
        bench = self.bench
        setup = bench.training(self.cell)

        def work(folder: Path) -> dict[str, Any]:
            # Whole weights that a kill left beside a model that is to be trained anew belong to the old one.
            shutil.rmtree(folder.with_name(f".{self.name}.whole"), ignore_errors=True)
            loaded = None if setup.accelerate.launches else bench.loaded_base
            draw = FactDraw(dataset=bench.dataset, cell=self.cell, topics=bench.recipe.facts.topics)
            with training_cost() as cost:
                trained = train(bench.base, draw, folder, setup, loaded=loaded)
            found = {"steps": trained.steps, "final_loss": trained.final_loss, "weights": weights_sha256(folder)}
            return {**found, **(cost if loaded is not None else {})}

        inputs = {
            "base": bench.base.sha256,
            "data": bench.dataset.fingerprint,
            "cell": self.cell.record(),
            "sft": setup.recipe.record(),
        }
        if setup.recipe.strategy is not None and setup.recipe.strategy.knows:
            inputs["topics"] = topics_sha256(bench.topics)
        return Step.of(bench.directory.stage(f"models/{self.name}", inputs), f"fine-tuning {self.name}", work)

    @property
    def cost(self) -> tuple[float, int]:
        """Seconds and bytes of the training; see `training_cost`. 0 where they were not noted."""
        outputs = self.training.outputs
        return float(outputs.get("seconds", 0.0)), int(outputs.get("peak_bytes", 0))

    def evaluation(self, model: TunedModel) -> Step:
        """Score the model (paper, 3.3)."""
        asked = Asked(name=self.name, weights=self.weights)
        return evaluation_step(
            self.bench, {"": asked}, lambda _, work: model.score(asked, work), f"evaluating {self.name}"
        )

    def divergence(self, model: TunedModel) -> Step:
        """How far the first predicted token moved from the base's (paper, 4.1)."""
        bench = self.bench
        inputs = {
            "base": bench.base.sha256,
            "weights": self.weights,
            "data": bench.dataset.fingerprint,
            "divergence": bench.divergence.settings(),
        }
        return Step.of(
            bench.directory.stage(f"divergence/{self.name}", inputs),
            f"token divergence of {self.name}",
            lambda folder: write_divergence(folder, measure(bench.base_view, *model.loaded, bench.divergence)),
        )

    def changes(self, model: TunedModel) -> Step:
        """Which parameters changed, and how much (paper, 5.1)."""
        bench, parameters = self.bench, self.bench.recipe.parameters
        inputs = {
            "base": bench.base.sha256,
            "weights": self.weights,
            "parameters": parameters.settings(),
            "plan_format": 2,
        }

        def work(folder: Path) -> None:
            write_analysis(folder, bench.pair(model.checkpoint).analyse(parameters.levels, bench.order))

        return Step.of(bench.directory.stage(f"changes/{self.name}", inputs), f"parameter changes of {self.name}", work)

    # ---- restoration ----------------------------------------------------------------------------------------------

    def restore(self) -> None:
        """Set the most changed parameters back, level by level, and score each level (paper, 5.2)."""
        with self._model as model:
            for step in self.restoring(model):
                step.do(self.bench.say)

    def restoring(self, model: TunedModel) -> tuple[Step, Step]:
        """Write all levels, in one pass over the pair; score all levels, with the model in memory."""
        bench, name, plan, stages = self.bench, self.name, self._plan, self.restored

        def write(folders: Mapping[str, Path]) -> Iterator[dict[str, int]]:
            for restored in bench.pair(model.checkpoint).restore(plan, folders, bench.order, say=bench.say):
                yield {"restored": restored.restored}

        asked = {
            level: Asked(name=restored_name(name, level), weights=stage.inputs["weights"])
            for level, stage in stages.items()
        }
        moved = cache(lambda: model.moved(bench.harness))

        def score(level: str, work: Path) -> EvalRun:
            return moved().score(
                plan,
                level,
                name=asked[level].name,
                work=work,
                key=asked[level].weights,
                fact_ids=model.training_facts,
            )

        return (
            Step(stages=stages, title=f"restoring {{left}} of {name}", work=write, one_pass=True),
            evaluation_step(bench, asked, score, f"evaluating {name} at {{left}}"),
        )

    @property
    def restored(self) -> dict[str, Stage]:
        """Where each level is written. There is a plan for them only once the changes are analysed."""
        made_of = {"base": self.bench.base.sha256, "tuned": self.weights, "plan": self._plan}
        return {
            level: self.bench.directory.stage(
                f"restored/{self.name}/{level_name(level)}", {"weights": digest({**made_of, "level": level})}
            )
            for level in self.bench.levels
        }

    @cached_property
    def _plan(self) -> RestorePlan:
        return read_analysis(self.bench.path / "changes" / self.name).plan

    def score_controls(self, level: str, draws: int) -> None:
        """Score what the level is compared with (`sftknow.run.controls`); nothing but the scores stays on disk.

        Args:
            level: of the plan, chosen for this model.
            draws: of each control that is random.

        Raises:
            CheckpointError: the model cannot be moved in memory.
        """
        bench = self.bench
        with self._model as model:
            controls = Controls(lambda: bench.pair(model.checkpoint), self._plan, level, bench.order)
            made = {name: (kind, draw) for name, kind, draw in control_names(level, draws)}
            weights = {name: controls.weights(kind, draw, tuned=self.weights) for name, (kind, draw) in made.items()}
            asked = {name: Asked(name=f"{self.name}@{name}", weights=weights[name]) for name in made}
            moved = cache(lambda: model.moved(bench.layer_harness))

            def score(name: str, work: Path) -> EvalRun:
                move = controls.move(*made[name])
                return moved().score_after(move, name=asked[name].name, work=work, key=asked[name].weights)

            title = f"evaluating {self.name} with {len(asked)} controls of {level}"
            evaluation_step(bench, asked, score, title, splits=[bench.layer_split]).do(bench.say)

    def restore_layers(self, each: int) -> None:
        """Set each range of ``each`` layers back to the base as a whole, and score it (paper, E.2 and Table 11).

        The model is scored on the in-domain test split, as in the paper; nothing but the scores stays on disk.

        Raises:
            CheckpointError: the model cannot be moved between levels in memory; see `ModelLevels`.
        """
        bench, region = self.bench, self.bench.recipe.parameters.region
        asked = {
            layers: Asked(
                name=f"{self.name}@layers-{layers}",
                weights=digest({"base": bench.base.sha256, "tuned": self.weights, "region": region, "layers": layers}),
            )
            for layers in layer_ranges(str(each), bench.base.ref.path)
        }
        with self._model as model:
            moved = cache(lambda: model.moved(bench.layer_harness))

            def score(layers: str, work: Path) -> EvalRun:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # a range in which nothing changed is a result, too
                    order = PairOptions(region=region, layers=layers, ignore=bench.order.ignore)
                    plan = bench.pair(model.checkpoint).analyse((_ALL,), order).plan
                return moved().score(plan, _ALL, name=asked[layers].name, work=work, key=asked[layers].weights)

            title = f"restoring layers {{left}} of {self.name}, each alone"
            evaluation_step(bench, asked, score, title, splits=[bench.layer_split]).do(bench.say)
