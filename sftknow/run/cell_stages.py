"""The stages of one model of the grid: fine-tune, evaluate, diverge, analyse, restore. Each is done once and kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from sftknow.artifacts.divergence import write_divergence
from sftknow.artifacts.files import digest
from sftknow.artifacts.levels import level_name
from sftknow.artifacts.manifests import read_manifest
from sftknow.artifacts.scores import read_eval, write_eval
from sftknow.artifacts.stages import Stage
from sftknow.checkpoints.deltas import is_delta
from sftknow.divergence.analysis import measure_divergence
from sftknow.divergence.forward import load_for_logits
from sftknow.models.identity import weights_sha256
from sftknow.models.loading import load_model, load_tokenizer, named_dtype
from sftknow.models.references import restored_manifest
from sftknow.parameters.in_memory import ModelLevels
from sftknow.parameters.restore import restore_levels
from sftknow.parameters.tables import read_analysis, write_analysis
from sftknow.records import EvalRun, ModelRef, RestorePlan, Split
from sftknow.run.cells import Cell
from sftknow.run.stored_cells import store_small, whole
from sftknow.run.training import train_cell
from sftknow.run.workbench import Workbench


class CellStages:
    """The stages of one fine-tuned model.

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
    def training(self) -> Stage:
        bench = self.bench
        return bench.directory.stage(
            f"models/{self.name}",
            {
                "base": bench.base.sha256,
                "data": bench.dataset.fingerprint,
                "cell": asdict(self.cell),
                "sft": asdict(bench.sft(self.cell)),
            },
        )

    @property
    def complete(self) -> bool:
        """Whether the model is trained, measured and kept as the recipe wants it."""
        if not (self.training.complete and all(stage.complete for stage in self._measured)):
            return False
        return self.bench.recipe.grid.storage == "full" or is_delta(self.folder)

    def train_and_measure(self) -> None:
        """Do whatever of it is not done yet."""
        self.fine_tune()
        self.measure()
        if self.bench.recipe.grid.storage == "delta":
            store_small(self.bench.base, self.folder)

    def fine_tune(self) -> None:
        """Train the model (paper, 3.3)."""
        stage, bench = self.training, self.bench
        if stage.complete:
            return
        bench.say(f"fine-tuning {self.name}")
        # Whole weights that a kill left beside a model that is to be trained anew belong to the old one.
        shutil.rmtree(self.folder.with_name(f".{self.name}.whole"), ignore_errors=True)
        stage.start()
        trained = train_cell(
            bench.base,
            bench.dataset,
            self.cell,
            stage.folder,
            recipe=bench.sft(self.cell),
            loaded=None if bench.recipe.accelerate.launches else bench.loaded_base,
            options=bench.training_options,
            accelerate=bench.recipe.accelerate,
        )
        outputs = {"steps": trained.steps, "final_loss": trained.final_loss}
        stage.finish({**outputs, "weights": weights_sha256(stage.folder)})

    @property
    def weights(self) -> str:
        """What identifies the trained weights."""
        return str(self.training.outputs["weights"])

    @property
    def _measured(self) -> tuple[Stage, ...]:
        return evaluation_stage(self.bench, self.name, self.weights), self._divergence, self._changes

    def measure(self) -> None:
        """Score the model, compare its first token with the base's, rank its parameters."""
        if all(stage.complete for stage in self._measured):
            return
        with whole(self.bench.base, self.folder) as checkpoint:
            self._ask(checkpoint)
            self._analyse(checkpoint)

    def _ask(self, checkpoint: Path) -> None:
        """Score and diverge, with one load of the model for both where both want it in the same dtype."""
        bench = self.bench
        ref = ModelRef(path=str(checkpoint), dtype=bench.recipe.model.named_dtype)
        load = cache(partial(load_for_logits, ref, device=bench.recipe.model.device))
        same = ref.dtype is not None or named_dtype(ref) == "float32"
        evaluate(bench, self.name, checkpoint, self.weights, load=load if same else None)
        self._diverge(load)

    # ---- divergence -------------------------------------------------------------------------------------------

    @property
    def _divergence(self) -> Stage:
        bench = self.bench
        return bench.directory.stage(
            f"divergence/{self.name}",
            {
                "base": bench.base.sha256,
                "weights": self.weights,
                "dtype": bench.recipe.model.dtype,
                "data": bench.dataset.fingerprint,
                "divergence": bench.recipe.divergence.model_dump(),
            },
        )

    def _diverge(self, load: Callable[[], tuple[Any, Any]]) -> None:
        """How far the first predicted token moved from the base's (paper, 4.1)."""
        stage, bench = self._divergence, self.bench
        if stage.complete:
            return
        bench.say(f"token divergence of {self.name}")
        stage.start()
        section = bench.recipe.divergence
        result = measure_divergence(
            bench.base_view,
            *load(),
            k=section.k,
            prompt=section.tuned_prompt,
            bootstrap=section.bootstrap,
            seed=0,
        )
        write_divergence(stage.folder, result)
        stage.finish()

    # ---- parameters -------------------------------------------------------------------------------------------

    @property
    def _changes(self) -> Stage:
        bench = self.bench
        return bench.directory.stage(
            f"changes/{self.name}",
            {
                "base": bench.base.sha256,
                "weights": self.weights,
                "parameters": bench.recipe.parameters.model_dump(),
                "plan_format": 2,
            },
        )

    def _analyse(self, checkpoint: Path) -> None:
        """Which parameters changed, and how much (paper, 5.1)."""
        stage = self._changes
        if stage.complete:
            return
        self.bench.say(f"parameter changes of {self.name}")
        stage.start()
        write_analysis(stage.folder, self.bench.analyse(checkpoint))
        stage.finish()

    # ---- restoration ------------------------------------------------------------------------------------------

    def restore(self, levels: Sequence[str]) -> None:
        """Set the most changed parameters back, level by level, and score each level (paper, 5.2)."""
        bench = self.bench
        plan = read_analysis(bench.path / "changes" / self.name).plan
        written = {level: self._restoration(plan, level) for level in levels}
        scored = {
            level: evaluation_stage(bench, f"{self.name}@{level_name(level)}", self._key(plan, level))
            for level in levels
        }
        if all(stage.complete for stage in (*written.values(), *scored.values())):
            return
        with whole(bench.base, self.folder) as checkpoint:
            self._write(plan, {level: stage for level, stage in written.items() if not stage.complete}, checkpoint)
            self._score(plan, {level: stage for level, stage in scored.items() if not stage.complete}, checkpoint)

    def _key(self, plan: RestorePlan, level: str) -> str:
        return digest({"base": self.bench.base.sha256, "tuned": self.weights, "plan": plan, "level": level})

    def _restoration(self, plan: RestorePlan, level: str) -> Stage:
        return self.bench.directory.stage(
            f"restored/{self.name}/{level_name(level)}", {"weights": self._key(plan, level)}
        )

    def _write(self, plan: RestorePlan, stages: dict[str, Stage], tuned: Path) -> None:
        """All levels that are still to be written, in one pass over the pair."""
        if not stages:
            return
        base = self.bench.base
        self.bench.say(f"restoring {', '.join(stages)} of {self.name}")
        for stage in stages.values():
            stage.start()
        manifests = {level: restored_manifest(base, tuned, stage.folder) for level, stage in stages.items()}
        outputs = {level: stage.folder for level, stage in stages.items()}
        for level, restored in zip(
            outputs, restore_levels(Path(base.ref.path), tuned, plan, outputs, manifests=manifests), strict=True
        ):
            stages[level].finish({"restored": restored.restored})

    def _score(self, plan: RestorePlan, stages: dict[str, Stage], tuned: Path) -> None:
        """Load the model once and move it from level to level: what each checkpoint would give, without loading it."""
        if not stages:
            return
        bench = self.bench
        self.bench.say(f"evaluating {self.name} at {', '.join(stages)}")
        ref = ModelRef(path=str(tuned), dtype=bench.recipe.model.named_dtype)
        model, tokenizer = load_model(ref, device=bench.recipe.model.device), load_tokenizer(ref)
        moving = ModelLevels(model, Path(bench.base.ref.path), tuned, plan)
        for level, stage in stages.items():
            stage.start()
            moving.to(level)
            scores = bench.harness.score(
                model,
                tokenizer,
                name=f"{self.name}@{level_name(level)}",
                fact_ids=_training_facts(bench, tuned),
                work=stage.folder,
                key=self._key(plan, level),
            )
            write_eval(stage.folder, scores)
            stage.finish()


def _training_facts(bench: Workbench, checkpoint: Path) -> list[str] | None:
    """The model's own training facts, where they are asked; None for one that names none."""
    if "train" not in bench.recipe.evaluation.splits:
        return None
    manifest = read_manifest(checkpoint, "model") or {}
    return list(manifest.get("sft", {}).get("fact_ids", ())) or None


def evaluation_stage(bench: Workbench, name: str, weights: str, splits: Sequence[Split] | None = None) -> Stage:
    """The stage in which one model is scored, on all of the recipe's splits or on those given."""
    section = bench.recipe.evaluation
    return bench.directory.stage(
        f"evaluation/{name}",
        {
            "weights": weights,
            "dtype": bench.recipe.model.dtype,
            # In half precision the make-up of a batch can decide a near tie.
            "batch_size": bench.recipe.model.batch_size,
            "data": bench.dataset.fingerprint,
            "splits": section.splits if splits is None else splits,
            "limit": section.limit,
        },
    )


def evaluate(
    bench: Workbench,
    name: str,
    checkpoint: Path,
    weights: str,
    *,
    load: Callable[[], tuple[Any, Any]] | None = None,
) -> EvalRun:
    """Score one model on the cbqa_mastery tasks (paper, 3.3), or read the scores that are there.

    Args:
        bench: the run.
        name: what the run calls the model.
        checkpoint: its folder, with whole weights.
        weights: what identifies them.
        load: gives the model, loaded in the dtype that it is scored in, and its tokenizer; None loads it for this.
    """
    stage = evaluation_stage(bench, name, weights)
    if not stage.complete:
        bench.say(f"evaluating {name}")
        stage.start()
        if load is None:
            ref = ModelRef(path=str(checkpoint), dtype=bench.recipe.model.named_dtype)
            scores = bench.harness.score_path(ref, name=name, work=stage.folder, key=weights)
        else:
            facts = _training_facts(bench, checkpoint)
            scores = bench.harness.score(*load(), name=name, fact_ids=facts, work=stage.folder, key=weights)
        write_eval(stage.folder, scores)
        stage.finish()
    return replace(read_eval(stage.folder), questions=())
