"""`sftknow changes`: which parameters did fine-tuning change?"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

from sftknow.cli.effects import no_effect
from sftknow.cli.options import Commands, add_model, add_options, command, options_of, say
from sftknow.parameters.options import PairOptions, Resources


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
    add_model(parser, "base", "the pretrained checkpoint")
    add_model(parser, "tuned", "the fine-tuned checkpoint")
    add_order(parser)
    add_options(parser, PairOptions, "levels")
    parser.add_argument(
        "--layer-sweep",
        metavar="N|RANGES",
        help="also the share of the change in every N layers, or in ranges such as 0-3,4-7",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write plan.json, tables (CSV, Parquet, JSON) and figures (SVG, PNG)"
    )
    parser.set_defaults(run=run)


ORDER = (
    "--region", "--layers", "--strategy", "--seed", "--epsilon", "--arithmetic", "--compare-in", "--common-rows",
    "--ignore",
)  # fmt: skip
"""What `add_order` adds and a plan says already."""


def add_order(parser: argparse.ArgumentParser) -> None:
    """What decides the order of the parameters; shared with `restore`."""
    add_options(parser, PairOptions, "region", "layers", "strategy", "seed", "epsilon", "arithmetic", "compare_in")
    add_options(parser, PairOptions, "common_rows", "ignore")
    add_options(parser, Resources, "memory")
    add_options(parser, Resources, "threads", otherwise="all processors")
    unseeded = tuple(f"--strategy={name}" for name in ("top", "bottom", "absolute", "trim"))
    no_effect(parser, "--seed", needs=("--strategy",), beside=unseeded)


def run(arguments: argparse.Namespace) -> None:
    """Analyse and print the tables."""
    from sftknow.parameters.change import dtype_note, unchanged_message
    from sftknow.run.checkpoint_pairs import analyse_pair

    options = options_of(PairOptions, arguments, resources=options_of(Resources, arguments))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that nothing changed is said below
        analysis = analyse_pair(arguments.base, arguments.tuned, options.levels, options)
    for note in analysis.notes:
        say(note)
    if not analysis.change.changed:
        say(unchanged_message(arguments.base, arguments.tuned, analysis.change))
    elif analysis.change.dtypes:
        say(dtype_note(analysis.change))
    # What tells of it needs memory that the analysis had for itself.
    from sftknow.parameters.change_tables import layer_range_rows
    from sftknow.report.terminal import changes_table, places_table, table_of_rows
    from sftknow.run.change_report import range_changes, write_change_report

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
