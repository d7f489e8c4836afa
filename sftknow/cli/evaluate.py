"""`sftknow evaluate`: accuracy for each mastery bucket."""

from __future__ import annotations

import argparse
from pathlib import Path

from sftknow.cli.options import Commands, add_device, add_dtype, add_model, command, resolve_dataset


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = command(
        commands,
        "evaluate",
        "score a model on the cbqa_mastery tasks, bucket by bucket",
        "sftknow evaluate tuned --mastery graded --out scores",
    )
    add_model(parser, "model", "the model to score")
    parser.add_argument(
        "--mastery", metavar="DATA", help="graded data set: a folder or Hub id (default: the one the model names)"
    )
    parser.add_argument(
        "--splits", default="test,testood", metavar="A,B", help="of train, dev, test, testood (default: test,testood)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write scores.json and questions.parquet there")
    add_device(parser)
    add_dtype(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Score and print the table."""
    from sftknow.errors import MasteryDataError
    from sftknow.pipeline.scoring import score_model
    from sftknow.records import SPLITS, ModelRef
    from sftknow.report.terminal import accuracy_table

    splits = tuple(split.strip() for split in arguments.splits.split(","))
    for split in splits:
        if split not in SPLITS:
            raise MasteryDataError(f"--splits: there is no split {split}; there are {', '.join(SPLITS)}")
    scores = score_model(
        ModelRef.parse(arguments.model, dtype=arguments.dtype),
        resolve_dataset(arguments.mastery) if arguments.mastery else None,
        splits=splits,
        batch_size=arguments.batch_size,
        device=arguments.device,
        out=arguments.out,
    )
    print(accuracy_table(scores))
    if arguments.out:
        print(f"\nscores and answers: {arguments.out}")
