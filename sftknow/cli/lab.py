"""`sftknow lab`: the small world and the small model that knows it."""

from __future__ import annotations

import argparse
from pathlib import Path

from sftknow.cli.effects import no_effect
from sftknow.cli.options import Commands, add_options, command, options_of
from sftknow.recipes.schema import FactsSection


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = command(
        commands,
        "lab",
        "build the lab's model, or one that knows facts of your own",
        "sftknow lab pretrain --facts EntityQuestions --limit 3000 --out small-model",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    pretrain = command(
        actions,
        "pretrain",
        "train a small Llama on text about facts, each seen to a known degree (minutes on two cores)",
        "sftknow lab pretrain --out lab\n  sftknow lab pretrain --facts EntityQuestions --limit 3000 --out small-model",
    )
    pretrain.add_argument(
        "--facts", default="world", metavar="SOURCE", help="`world` (the lab's own, default) or any facts source"
    )
    add_options(pretrain, FactsSection, "limit")
    pretrain.add_argument("--seed", type=int, default=0, metavar="N", help="of the draw and of training (default: 0)")
    pretrain.add_argument("--out", required=True, type=Path, metavar="DIR", help="gets model/ and facts.parquet")
    no_effect(pretrain, "--limit", needs=("--facts",), beside=("--facts=world",))
    pretrain.set_defaults(run=run_pretrain, goes_on=lambda given: True)
    path = command(actions, "path", "print the folder of the model that ships", "sftknow lab path")
    path.set_defaults(run=run_path)


def run_pretrain(arguments: argparse.Namespace) -> None:
    """Train and say how to go on."""
    from sftknow.run.laboratory import build_lab

    limit = options_of(FactsSection, arguments).limit
    built = build_lab(arguments.facts, arguments.out, limit=limit, seed=arguments.seed)
    print(f"{built.facts:,} facts in {built.documents:,} documents, {built.steps:,} steps")
    print(f"model: {built.model}\nfacts with their exposure: {built.facts_file}")
    print(
        f"go on with: sftknow run lab --model {built.model} --facts {built.facts_file} --out runs/{arguments.out.name}"
    )


def run_path(arguments: argparse.Namespace) -> None:
    """Print the folder of the lab model."""
    from sftknow.resources import lab_folder

    print(lab_folder() / "model")
