"""`sftknow sft`: fine-tune one model on one bucket."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from sftknow import processes
from sftknow.cli.general_tasks import add_data, data_folders
from sftknow.cli.options import Commands, add_settings, command, positive, resolve_dataset, say

if TYPE_CHECKING:
    from sftknow.records import TrainedModel
    from sftknow.run.training import Material, TrainingSetup
    from sftknow.training.recipe import SFTRecipe


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
        "  sftknow sft --model org/base --task gsm8k --data gsm8k=path/to/gsm8k --size 1920 --out tuned",
    )
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="the base: a folder, org/name[@revision], `lab`"
    )
    parser.add_argument("--mastery", metavar="DATA", help="graded data set: a folder or org/name[@revision] on the Hub")
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
        "--show-batch",
        action="store_true",
        help="print the first batch as text, in [[brackets]] what counts in the loss, and train nothing",
    )
    parser.add_argument(
        "--save-steps", type=positive, metavar="N", help="keep a snapshot every N steps, from which a kill goes on"
    )
    parser.add_argument(
        "--report-to",
        action="append",
        default=[],
        choices=("trackio", "wandb", "tensorboard"),
        help="also tell a tracker (default: none, nothing leaves the machine)",
    )
    parser.add_argument(
        "--processes",
        type=positive,
        metavar="N",
        help="train in N processes, one a GPU (or on CPUs where there is none)",
    )
    parser.add_argument(
        "--accelerate",
        metavar="CONFIG",
        help="with accelerate's configuration in that file, or one that ships: fsdp-8b, fsdp-70b, deepspeed-zero3-8b, "
        "deepspeed-zero3-70b",
    )
    add_settings(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Fine-tune and say where the checkpoint is; or show the first batch."""
    from sftknow.errors import RecipeError

    if not (arguments.out or arguments.show_batch):
        raise RecipeError("give --out DIR, the folder of the fine-tuned checkpoint (or --show-batch to train nothing)")
    if arguments.task and (arguments.mastery or arguments.bucket):
        raise RecipeError("--task takes the task's own training data: leave --mastery and --bucket out")
    if not arguments.task and not (arguments.mastery and arguments.bucket):
        raise RecipeError(
            "give --mastery DATA and --bucket N to train on graded facts, or --task NAME for another task"
        )
    note_lone_process()
    if processes.count() > 1:
        if arguments.processes or arguments.accelerate:
            raise RecipeError("--processes and --accelerate start a launcher, and one has started this: leave them out")
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    trained = (train_task if arguments.task else train_facts)(arguments)
    if trained is not None and processes.is_main():
        print(f"{trained.steps} steps, final loss {trained.final_loss:.3f}; fine-tuned model: {trained.checkpoint}")


def train_facts(arguments: argparse.Namespace) -> TrainedModel | None:
    """Fine-tune on facts of a bucket; None where the batch was only shown."""
    from sftknow.artifacts.mastery_data import MasteryData
    from sftknow.recipes.load import override_section
    from sftknow.recipes.schema import LoraSection, SFTSection
    from sftknow.run.cells import Cell
    from sftknow.run.training import FactDraw, sft_recipe

    cell = Cell(
        bucket=parse_bucket(arguments.bucket),
        size=parse_size(arguments.size),
        seed=arguments.seed,
    )
    recipe = sft_recipe(override_section(SFTSection, arguments.settings), LoraSection() if arguments.lora else None)
    setup = training_setup(arguments, recipe)
    return _train(arguments, FactDraw(dataset=MasteryData(resolve_dataset(arguments.mastery)), cell=cell), setup)


def train_task(arguments: argparse.Namespace) -> TrainedModel | None:
    """Fine-tune on a task's own train split; None where the batch was only shown."""
    from sftknow.evaluation.general.xsum import ARTICLE_WORDS
    from sftknow.run.general_ability import GeneralOptions, TaskRows, check_tasks, open_task

    size = parse_size(arguments.size)
    data = data_folders(arguments.data)
    check_tasks([arguments.task], data)
    options = GeneralOptions(few_shot=0, article_words=arguments.article_words or ARTICLE_WORDS)
    setup = training_setup(arguments, task_recipe(arguments.settings, lora=arguments.lora))
    rows = TaskRows(harness=open_task(arguments.task, data, options), size=size, seed=arguments.seed)
    return _train(arguments, rows, setup)


def _train(arguments: argparse.Namespace, material: Material, setup: TrainingSetup) -> TrainedModel | None:
    from sftknow.models.resolving import resolve_base
    from sftknow.records import ModelRef
    from sftknow.run.training import show, train

    model = ModelRef.parse(arguments.model)
    base = resolve_base(model.path, model.revision, None)
    if arguments.show_batch:
        print(show(base, material, setup.recipe))
        return None
    return train(base, material, arguments.out, setup)


def training_setup(arguments: argparse.Namespace, recipe: SFTRecipe) -> TrainingSetup:
    """The recipe with ``--processes``, ``--accelerate``, ``--save-steps`` and ``--report-to``, checked."""
    from sftknow.recipes.schema import AccelerateSection
    from sftknow.run.training import TrainingSetup
    from sftknow.training.train import TrainingOptions

    setup = TrainingSetup(
        recipe=recipe,
        options=TrainingOptions(report_to=tuple(arguments.report_to), save_steps=arguments.save_steps),
        accelerate=AccelerateSection(processes=arguments.processes, config=arguments.accelerate),
    )
    setup.check()
    return setup


def note_lone_process() -> None:
    """Say that `accelerate launch --cpu` starts one process whatever number it is given; only mpirun changes that."""
    alone = processes.count() == 1 and processes.launched_on_cpu()
    if alone and "MASTER_ADDR" in os.environ and "OMPI_COMM_WORLD_SIZE" not in os.environ:
        say("note: `accelerate launch --cpu` starts one process; for several give --multi_gpu in place of --cpu")


def parse_bucket(text: str) -> int | None:
    """``--bucket``: a mastery bucket, or None for a draw over all of them."""
    from sftknow.errors import RecipeError

    if text not in ("0", "1", "2", "3", "4", "mixed"):
        raise RecipeError(f"--bucket {text}: there is no such strategy; give a bucket from 0 to 4, or mixed")
    return None if text == "mixed" else int(text)


def parse_size(text: str) -> int | None:
    """``--size``: a number, or None for all."""
    from sftknow.errors import RecipeError

    if text != "all" and not (text.isdigit() and int(text)):
        raise RecipeError(f"--size {text}: give a whole number of at least 1, or `all`")
    return None if text == "all" else int(text)


def task_recipe(settings: list[str], *, lora: bool = False) -> SFTRecipe:
    """The recipe for a task's rows, which are longer than questions; ``--set`` on top of it."""
    from sftknow.recipes.load import override_section
    from sftknow.recipes.schema import LoraSection, SFTSection
    from sftknow.run.general_ability import MAX_LENGTH
    from sftknow.run.training import sft_recipe

    section = override_section(SFTSection, [f"max_length={MAX_LENGTH}", *settings])
    return sft_recipe(section, LoraSection() if lora else None)
