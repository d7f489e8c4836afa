"""Options that several commands share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

Commands = Any  # argparse's own type for subparsers is private


def command(commands: Commands, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    """Add a subcommand whose help ends with an example."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def add_model(parser: argparse.ArgumentParser, name: str, help_text: str) -> None:
    """A positional model argument."""
    parser.add_argument(name, metavar=name.upper(), help=f"{help_text}: a folder, org/name[@revision], or `lab`")


def add_mastery(parser: argparse.ArgumentParser) -> None:
    """``--mastery``: the graded data set."""
    parser.add_argument(
        "--mastery", required=True, metavar="DATA", help="graded data set: a folder or org/name[@revision] on the Hub"
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """``--device`` and ``--batch-size``."""
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 …")
    parser.add_argument("--batch-size", type=positive, default=64, metavar="N", help="prompts at once (default: 64)")


def add_dtype(
    parser: argparse.ArgumentParser, otherwise: str = "what the model's config names, as lm_eval does"
) -> None:
    """``--dtype``: what the model is loaded in; None in the namespace where nothing was said."""
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help=f"load in that dtype (default: {otherwise})",
    )


def add_settings(parser: argparse.ArgumentParser) -> None:
    """``--set``: overrides of recipe keys."""
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings", help="override a recipe key"
    )


def positive(text: str) -> int:
    """An argparse type: an integer of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return value


def at_least_zero(text: str) -> float:
    """An argparse type: a number that is not negative."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")
    return value


def resolve_dataset(text: str) -> Path:
    """The graded data set as a local folder; a Hub id is pulled."""
    if Path(text).is_dir() or text.count("/") != 1 or text.startswith((".", "/", "~")):
        return Path(text).expanduser()
    from sftknow.models.pull import pull

    return pull(text, repo_type="dataset")


def say(text: str) -> None:
    """One line of progress, on standard error: standard output is for results."""
    print(text, file=sys.stderr, flush=True)
