"""`sftknow sft`: fine-tune one model on one bucket."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftknow import processes
from sftknow.cli.effects import no_effect
from sftknow.cli.general_tasks import add_data, data_folders
from sftknow.cli.options import (
    Commands,
    add_mastery,
    add_options,
    add_settings,
    command,
    options_of,
    resolve_dataset,
    say,
)
from sftknow.errors import RecipeError
from sftknow.evaluation.options import AbilityOptions, GeneralOptions
from sftknow.recipes.schema import FactsSection
from sftknow.records import ModelRef, TrainedModel
from sftknow.training.recipe import STRATEGIES, AccelerateOptions, LoraSettings, SFTRecipe, Strategy, TrainingOptions

if TYPE_CHECKING:
    from sftknow.run.training import Material, TrainingSetup

_STRATEGY = "strategy."
"""Begins the settings of the strategy that ``--strategy`` names."""


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = command(
        commands,
        "sft",
        "fine-tune a model on facts of one mastery bucket, or on another task's own training data",
        "sftknow sft --model org/base --mastery graded --bucket 2 --size 240 --seed 0 --out tuned\n"
        "  sftknow sft --model lab --mastery runs/lab/mastery/dataset --bucket 2 --size 240 --out tuned "
        "--set learning_rate=3e-4\n"
        "  sftknow sft --model org/base --mastery graded --bucket 2 --size 240 --out tuned --processes 8 "
        "--accelerate fsdp-8b\n"
        "  sftknow sft --model lab --mastery runs/lab/mastery/dataset --bucket 2 --size 240 --out tuned "
        "--strategy l2-sp --set strategy.strength=0.01\n"
        "  sftknow sft --model org/base --task gsm8k --data gsm8k=path/to/gsm8k --size 1920 --out tuned",
    )
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="the base: a folder, org/name[@revision], `lab`"
    )
    add_mastery(parser)
    parser.add_argument("--bucket", metavar="N", help="0 to 4, or mixed: drawn over all buckets")
    parser.add_argument(
        "--task", metavar="NAME", help="xsum or gsm8k, in place of --mastery and --bucket (the paper's Table 5)"
    )
    add_data(parser)
    parser.add_argument("--size", required=True, metavar="N", help="number of training facts or rows, or `all`")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draw and of training (default: 0)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the fine-tuned checkpoint")
    parser.add_argument("--lora", action="store_true", help="train low-rank adapters and merge them in")
    parser.add_argument(
        "--strategy",
        choices=STRATEGIES,
        metavar="NAME",
        help="a way to fine-tune that changes less of what was known (docs/strategies.md), its options by --set "
        "strategy.KEY=VALUE; there are %(choices)s",
    )
    parser.add_argument(
        "--show-batch",
        action="store_true",
        help="print the first batch as text, in [[brackets]] what counts in the loss, and train nothing",
    )
    add_options(parser, TrainingOptions, "save_steps", "report_to")
    add_options(parser, AccelerateOptions, "processes", accelerate="config")
    add_settings(parser)
    no_effect(parser, "--mastery", "--bucket", beside=("--task",))
    no_effect(parser, "--data", "--article-words", needs=("--task",))
    no_effect(parser, "--article-words", beside=("--task=gsm8k",))
    add_options(parser, FactsSection, "topics", otherwise="the paper's")
    no_effect(parser, "--lora", beside=("--strategy",))
    no_effect(parser, "--topics", needs=("--strategy",), beside=("--task",))
    no_effect(
        parser,
        *("--out", "--lora", "--strategy", "--topics", "--save-steps", "--report-to", "--processes", "--accelerate"),
        beside=("--show-batch",),
    )
    parser.set_defaults(run=run, goes_on=lambda given: "--save-steps" in given)


def run(arguments: argparse.Namespace) -> None:
    """Fine-tune and say where the checkpoint is; or show the first batch."""
    _check(arguments)
    tracking, accelerate = options_of(TrainingOptions, arguments), options_of(AccelerateOptions, arguments)
    note_lone_process()
    if processes.count() > 1:
        if accelerate != AccelerateOptions():
            raise RecipeError("--processes and --accelerate start a launcher, and one has started this: leave them out")
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    train = train_task if arguments.task else train_facts
    trained = train(arguments, tracking, accelerate)
    if trained is not None and processes.is_main():
        print(f"{trained.steps} steps, final loss {trained.final_loss:.3f}; fine-tuned model: {trained.checkpoint}")


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what does not go together, before anything is read."""
    if not (arguments.out or arguments.show_batch):
        raise RecipeError("give --out DIR, the folder of the fine-tuned checkpoint (or --show-batch to train nothing)")
    if not arguments.task and not (arguments.mastery and arguments.bucket):
        raise RecipeError(
            "give --mastery DATA and --bucket N to train on graded facts, or --task NAME for another task"
        )


def train_facts(
    arguments: argparse.Namespace, tracking: TrainingOptions, accelerate: AccelerateOptions
) -> TrainedModel | None:
    """Fine-tune on facts of a bucket; None where the batch was only shown."""
    from sftknow.artifacts.mastery_data import MasteryData
    from sftknow.run.cells import Cell
    from sftknow.run.training import FactDraw, TrainingSetup

    cell = Cell(bucket=parse_bucket(arguments.bucket), size=parse_size(arguments.size), seed=arguments.seed)
    recipe = training_recipe(arguments.settings, lora=arguments.lora, strategy=arguments.strategy)
    setup = TrainingSetup(recipe=recipe, options=tracking, accelerate=accelerate)
    setup.check()
    dataset = MasteryData(resolve_dataset(arguments.mastery))
    topics: str | None = getattr(arguments, "topics", None)
    if topics is not None and not (recipe.strategy and recipe.strategy.knows):
        raise RecipeError(f"--topics does nothing here: {arguments.strategy} uses no statements; leave it out")
    return _train(arguments, FactDraw(dataset=dataset, cell=cell, topics=topics), setup)


def train_task(
    arguments: argparse.Namespace, tracking: TrainingOptions, accelerate: AccelerateOptions
) -> TrainedModel | None:
    """Fine-tune on a task's own train split; None where the batch was only shown."""
    from sftknow.run.general_ability import TaskRows, open_task
    from sftknow.run.training import TrainingSetup

    size = parse_size(arguments.size)
    data = data_folders(arguments.data, [arguments.task])
    recipe = training_recipe(
        arguments.settings, lora=arguments.lora, strategy=arguments.strategy, max_length=AbilityOptions.max_length
    )
    setup = TrainingSetup(recipe=recipe, options=tracking, accelerate=accelerate)
    setup.check()
    harness = open_task(arguments.task, data, options_of(GeneralOptions, arguments, few_shot=0))
    return _train(arguments, TaskRows(harness=harness, size=size, seed=arguments.seed), setup)


def _train(arguments: argparse.Namespace, material: Material, setup: TrainingSetup) -> TrainedModel | None:
    from sftknow.models.resolving import resolve_base
    from sftknow.run.token_pairs import graded_by_another
    from sftknow.run.training import FactDraw, show, train

    model = ModelRef.parse(arguments.model)
    base = resolve_base(model.path, model.revision, None)
    if isinstance(material, FactDraw) and graded_by_another(material.dataset, base):
        say(
            f"note: {material.dataset.folder} was graded by {material.dataset.graded_by}, not by {base.name}: its "
            f"buckets tell what that model knows; sftknow grade {arguments.model} … grades the facts by this one"
        )
    if arguments.show_batch:
        print(show(base, material, setup.recipe))
        return None
    return train(base, material, arguments.out, setup)


def note_lone_process() -> None:
    """Say that `accelerate launch --cpu` starts one process whatever number it is given; only mpirun changes that."""
    alone = processes.count() == 1 and processes.launched_on_cpu()
    if alone and "MASTER_ADDR" in os.environ and "OMPI_COMM_WORLD_SIZE" not in os.environ:
        say("note: `accelerate launch --cpu` starts one process; for several give --multi_gpu in place of --cpu")


def parse_bucket(text: str) -> int | None:
    """``--bucket``: a mastery bucket, or None for a draw over all of them."""
    if text not in ("0", "1", "2", "3", "4", "mixed"):
        raise RecipeError(f"--bucket {text}: there is no such strategy; give a bucket from 0 to 4, or mixed")
    return None if text == "mixed" else int(text)


def parse_size(text: str) -> int | None:
    """``--size``: a number, or None for all."""
    if text != "all" and not (text.isdigit() and int(text)):
        raise RecipeError(f"--size {text}: give a whole number of at least 1, or `all`")
    return None if text == "all" else int(text)


def training_recipe(settings: list[str], *, lora: bool = False, strategy: str | None = None, **given: Any) -> SFTRecipe:
    """How to train, with ``--set`` on top of the defaults; what begins with ``strategy.`` is an option of that one."""
    from sftknow.recipes.load import override_section

    chosen: Strategy | None = None
    if strategy is not None:
        own = [each for each in settings if each.startswith(_STRATEGY)]
        settings = [each for each in settings if each not in own]
        chosen = override_section(STRATEGIES.get(strategy), [each.removeprefix(_STRATEGY) for each in own])
    elif any(each.startswith(_STRATEGY) for each in settings):
        raise RecipeError("--set strategy.… does nothing without --strategy; add that or leave it out")
    recipe = override_section(SFTRecipe, settings, **given)
    return replace(recipe, lora=LoraSettings() if lora else None, strategy=chosen)
