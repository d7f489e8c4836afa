"""`sftknow compare`: two models on the same questions."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sftknow.cli.options import (
    Commands,
    add_running,
    add_splits,
    command,
    options_of,
    positive,
    resolve_dataset,
)
from sftknow.models.options import ModelOptions
from sftknow.shown import wrapped


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = command(
        commands,
        "compare",
        "compare two models question by question: what was gained, what was lost, and is the difference real",
        "sftknow compare base b3-n60-s0 --run runs/lab\n"
        "  sftknow compare b3-n60-s0 b3-n60-s0@5% --run runs/lab --out comparison     (the same, 5 % restored)\n"
        "  sftknow compare org/base org/tuned --mastery org/graded\n"
        "  sftknow compare runs/lab/evaluation/base scores",
    )
    for name, what in (("a", "the one that differences start from"), ("b", "the other")):
        parser.add_argument(
            name,
            metavar=name.upper(),
            help=f"{what}: a name within --run, the folder of an evaluation or a model, org/name[@revision], or `lab`",
        )
    parser.add_argument("--run", type=Path, metavar="DIR", dest="directory", help="run directory that holds the names")
    parser.add_argument(
        "--mastery", metavar="DATA", help="graded data set: a folder or Hub id (default: that of A or B)"
    )
    add_splits(parser, "all that both were scored on")
    parser.add_argument(
        "--metric", choices=("acc", "acc_word", "exact_match"), default="acc", help="shown by bucket (default: acc)"
    )
    parser.add_argument(
        "--examples", type=int, default=3, metavar="N", help="questions gained and lost shown a split (default: 3)"
    )
    parser.add_argument(
        "--resamples", type=positive, default=10_000, metavar="N", help="of the bootstrap (default: 10000)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the bootstrap (default: 0)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write it as JSON, CSV and Parquet, every question with both answers"
    )
    add_running(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Compare and print."""
    from sftknow.run.comparing import compare_models
    from sftknow.run.comparison_text import comparison_text

    comparison = compare_models(
        arguments.a,
        arguments.b,
        run=arguments.directory,
        dataset=resolve_dataset(arguments.mastery) if arguments.mastery else None,
        splits=arguments.splits,
        resamples=arguments.resamples,
        seed=arguments.seed,
        out=arguments.out,
        scoring=options_of(ModelOptions, arguments),
    )
    shown = comparison_text(comparison, metric=arguments.metric, examples=max(0, arguments.examples))
    print(wrapped(shown, sys.stdout))
    if arguments.out:
        print(f"\ncomparison.json, differences.csv, questions.parquet, changed.csv: {arguments.out}")
