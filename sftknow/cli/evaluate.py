"""`sftknow evaluate`: accuracy for each mastery bucket."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sftknow.cli.general_tasks import add_tasks, score, split_tasks
from sftknow.cli.options import Commands, add_device, add_dtype, command, positive


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = command(
        commands,
        "evaluate",
        "score models on the cbqa_mastery tasks, bucket by bucket, or on xsum and gsm8k",
        "sftknow evaluate tuned --mastery graded --out scores\n"
        "  sftknow evaluate tuned --tasks xsum,gsm8k --data gsm8k=path/to/gsm8k --out scores",
    )
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="+",
        help="the models to score: folders, org/name[@revision], or `lab`; tasks are built once for all of them",
    )
    parser.add_argument(
        "--mastery", metavar="DATA", help="graded data set: a folder or org/name[@revision] (default: the model's own)"
    )
    parser.add_argument(
        "--recipe", metavar="FILE", help="take evaluation.dataset of this recipe for a model that names no data set"
    )
    parser.add_argument(
        "--splits", default="test,testood", metavar="A,B", help="of train, dev, test, testood (default: test,testood)"
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N questions of every bucket")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write scores.json and questions.parquet there, of several models in a folder each; what is there "
        "already is not scored again, and a stopped evaluation goes on",
    )
    add_tasks(parser)
    add_device(parser)
    add_dtype(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Score and print the tables."""
    from sftknow.errors import MasteryDataError
    from sftknow.recipes.load import load_recipe
    from sftknow.records import SPLITS, ModelRef
    from sftknow.report.terminal import accuracy_table
    from sftknow.run.scoring import score_models

    general, questions = split_tasks(arguments.tasks)
    if general:
        score(arguments, general)
    if not questions:
        return
    splits = tuple(split.strip() for split in arguments.splits.split(","))
    for split in splits:
        if split not in SPLITS:
            raise MasteryDataError(f"--splits: there is no split {split}; there are {', '.join(SPLITS)}")
    scored = score_models(
        [ModelRef.parse(model, dtype=arguments.dtype) for model in arguments.models],
        arguments.mastery,
        splits=splits,
        batch_size=arguments.batch_size,
        device=arguments.device,
        out=arguments.out,
        default=load_recipe(arguments.recipe).evaluation.dataset if arguments.recipe else None,
        limit=arguments.limit,
    )
    for number, one in enumerate(scored):
        if len(arguments.models) > 1:
            print(f"{chr(10) if number else ''}{one.scores.model}")
        print(accuracy_table(one.scores))
        print(_origin(one))


def _origin(one: Any) -> str:
    """Below the table: whose questions these were, what to know, and where the answers lie."""
    data = one.questions.data
    lines = [
        f"data set: {one.questions.name} ({one.questions.named_by}), graded by {data.graded_by}, "
        f"fingerprint {data.fingerprint[:12]}"
    ]
    lines += [f"note: {note}" for note in one.scores.notes]
    if one.scores.missing:
        lines.append(f"without a question, and left out of the means: {', '.join(one.scores.missing)}")
    if one.out:
        lines.append(f"scores and answers: {one.out}")
    return "\n" + "\n".join(lines)
