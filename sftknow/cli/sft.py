"""`sftknow sft`: fine-tune one model on one bucket."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sftknow.cli.general_tasks import add_data, data_folders
from sftknow.cli.options import Commands, add_settings, command, resolve_dataset

if TYPE_CHECKING:
    from sftknow.finetuning.recipe import SFTRecipe


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = command(
        commands,
        "sft",
        "fine-tune a model on facts of one mastery bucket, or on another task's own training data",
        "sftknow sft --model org/base --mastery graded --bucket 2 --size 240 --seed 0 --out tuned\n"
        "  sftknow sft --model lab --mastery runs/lab/mastery/dataset --bucket 2 --size 240 --out tuned "
        "--set learning_rate=3e-4\n"
        "  sftknow sft --model org/base --task gsm8k --data gsm8k=path/to/gsm8k --size 1920 --out tuned",
    )
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="the base: a folder, org/name[@revision], `lab`"
    )
    parser.add_argument("--mastery", metavar="DATA", help="graded data set: a folder or org/name[@revision] on the Hub")
    parser.add_argument("--bucket", choices=("0", "1", "2", "3", "4", "mixed"), help="mixed: drawn over all buckets")
    parser.add_argument(
        "--task", metavar="NAME", help="xsum or gsm8k, in place of --mastery and --bucket (the paper's Table 5)"
    )
    add_data(parser)
    parser.add_argument("--size", required=True, metavar="N", help="number of training facts or rows, or `all`")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draw and of training (default: 0)")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the fine-tuned checkpoint")
    parser.add_argument("--lora", action="store_true", help="train low-rank adapters and merge them in")
    add_settings(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Fine-tune and say where the checkpoint is."""
    from sftknow.errors import RecipeError
    from sftknow.pipeline.base import resolve_base
    from sftknow.pipeline.cells import Cell
    from sftknow.pipeline.training import sft_recipe, train_cell
    from sftknow.recipes.load import override_section
    from sftknow.recipes.schema import LoraSection, SFTSection
    from sftknow.records import ModelRef
    from sftknow.storage.mastery_data import MasteryData

    size = parse_size(arguments.size)
    if arguments.task:
        run_task(arguments, size)
        return
    if not (arguments.mastery and arguments.bucket):
        raise RecipeError(
            "give --mastery DATA and --bucket N to train on graded facts, or --task NAME for another task"
        )
    cell = Cell(
        bucket=None if arguments.bucket == "mixed" else int(arguments.bucket),
        size=size,
        seed=arguments.seed,
    )
    section = override_section(SFTSection, arguments.settings)
    dataset = MasteryData(resolve_dataset(arguments.mastery))
    model = ModelRef.parse(arguments.model)
    base = resolve_base(model.path, model.revision, None)
    recipe = sft_recipe(section, LoraSection() if arguments.lora else None)
    trained = train_cell(base, dataset, cell, arguments.out, recipe=recipe)
    print(f"{trained.steps} steps, final loss {trained.final_loss:.3f}; fine-tuned model: {trained.checkpoint}")


def run_task(arguments: argparse.Namespace, size: int | None) -> None:
    """Fine-tune on a task's own train split."""
    from sftknow.errors import RecipeError
    from sftknow.evaluation.general.xsum import ARTICLE_WORDS
    from sftknow.pipeline.base import resolve_base
    from sftknow.pipeline.general_ability import GeneralOptions, check_tasks, open_task, train_on_task
    from sftknow.records import ModelRef

    if arguments.mastery or arguments.bucket:
        raise RecipeError("--task takes the task's own training data: leave --mastery and --bucket out")
    data = data_folders(arguments.data)
    check_tasks([arguments.task], data)
    options = GeneralOptions(few_shot=0, article_words=arguments.article_words or ARTICLE_WORDS)
    recipe = task_recipe(arguments.settings)
    harness = open_task(arguments.task, data, options)
    model = ModelRef.parse(arguments.model)
    base = resolve_base(model.path, model.revision, None)
    trained = train_on_task(base, harness, arguments.out, size=size, seed=arguments.seed, recipe=recipe)
    print(f"{trained.steps} steps, final loss {trained.final_loss:.3f}; fine-tuned model: {trained.checkpoint}")


def parse_size(text: str) -> int | None:
    """``--size``: a number, or None for all."""
    from sftknow.errors import RecipeError

    if text != "all" and not (text.isdigit() and int(text)):
        raise RecipeError(f"--size {text}: give a whole number of at least 1, or `all`")
    return None if text == "all" else int(text)


def task_recipe(settings: list[str]) -> SFTRecipe:
    """The recipe for a task's rows, which are longer than questions; ``--set`` on top of it."""
    from sftknow.pipeline.general_ability import MAX_LENGTH
    from sftknow.pipeline.training import sft_recipe
    from sftknow.recipes.load import override_section
    from sftknow.recipes.schema import SFTSection

    return sft_recipe(override_section(SFTSection, [f"max_length={MAX_LENGTH}", *settings]))
