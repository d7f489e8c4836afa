"""`sftknow evaluate`: accuracy for each mastery bucket."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sftknow.cli.effects import Case, no_effect
from sftknow.cli.general_tasks import QUESTIONS, add_tasks, data_folders, score, split_tasks
from sftknow.cli.options import Commands, add_mastery, add_options, add_running, add_splits, command, options_of
from sftknow.evaluation.options import EvaluationOptions, GeneralOptions
from sftknow.records import ModelRef


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
    add_mastery(parser, help="graded data set: a folder or org/name[@revision] (default: the model's own)")
    parser.add_argument(
        "--recipe", metavar="FILE", help="take evaluation.dataset of this recipe for a model that names no data set"
    )
    add_splits(parser, "test,testood", ("test", "testood"))
    add_options(parser, EvaluationOptions, "limit")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write scores.json and questions.parquet there, of several models in a folder each; what is there "
        "already is not scored again, and a stopped evaluation goes on",
    )
    add_tasks(parser)
    add_running(parser)
    asked = Case("--tasks", lambda text: bool(split_tasks(text)[0]), "--tasks xsum or gsm8k")
    only = Case("--tasks", lambda text: not split_tasks(text)[1], f"--tasks without {QUESTIONS}")
    no_effect(parser, "--mastery", "--recipe", "--splits", beside=(only,))
    no_effect(parser, "--recipe", beside=("--mastery",))
    no_effect(parser, "--data", "--article-words", needs=(asked,))
    parser.set_defaults(run=run, goes_on=lambda given: "--out" in given)


def run(arguments: argparse.Namespace) -> None:
    """Score and print the tables."""
    from sftknow.recipes.load import load_recipe
    from sftknow.report.terminal import accuracy_table
    from sftknow.run.scoring import score_models

    general, questions = split_tasks(arguments.tasks)
    options = options_of(GeneralOptions, arguments)
    if general:
        score(arguments.models, general, data_folders(arguments.data, general), arguments.out, options)
    if not questions:
        return
    scored = score_models(
        [ModelRef.parse(model, dtype=options.dtype) for model in arguments.models],
        arguments.mastery,
        splits=arguments.splits,
        batch_size=options.batch_size,
        device=options.device,
        out=arguments.out,
        default=load_recipe(arguments.recipe, whole=False).evaluation.dataset if arguments.recipe else None,
        limit=options.limit,
        few_shot=options.few_shot or 0,
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
