"""General ability (the paper's Table 5): fine-tune on a task's own train split, restore, score on its test split."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sftknow.artifacts.files import write_json
from sftknow.artifacts.general_scores import GeneralScores, read_general, scores_json, write_general
from sftknow.artifacts.levels import level_name
from sftknow.artifacts.stages import RunDirectory, Stage
from sftknow.errors import GeneralTaskError
from sftknow.evaluation.general.runner import GeneralHarness
from sftknow.evaluation.general.tasks import TASKS, find_task
from sftknow.evaluation.general.xsum import ARTICLE_WORDS
from sftknow.models.loading import load_model, load_tokenizer
from sftknow.models.references import base_reference, restored_manifest
from sftknow.models.resolving import BaseModel, local_model
from sftknow.parameters.change import analyse
from sftknow.parameters.restore import restore
from sftknow.parameters.tables import read_analysis, write_analysis
from sftknow.recipes.schema import AccelerateSection
from sftknow.records import ModelRef, TrainedModel
from sftknow.run.launching import train_launched
from sftknow.training.preview import preview
from sftknow.training.recipe import SFTRecipe
from sftknow.training.task_examples import encode_rows
from sftknow.training.train import TrainingOptions, TrainingSet, fine_tune_on

RESULTS = "general_ability.json"
MAX_LENGTH = 2048
"""Longest training example in tokens where the recipe's own default, made for questions, would leave nearly all out."""


@dataclass(frozen=True, kw_only=True)
class GeneralOptions:
    """How a task is asked, and where the model runs."""

    few_shot: int | None = None
    """Examples before each question; None for what lm-eval's task has."""
    limit: int | None = None
    article_words: int = ARTICLE_WORDS
    batch_size: int = 16
    device: str = "auto"
    dtype: str | None = None
    """To load in; None for what the model's config names."""


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
        article_words=options.article_words,
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
    ref: ModelRef,
    names: Sequence[str],
    *,
    data: Mapping[str, Path],
    out: Path | None = None,
    options: GeneralOptions | None = None,
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
    options = options or GeneralOptions()
    check_tasks(names, data)
    harnesses = [open_task(name, data, options) for name in names]
    local = replace(local_model(ref), dtype=options.dtype)
    model, tokenizer = load_model(local, device=options.device), load_tokenizer(local)
    scores = []
    for harness in harnesses:
        scores.append(harness.score(model, tokenizer, name=str(ref)))
        if out is not None:
            write_general(out, scores[-1])
    return scores


def train_on_task(
    base: BaseModel,
    harness: GeneralHarness,
    out: Path,
    *,
    size: int | None,
    seed: int,
    recipe: SFTRecipe,
    options: TrainingOptions | None = None,
    accelerate: AccelerateSection | None = None,
) -> TrainedModel:
    """Fine-tune a base on rows of a task's own train split, shown as the task shows them without examples.

    Args:
        base: the model to start from.
        harness: the task with its data.
        out: folder of the checkpoint.
        size: rows, drawn with the seed; None for all.
        seed: of the draw and of training.
        recipe: how to train.
        options: what goes on beside the training.
        accelerate: where it asks for processes of its own, they train.

    Raises:
        GeneralTaskError: the data have no usable train split.
        RecipeError: fewer rows than asked for, or too few that are short enough.
        ModelError: the base cannot be trained.
    """
    if accelerate is not None and accelerate.launches:
        asked = (harness.task.name, harness.data, harness.article_words, size, seed)
        return train_launched(
            _train_on_reopened, base, *asked, out=out, recipe=recipe, section=accelerate, options=options
        )
    task = {"name": harness.task.name, "data": harness.source, "article_words": harness.article_words}
    return fine_tune_on(
        ModelRef(path=base.ref.path),
        _row_encoder(harness, size=size, seed=seed, recipe=recipe),
        out,
        recipe=recipe,
        seed=seed,
        manifest={"base": base_reference(base), "task": task},
        options=options,
    )


def _train_on_reopened(
    base: BaseModel,
    name: str,
    data: Path | None,
    article_words: int,
    size: int | None,
    seed: int,
    out: Path,
    *,
    recipe: SFTRecipe,
    options: TrainingOptions,
) -> TrainedModel:
    """`train_on_task` in a process that has to open the task for itself."""
    harness = GeneralHarness(find_task(name), data, few_shot=0, article_words=article_words)
    return train_on_task(base, harness, out, size=size, seed=seed, recipe=recipe, options=options)


def show_task(base: BaseModel, harness: GeneralHarness, *, size: int | None, seed: int, recipe: SFTRecipe) -> str:
    """The first batch of `train_on_task` as text with the loss mask; nothing is trained and no weights are read."""
    return preview(
        ModelRef(path=base.ref.path), _row_encoder(harness, size=size, seed=seed, recipe=recipe), recipe.batch_size
    )


def _row_encoder(
    harness: GeneralHarness, *, size: int | None, seed: int, recipe: SFTRecipe
) -> Callable[[Any, int | None], TrainingSet]:
    def encoded(tokenizer: Any, positions: int | None) -> TrainingSet:
        return encode_rows(
            tokenizer,
            harness.training_rows(seed=seed),
            size=size,
            answer_only_loss=recipe.answer_only_loss,
            max_length=recipe.max_length,
            positions=positions,
        )

    return encoded


def general_ability(
    base: BaseModel,
    names: Sequence[str],
    out: Path,
    *,
    data: Mapping[str, Path],
    size: int | None,
    seed: int,
    recipe: SFTRecipe,
    levels: Sequence[str],
    options: GeneralOptions | None = None,
    keep: bool = False,
    say: Callable[[str], None] = print,
) -> Path:
    """The paper's Table 5 for one base model: for each task fine-tune, restore each share, score all of them.

    Questions are asked without examples, as in training, unless the options say otherwise. What is finished is
    skipped in a second call; what changed is redone.

    Args:
        base: the model to start from.
        names: of the tasks.
        out: a run directory: ``<task>/tuned``, ``<task>/changes``, ``<task>/scores/<level>``, and `RESULTS`.
        data: folder of each task's data; a task that is not there is taken from the Hub.
        size: training rows; None for all.
        seed: of the draw and of training.
        recipe: how to train.
        levels: shares to restore, such as ``5%``.
        options: how it is asked.
        keep: leave the restored checkpoints in ``<task>/restored``; otherwise each is deleted once scored.
        say: gets one line for each stage that begins.

    Returns:
        The path of ``general_ability.json``.

    Raises:
        GeneralTaskError: an unknown task or data that cannot be used.
        RecipeError: fewer rows than asked for.
        RunError: another process works in the folder.
    """
    options = options or GeneralOptions()
    options = replace(options, few_shot=options.few_shot or 0)
    check_tasks(names, data)
    harnesses = [open_task(name, data, options) for name in names]
    with RunDirectory(out) as directory:
        tables = {
            harness.task.name: _table(
                base, harness, directory, size, seed, recipe, levels, options=options, keep=keep, say=say
            )
            for harness in harnesses
        }
        path = out / RESULTS
        write_json(
            path,
            {
                "sftknow": 1,
                "kind": "general-ability",
                "base": {"path": base.name, "sha256": base.sha256},
                "tasks": tables,
            },
        )
    return path


def _table(
    base: BaseModel,
    harness: GeneralHarness,
    directory: RunDirectory,
    size: int | None,
    seed: int,
    recipe: SFTRecipe,
    levels: Sequence[str],
    *,
    options: GeneralOptions,
    keep: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """One task's columns of Table 5, with everything that they depend on."""
    task = harness.task.name
    asked = {
        "data": harness.data_sha256,
        "few_shot": harness.few_shot,
        "limit": options.limit,
        "article_words": options.article_words,
        "dtype": options.dtype,
    }
    training = {
        "base": base.sha256,
        "task": task,
        "train": harness.train_sha256(),
        "article_words": options.article_words,
        "size": size,
        "seed": seed,
        "sft": asdict(recipe),
    }
    tuned = directory.stage(f"{task}/tuned", training)
    if not tuned.complete:
        say(f"{task}: fine-tuning")
        tuned.start()
        trained = train_on_task(base, harness, tuned.folder, size=size, seed=seed, recipe=recipe)
        tuned.finish({"steps": trained.steps, "final_loss": trained.final_loss})
    changes = directory.stage(f"{task}/changes", {"tuned": tuned.key, "levels": list(levels)})
    if levels and not changes.complete:
        say(f"{task}: parameter changes")
        changes.start()
        write_analysis(changes.folder, analyse(Path(base.ref.path), tuned.folder, levels))
        changes.finish()
    rows = []
    for level in ("base", "0%", *levels):
        place = directory.stage(
            f"{task}/scores/{level_name(level)}", {"tuned": tuned.key, "level": level, "asked": asked}
        )
        if not place.complete:
            say(f"{task}: scoring {_title(level)}")
            place.start()
            restored = _score_level(base, harness, directory, tuned, changes.folder, level, place, options, keep)
            place.finish({"restored": restored})
        scores = read_general(place.folder / f"{task}.json")
        rows.append({"level": level, "restored": place.outputs["restored"], "metrics": scores_json(scores)["metrics"]})
    return {
        "headline": next(iter(harness.task.metrics)),
        "data": harness.source,
        "data_sha256": harness.data_sha256,
        "few_shot": harness.few_shot,
        "limit": options.limit,
        "trained_on": size if size is not None else "all",
        "seed": seed,
        "recipe": asdict(recipe),
        "rows": rows,
    }


def _score_level(
    base: BaseModel,
    harness: GeneralHarness,
    directory: RunDirectory,
    tuned: Stage,
    changes: Path,
    level: str,
    place: Stage,
    options: GeneralOptions,
    keep: bool,
) -> int:
    """Score the base, the fine-tuned model, or one restored from it; return how many elements were set back."""
    folder, restored, made = tuned.folder, 0, False
    if level == "base":
        folder = Path(base.ref.path)
    elif level != "0%":
        made = True
        folder = directory.path / harness.task.name / "restored" / level_name(level)
        manifest = restored_manifest(base, tuned.folder, folder)
        plan = read_analysis(changes).plan
        restored = restore(Path(base.ref.path), tuned.folder, plan, level, folder, manifest=manifest).restored
    ref = ModelRef(path=str(folder), dtype=options.dtype)
    model, tokenizer = load_model(ref, device=options.device), load_tokenizer(ref)
    write_general(place.folder, harness.score(model, tokenizer, name=_title(level)))
    if made and not keep:
        shutil.rmtree(folder)
    return restored


def _title(level: str) -> str:
    return {"base": "the base", "0%": "the fine-tuned model"}.get(level, f"{level} restored")
