"""General ability (the paper's Table 5): fine-tune on a task's own train split, restore, score on its test split."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sftknow.artifacts.files import write_json
from sftknow.artifacts.general_scores import GeneralScores, read_general, scores_json, write_general
from sftknow.artifacts.levels import level_name
from sftknow.artifacts.stages import RunDirectory
from sftknow.errors import GeneralTaskError
from sftknow.evaluation.general.runner import GeneralHarness
from sftknow.evaluation.general.tasks import TASKS, find_task
from sftknow.evaluation.options import AbilityOptions, GeneralOptions
from sftknow.models.loading import load_model, load_tokenizer
from sftknow.models.references import base_reference
from sftknow.models.resolving import BaseModel, local_model
from sftknow.parameters.options import PairOptions
from sftknow.parameters.tables import read_analysis, write_analysis
from sftknow.records import ModelRef
from sftknow.run.checkpoint_pairs import LocalPair, order_inputs
from sftknow.run.steps import Step
from sftknow.run.training import Encoder, TrainingSetup, train
from sftknow.training.recipe import SFTRecipe
from sftknow.training.task_examples import encode_rows
from sftknow.training.train import TrainingSet

ABILITY = "ability"
"""Folder of the other tasks in a run directory; a run directory of its own."""
RESULTS = "general_ability.json"
_TITLES = {"base": "the base", "0%": "the fine-tuned model"}


@dataclass(frozen=True, kw_only=True)
class Ability:
    """What Table 5 is made of, for one base model."""

    tasks: Sequence[str]
    """Of ``xsum`` and ``gsm8k``."""
    data: Mapping[str, Path]
    """Folder of each task's data; a task that is not there is taken from the Hub."""
    size: int | None
    """Training rows; None for all."""
    seed: int = 0
    """Of the draw and of training."""
    levels: Sequence[str]
    """Shares to restore, such as ``5%``."""
    training: TrainingSetup
    order: PairOptions = field(default_factory=PairOptions)
    """In what order parameters are restored."""
    asked: GeneralOptions = field(default_factory=GeneralOptions)
    keep: bool = False
    """Leave the restored checkpoints in ``<task>/restored``; otherwise each is deleted once scored."""

    @classmethod
    def of(cls, options: AbilityOptions, *, training: TrainingSetup, levels: Sequence[str], **more: Any) -> Ability:
        """What a recipe's ``general`` section or `sftknow ability` asks for."""
        return cls(
            tasks=options.tasks,
            data={name: Path(folder).expanduser() for name, folder in options.data.items()},
            size=None if options.size == "all" else options.size,
            seed=options.seed,
            levels=options.levels or levels,
            training=training,
            asked=options,
            **more,
        )


@dataclass(frozen=True, kw_only=True)
class TaskRows:
    """Rows of a task's own train split, shown as the task shows them without examples; see `Material`."""

    harness: GeneralHarness
    """The task with its data."""
    size: int | None
    """Rows, drawn with the seed; None for all."""
    seed: int

    def encoder(self, recipe: SFTRecipe) -> Encoder:
        """It raises GeneralTaskError without a usable train split, RecipeError for fewer rows than asked for."""

        def encoded(tokenizer: Any, positions: int | None) -> TrainingSet:
            return encode_rows(
                tokenizer,
                self.harness.training_rows(seed=self.seed),
                size=self.size,
                answer_only_loss=recipe.answer_only_loss,
                max_length=recipe.max_length,
                positions=positions,
            )

        return encoded

    def origin(self, out: Path) -> dict[str, Any]:
        task = self.harness
        return {"task": {"name": task.task.name, "data": task.source, "article_words": task.article_words}}

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the task for itself."""
        task = self.harness
        return _reopened, (task.task.name, task.data, task.article_words, self.size, self.seed)


def _reopened(name: str, data: Path | None, article_words: int, size: int | None, seed: int) -> TaskRows:
    harness = GeneralHarness(find_task(name), data, few_shot=0, article_words=article_words)
    return TaskRows(harness=harness, size=size, seed=seed)


def open_task(name: str, data: Mapping[str, Path], options: GeneralOptions) -> GeneralHarness:
    """One task with its data: the folder given for it, else the Hub's.

    Raises:
        GeneralTaskError: there is no such task, or its data cannot be used.
        HubError: the Hub refused or could not be reached.
    """
    return GeneralHarness(
        find_task(name),
        data.get(name),
        few_shot=options.few_shot,
        limit=options.limit,
        batch_size=options.batch_size,
        article_words=options.shown_words,
    )


def check_tasks(names: Sequence[str], data: Iterable[str]) -> None:
    """Raise GeneralTaskError for an unknown task, and for data of a task that was not asked for."""
    for name in names:
        find_task(name)
    for name in data:
        if name not in names:
            known = f"--tasks asks for {', '.join(names)}" if name in TASKS else f"there are {', '.join(TASKS)}"
            raise GeneralTaskError(f"--data {name}=…: {known}")


def score_general(
    ref: ModelRef, names: Sequence[str], *, data: Mapping[str, Path], out: Path | None, options: GeneralOptions
) -> list[GeneralScores]:
    """Score one model, loaded once, on general-ability tasks.

    Args:
        ref: the model.
        names: of the tasks, ``xsum`` and ``gsm8k``.
        data: folder of each task's data; a task that is not there is taken from the Hub.
        out: each task's scores and answers are written there as soon as the task is done.
        options: how it is asked.

    Raises:
        GeneralTaskError: an unknown task or data that cannot be used, before the model is loaded.
        HubError: the Hub refused or could not be reached.
        ModelError: there is no such model, or its context is too short.
    """
    check_tasks(names, data)
    harnesses = [open_task(name, data, options) for name in names]
    return _scores(local_model(ref), harnesses, str(ref), out, options)


def _scores(
    ref: ModelRef, harnesses: Iterable[GeneralHarness], name: str, out: Path | None, options: GeneralOptions
) -> list[GeneralScores]:
    ref = replace(ref, dtype=options.dtype)
    model, tokenizer = load_model(ref, device=options.device), load_tokenizer(ref)
    scores = []
    for harness in harnesses:
        scores.append(harness.score(model, tokenizer, name=name))
        if out is not None:
            write_general(out, scores[-1])
    return scores


def general_ability(base: BaseModel, ability: Ability, out: Path, say: Callable[[str], None] = print) -> Path:
    """The paper's Table 5 for one base model: for each task fine-tune, restore each share, score all of them.

    Questions are asked without examples, as in training, unless the options say otherwise. What is finished is
    skipped by the next call.

    Args:
        base: the model to start from.
        ability: which tasks, and how.
        out: a run directory: ``<task>/tuned``, ``<task>/changes``, ``<task>/scores/<level>``, and `RESULTS`.
        say: gets one line for each step that begins.

    Returns:
        The path of ``general_ability.json``.

    Raises:
        GeneralTaskError: an unknown task or data that cannot be used.
        RecipeError: fewer rows than asked for.
        RunError: another process works in the folder.
    """
    check_tasks(ability.tasks, ability.data)
    ability = replace(ability, asked=replace(ability.asked, few_shot=ability.asked.few_shot or 0))
    harnesses = [open_task(name, ability.data, ability.asked) for name in ability.tasks]
    with RunDirectory(out) as directory:
        tables = {one.task.name: _TaskSteps(base, ability, one, directory, say).table() for one in harnesses}
        path = out / RESULTS
        write_json(path, {"sftknow": 1, "kind": "general-ability", "base": base_reference(base), "tasks": tables})
    return path


class _TaskSteps:
    """The steps of one task's columns of Table 5: train, analyse, and score the base, the model and each level."""

    def __init__(
        self,
        base: BaseModel,
        ability: Ability,
        harness: GeneralHarness,
        directory: RunDirectory,
        say: Callable[[str], None],
    ) -> None:
        self.base, self.ability, self.harness, self.directory, self.say = base, ability, harness, directory, say
        self.task = harness.task.name
        self.pair = LocalPair(base=base, tuned=directory.path / self.task / "tuned")

    @property
    def training(self) -> Step:
        ability, harness = self.ability, self.harness
        inputs = {
            "base": self.base.sha256,
            "task": self.task,
            "train": harness.train_sha256(),
            "article_words": ability.asked.shown_words,
            "size": ability.size,
            "seed": ability.seed,
            "sft": ability.training.recipe.record(),
        }

        def work(folder: Path) -> dict[str, Any]:
            rows = TaskRows(harness=harness, size=ability.size, seed=ability.seed)
            trained = train(self.base, rows, folder, ability.training)
            return {"steps": trained.steps, "final_loss": trained.final_loss}

        return Step.of(self.directory.stage(f"{self.task}/tuned", inputs), f"{self.task}: fine-tuning", work)

    def analysis(self, tuned: str) -> Step:
        """Args: tuned: the training's key."""
        inputs = {"tuned": tuned, "levels": list(self.ability.levels), **order_inputs(self.ability.order)}
        return Step.of(
            self.directory.stage(f"{self.task}/changes", inputs),
            f"{self.task}: parameter changes",
            lambda folder: write_analysis(folder, self.pair.analyse(self.ability.levels, self.ability.order)),
        )

    def scores(self, tuned: str, level: str) -> Step:
        """Args: tuned: the training's key; level: a share, ``0%`` for the fine-tuned model, or ``base``."""
        asked, harness = self.ability.asked, self.harness
        inputs = {
            "tuned": tuned,
            "level": level,
            "asked": {
                "data": harness.data_sha256,
                "few_shot": harness.few_shot,
                "limit": asked.limit,
                "article_words": asked.shown_words,
                "dtype": asked.dtype,
            },
            **(order_inputs(self.ability.order) if level not in _TITLES else {}),
        }
        title = _TITLES.get(level, f"{level} restored")
        return Step.of(
            self.directory.stage(f"{self.task}/scores/{level_name(level)}", inputs),
            f"{self.task}: scoring {title}",
            lambda folder: {"restored": self._score(level, title, folder)},
        )

    def _score(self, level: str, title: str, out: Path) -> int:
        """Score one model; return how many of its elements were set back."""
        if level in _TITLES:
            folder, restored = self.pair.base_folder if level == "base" else self.pair.tuned, 0
        else:
            folder = self.directory.path / self.task / "restored" / level_name(level)
            plan = read_analysis(self.directory.path / self.task / "changes").plan
            restored = self.pair.restore(plan, {level: folder}, self.ability.order, say=self.say)[0].restored
        _scores(ModelRef(path=str(folder)), [self.harness], title, out, self.ability.asked)
        if level not in _TITLES and not self.ability.keep:
            shutil.rmtree(folder)
        return restored

    def table(self) -> dict[str, Any]:
        """Do what is not done, and put the numbers together with everything that they depend on."""
        ability, harness = self.ability, self.harness
        training = self.training
        training.do(self.say)
        if ability.levels:
            self.analysis(training.key).do(self.say)
        rows = []
        for level in ("base", "0%", *ability.levels):
            step = self.scores(training.key, level)
            step.do(self.say)
            metrics = scores_json(read_general(step.folder / f"{self.task}.json"))["metrics"]
            rows.append({"level": level, "restored": step.outputs["restored"], "metrics": metrics})
        return {
            "headline": next(iter(harness.task.metrics)),
            "data": harness.source,
            "data_sha256": harness.data_sha256,
            "few_shot": harness.few_shot,
            "limit": ability.asked.limit,
            "trained_on": ability.size if ability.size is not None else "all",
            "seed": ability.seed,
            "recipe": ability.training.recipe.record(),
            "rows": rows,
        }
