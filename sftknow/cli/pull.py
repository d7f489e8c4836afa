"""`sftknow pull`: a model or a graded data set from the Hub, hashes compared."""

from __future__ import annotations

import argparse
from pathlib import Path

from sftknow.cli.options import Commands, add_wait, command


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = command(
        commands,
        "pull",
        "pull a model or a graded data set from the Hub",
        "sftknow pull org/facts-graded@main --out graded",
    )
    parser.add_argument("name", metavar="ORG/NAME[@REVISION]", help="repository on the Hub")
    parser.add_argument("--type", choices=("model", "dataset"), help="default: whichever exists")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to put it in (default: the Hub's cache)")
    add_wait(parser)
    parser.set_defaults(run=run, goes_on=lambda given: True)


def run(arguments: argparse.Namespace) -> None:
    """Pull and say where it is."""
    from sftknow.models.hub_client import Patience
    from sftknow.models.pull import pull

    patience = Patience.of(arguments.wait)
    print(pull(arguments.name, repo_type=arguments.type, local_dir=arguments.out, patience=patience))
