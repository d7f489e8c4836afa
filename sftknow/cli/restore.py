"""`sftknow restore`: set the most changed parameters back to their pretrained values."""

from __future__ import annotations

import argparse
from pathlib import Path

from sftknow.cli.changes import add_pair, pair_options
from sftknow.cli.options import Commands, command


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = command(
        commands,
        "restore",
        "set the most changed share of the parameters back to the base's values, bit by bit",
        "sftknow restore base tuned --top 5% --out restored\n"
        "  sftknow restore base tuned --top 1%,5%,20% --out restored     (restored/1pct, restored/5pct, …)",
    )
    add_pair(parser)
    parser.add_argument("--top", required=True, metavar="SHARE", help="share or shares, such as 5%% or 1%%,5%%,20%%")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="one folder a share where several are given"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Analyse, restore each level, say where it is."""
    from sftknow.pipeline.checkpoint_pairs import restore_pair

    for restored in restore_pair(
        arguments.base, arguments.tuned, arguments.top.split(","), arguments.out, pair_options(arguments)
    ):
        print(f"{restored.level}: {restored.restored:,} parameters set back; restored model: {restored.checkpoint}")
