"""`sftknow paper`: what the paper leaves open, and what is chosen in its place."""

from __future__ import annotations

import argparse

from sftknow.cli.options import Commands, command


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = command(
        commands, "paper", "what the paper leaves open: what is chosen, why, and how to change it", "sftknow paper"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the page."""
    from sftknow.recipes.silent import silent_page

    print(silent_page(), end="")
