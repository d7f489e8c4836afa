"""`sftknow report`: tables, figures and the page of a run."""

from __future__ import annotations

import argparse
import webbrowser
from pathlib import Path

from sftknow.cli.options import Commands, command


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = command(commands, "report", "make the report of a run, finished or not", "sftknow report runs/lab --open")
    parser.add_argument("path", metavar="RUN", type=Path, help="run directory")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: RUN/report")
    parser.add_argument("--open", action="store_true", help="open it in a browser")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Write the report and print what was found."""
    from sftknow.errors import RunError
    from sftknow.report.compose import write_report
    from sftknow.report.terminal import print_summary

    if not (arguments.path / "recipe.yaml").is_file():
        raise RunError(f"{arguments.path} is no run directory (it has no recipe.yaml); give the --out of `sftknow run`")
    page = write_report(arguments.path, arguments.out or arguments.path / "report")
    print_summary(arguments.path)
    print(f"\nreport: {page}")
    if arguments.open:
        webbrowser.open(page.resolve().as_uri())
