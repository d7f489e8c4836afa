"""`sftknow changes`: which parameters did fine-tuning change?"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from sftknow.cli.options import Commands, add_model, command, positive, say
from sftknow.parameters.strategies import STRATEGIES

if TYPE_CHECKING:
    from sftknow.run.checkpoint_pairs import PairOptions

DEFAULT_LEVELS = "1%,3%,5%,10%,20%,40%,60%"


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = command(
        commands,
        "changes",
        "rank every parameter by its relative change and say where the change is",
        "sftknow changes base tuned --levels 1%,5%,20% --out changes\n"
        "  sftknow changes base tuned --region attention --layers 0-3\n"
        "  sftknow changes base tuned --layer-sweep 4                  (layers 0-3, 4-7, …)",
    )
    add_pair(parser)
    parser.add_argument(
        "--levels", default=DEFAULT_LEVELS, metavar="A,B", help=f"default: {DEFAULT_LEVELS}".replace("%", "%%")
    )
    parser.add_argument(
        "--layer-sweep",
        metavar="N|RANGES",
        help="also the share of the change in every N layers, or in ranges such as 0-3,4-7",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write plan.json, tables (CSV, Parquet, JSON) and figures (SVG, PNG)"
    )
    parser.set_defaults(run=run)


def add_pair(parser: argparse.ArgumentParser) -> None:
    """The two checkpoints and what decides the order of their parameters."""
    add_model(parser, "base", "the pretrained checkpoint")
    add_model(parser, "tuned", "the fine-tuned checkpoint")
    add_order(parser)


def add_order(parser: argparse.ArgumentParser) -> None:
    """What decides the order of the parameters; shared with `restore`."""
    parser.add_argument(
        "--region",
        default="transformer",
        metavar="NAME",
        help="transformer (default), attention, mlp, embedding, all, or re:EXPRESSION over tensor names",
    )
    parser.add_argument("--layers", metavar="A-B", help="only these decoder layers, such as 0-3")
    parser.add_argument(
        "--strategy",
        choices=STRATEGIES,
        default="top",
        metavar="NAME",
        help="which parameters come first: %(choices)s (default: top, the most changed)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the strategy random")
    parser.add_argument("--epsilon", type=float, default=1e-8, metavar="E", help="in |s-p|/(|p|+E); default: 1e-8")
    parser.add_argument(
        "--arithmetic", choices=("float32", "bfloat16"), default="float32", help="bfloat16: the authors' rounding"
    )
    parser.add_argument(
        "--common-rows",
        action="store_true",
        help="where the vocabulary grew or shrank, compare the rows of the embeddings that both have",
    )
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        help="what the process may take in all, such as 2GB (default: 512MB, and 88MB for each thread beyond two); "
        "results do not depend on it",
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="that compute (default: all processors)")


def pair_options(arguments: argparse.Namespace) -> PairOptions:
    """The options of `add_order`, which are named as the library names them."""
    from sftknow.checkpoints.layout import parse_size
    from sftknow.machine import available_processors
    from sftknow.parameters.passes import Resources
    from sftknow.run.checkpoint_pairs import PairOptions

    memory = parse_size(arguments.memory) if arguments.memory else None
    resources = Resources(memory=memory, threads=arguments.threads or available_processors())
    names = [field.name for field in fields(PairOptions) if field.name != "resources"]
    return PairOptions(**{name: getattr(arguments, name) for name in names}, resources=resources)


def run(arguments: argparse.Namespace) -> None:
    """Analyse and print the tables."""
    from sftknow.parameters.change_tables import layer_range_rows
    from sftknow.report.terminal import changes_table, places_table, table_of_rows
    from sftknow.run.change_report import range_changes, write_change_report
    from sftknow.run.checkpoint_pairs import analyse_pair

    levels = arguments.levels.split(",")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that nothing changed is said below
        analysis = analyse_pair(arguments.base, arguments.tuned, levels, pair_options(arguments))
    if not analysis.change.changed:
        say(f"{arguments.base} and {arguments.tuned} hold the same values in the region {arguments.region}")
    ranges = range_changes(analysis, arguments.layer_sweep) if arguments.layer_sweep else []
    print(changes_table(analysis.change))
    for kind in ("module", "layer"):
        print(f"\n{places_table(analysis.change, kind)}")
    if ranges:
        titles = {
            "layers": "layers",
            "elements": "parameters",
            "changed": "changed",
            "share_of_change": "% of change",
            "share_of_change_base_not_0": "% without base = 0",
        }
        print(f"\n{table_of_rows(layer_range_rows(ranges), titles)}")
    if arguments.out:
        write_change_report(arguments.out, analysis, ranges)
        print(f"\nplan, tables and figures: {arguments.out}")
