"""`sftknow materialize`: the whole checkpoint of a model that a run keeps small."""

from __future__ import annotations

import argparse
from pathlib import Path

from sftknow.cli.options import Commands, command


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = command(
        commands,
        "materialize",
        "write the whole checkpoint of a model that a run keeps small, byte for byte as it was trained",
        "sftknow materialize runs/lab-full/models/b2-n240-s0 --out tuned",
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="folder of a model in a run directory")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the checkpoint")
    parser.add_argument("--base", metavar="MODEL", help="the base, where it is no longer where it was at training")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Write it and say where it is."""
    from sftknow.models.resolving import materialize_model

    print(f"whole checkpoint: {materialize_model(arguments.model, arguments.out, arguments.base)}")
