"""`sftknow sft`: fine-tune one model on one bucket."""

from __future__ import annotations

import argparse
from pathlib import Path

from sftknow.cli.options import Commands, add_mastery, add_settings, command, resolve_dataset


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = command(
        commands,
        "sft",
        "fine-tune a model on facts of one mastery bucket",
        "sftknow sft --model org/base --mastery graded --bucket 2 --size 240 --seed 0 --out tuned\n"
        "  sftknow sft --model lab --mastery runs/lab/mastery/dataset --bucket 2 --size 240 --out tuned "
        "--set learning_rate=3e-4",
    )
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="the base: a folder, org/name[@revision], `lab`"
    )
    add_mastery(parser)
    parser.add_argument(
        "--bucket", required=True, choices=("0", "1", "2", "3", "4", "mixed"), help="mixed: drawn over all buckets"
    )
    parser.add_argument("--size", required=True, metavar="N", help="number of training facts, or `all`")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draw and of training (default: 0)")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the fine-tuned checkpoint")
    add_settings(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Fine-tune and say where the checkpoint is."""
    from sftknow.errors import RecipeError
    from sftknow.finetuning.recipe import SFTRecipe
    from sftknow.pipeline.base import resolve_base
    from sftknow.pipeline.cells import Cell
    from sftknow.pipeline.training import train_cell
    from sftknow.recipes.load import override_section
    from sftknow.recipes.schema import SFTSection
    from sftknow.records import ModelRef
    from sftknow.storage.mastery_data import MasteryData

    if arguments.size != "all" and not (arguments.size.isdigit() and int(arguments.size)):
        raise RecipeError(f"--size {arguments.size}: give a whole number of at least 1, or `all`")
    cell = Cell(
        bucket=None if arguments.bucket == "mixed" else int(arguments.bucket),
        size=None if arguments.size == "all" else int(arguments.size),
        seed=arguments.seed,
    )
    section = override_section(SFTSection, arguments.settings)
    dataset = MasteryData(resolve_dataset(arguments.mastery))
    model = ModelRef.parse(arguments.model)
    base = resolve_base(model.path, model.revision, None)
    trained = train_cell(base, dataset, cell, arguments.out, recipe=SFTRecipe(**section.model_dump()))
    print(f"{trained.steps} steps, final loss {trained.final_loss:.3f}; fine-tuned model: {trained.checkpoint}")
