"""`sftknow leaderboard`: what public models score on a graded data set of the Hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from sftknow.cli.effects import no_effect
from sftknow.cli.options import Commands, command


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = command(
        commands,
        "leaderboard",
        "rank every public model that has results for a graded data set on the Hub, checked, as a static page",
        "sftknow leaderboard org/facts-graded\n  sftknow leaderboard org/facts-graded --split testood --out ranks",
    )
    parser.add_argument(
        "dataset", metavar="ORG/NAME", help="the graded data set, with @revision for an earlier version"
    )
    parser.add_argument(
        "--split", choices=("dev", "test", "testood"), default="test", help="that models are ranked on (default: test)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("leaderboard"), metavar="DIR", help="where to write (default: leaderboard)"
    )
    parser.add_argument("--space", metavar="ORG/NAME", help="put the page up as this static Space, too")
    parser.add_argument("--public", action="store_true", help="the Space is readable by everyone (default: private)")
    no_effect(parser, "--public", needs=("--space",))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Collect, rank, write and print."""
    from sftknow.run.leaderboard import leaderboard

    leaderboard(
        arguments.dataset,
        arguments.out,
        split=arguments.split,
        space=arguments.space,
        private=not arguments.public,
    )
