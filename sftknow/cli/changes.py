"""`sftknow changes`: which parameters did fine-tuning change?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sftknow.cli.options import Commands, add_model, command

if TYPE_CHECKING:
    from sftknow.pipeline.checkpoint_pairs import PairOptions

DEFAULT_LEVELS = "1%,3%,5%,10%,20%,40%,60%"


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = command(
        commands,
        "changes",
        "rank every parameter by its relative change and say where the change is",
        "sftknow changes base tuned --levels 1%,5%,20% --out changes",
    )
    add_pair(parser)
    parser.add_argument(
        "--levels", default=DEFAULT_LEVELS, metavar="A,B", help=f"default: {DEFAULT_LEVELS}".replace("%", "%%")
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write changes.json, plan.json and the tensor table")
    parser.set_defaults(run=run)


def add_pair(parser: argparse.ArgumentParser) -> None:
    """The two checkpoints and what decides the order of their parameters; shared with `restore`."""
    add_model(parser, "base", "the pretrained checkpoint")
    add_model(parser, "tuned", "the fine-tuned checkpoint")
    parser.add_argument(
        "--region",
        default="transformer",
        metavar="NAME",
        help="transformer (default), attention, mlp, embedding, all, or re:EXPRESSION over tensor names",
    )
    parser.add_argument("--layers", metavar="A-B", help="only these decoder layers, such as 0-3")
    parser.add_argument("--strategy", choices=("top", "bottom", "random"), default="top")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the strategy random")
    parser.add_argument("--epsilon", type=float, default=1e-8, metavar="E", help="in |s-p|/(|p|+E); default: 1e-8")
    parser.add_argument(
        "--arithmetic", choices=("float32", "bfloat16"), default="float32", help="bfloat16: the authors' rounding"
    )


def pair_options(arguments: argparse.Namespace) -> PairOptions:
    """The options of `add_pair` as the library wants them."""
    from sftknow.pipeline.checkpoint_pairs import PairOptions

    return PairOptions(
        region=arguments.region,
        layers=arguments.layers,
        strategy=arguments.strategy,
        seed=arguments.seed,
        epsilon=arguments.epsilon,
        arithmetic=arguments.arithmetic,
    )


def run(arguments: argparse.Namespace) -> None:
    """Analyse and print the tables."""
    from sftknow.parameters.tables import write_analysis
    from sftknow.pipeline.checkpoint_pairs import analyse_pair
    from sftknow.report.terminal import changes_table

    levels = arguments.levels.split(",")
    analysis = analyse_pair(arguments.base, arguments.tuned, levels, pair_options(arguments))
    print(changes_table(analysis.change))
    if arguments.out:
        write_analysis(arguments.out, analysis)
        print(f"\ntables and plan: {arguments.out}")
