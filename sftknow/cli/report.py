"""`sftknow report`: tables, figures and the page of a run, or of several side by side."""

from __future__ import annotations

import argparse
import webbrowser
from pathlib import Path

from sftknow.cli.options import Commands, command

EXAMPLES = """sftknow report runs/lab --open
  sftknow report runs/lab runs/lab-full --out both        (side by side)"""


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = command(commands, "report", "make the report of a run, finished or not, or of several", EXAMPLES)
    parser.add_argument("path", metavar="RUN", type=Path, nargs="+", help="run directory; several are set side by side")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: RUN/report (needed for several runs)")
    parser.add_argument("--open", action="store_true", help="open it in a browser")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Write the report and print what was found."""
    from sftknow.artifacts.arena import read_arena
    from sftknow.errors import RunError
    from sftknow.report import arena
    from sftknow.report.compose import write_report
    from sftknow.report.side_by_side import write_side_by_side
    from sftknow.report.terminal import print_summary

    for path in arguments.path:
        if not (path / "recipe.yaml").is_file():
            raise RunError(f"{path} is no run directory (it has no recipe.yaml); give the --out of `sftknow run`")
    first, *others = arguments.path
    if others and arguments.out is None:
        raise RunError("several runs need a folder for their common report: add --out DIR")
    if others:
        page = write_side_by_side(arguments.path, arguments.out)
    else:
        page = write_report(first, arguments.out or first / "report")
        if arguments.out is None and read_arena(first):
            arena.write(first)
        print_summary(first)
    print(f"\nreport: {page}")
    if arguments.open:
        webbrowser.open(page.resolve().as_uri())
