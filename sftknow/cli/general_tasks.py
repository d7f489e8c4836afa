"""`--tasks` and `--data` of several commands: the general-ability tasks (xsum, gsm8k and those that were added)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sftknow.cli.options import positive

if TYPE_CHECKING:
    from sftknow.artifacts.general_scores import GeneralScores
    from sftknow.run.general_ability import GeneralOptions

QUESTIONS = "cbqa_mastery"


def add_data(parser: argparse.ArgumentParser) -> None:
    """``--data`` and ``--article-words``."""
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="TASK=DIR",
        help="folder of a task's data (test.parquet or test.jsonl, train.…) in place of the Hub's",
    )
    parser.add_argument(
        "--article-words", type=positive, metavar="N", help="xsum: words of an article that are shown (default: 1000)"
    )


def add_tasks(parser: argparse.ArgumentParser) -> None:
    """``--tasks`` of `sftknow evaluate`, with ``--data`` and ``--fewshot``."""
    parser.add_argument(
        "--tasks",
        default=QUESTIONS,
        metavar="A,B",
        help=f"of {QUESTIONS} (default) and, for general ability, xsum, gsm8k and those that you added",
    )
    parser.add_argument(
        "--fewshot", type=int, metavar="N", help="gsm8k: examples before each question (default: 5, as in lm-eval)"
    )
    add_data(parser)


def split_tasks(text: str) -> tuple[list[str], bool]:
    """The general-ability tasks in ``--tasks``, and whether the questions are asked for too."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    return [name for name in names if name != QUESTIONS], QUESTIONS in names or not names


def data_folders(texts: Sequence[str]) -> dict[str, Path]:
    """``--data`` as folders by task."""
    from sftknow.errors import GeneralTaskError

    folders = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder):
            raise GeneralTaskError(f"--data {text}: give a task and a folder, such as --data xsum=path/to/xsum")
        folders[name] = Path(folder).expanduser()
    return folders


def general_options(arguments: argparse.Namespace) -> GeneralOptions:
    """How the tasks are asked."""
    from sftknow.evaluation.general.xsum import ARTICLE_WORDS
    from sftknow.run.general_ability import GeneralOptions

    return GeneralOptions(
        few_shot=arguments.fewshot,
        limit=arguments.limit,
        article_words=arguments.article_words or ARTICLE_WORDS,
        batch_size=arguments.batch_size,
        device=arguments.device,
        dtype=arguments.dtype,
    )


def score(arguments: argparse.Namespace, names: Sequence[str]) -> None:
    """Score the models of `sftknow evaluate` on these tasks and print a table for each."""
    from sftknow.errors import GeneralTaskError
    from sftknow.records import ModelRef
    from sftknow.run.general_ability import score_general

    if arguments.fewshot is not None and arguments.fewshot < 0:
        raise GeneralTaskError(f"--fewshot {arguments.fewshot}: give 0 or more examples")
    options = general_options(arguments)
    several = len(arguments.models) > 1
    for model in arguments.models:
        ref = ModelRef.parse(model)
        folder = arguments.out
        if folder is not None and several:
            folder = folder / (Path(ref.path).name if Path(ref.path).is_dir() else str(ref).replace("/", "--"))
        scores = score_general(ref, names, data=data_folders(arguments.data), out=folder, options=options)
        print(f"{model}\n{table(scores)}" if several else table(scores))
        if folder:
            print(f"scores and answers: {', '.join(str(folder / f'{one.task}.json') for one in scores)}")


def table(scores: Sequence[GeneralScores]) -> str:
    """One line a task and metric."""
    from sftknow.report.terminal import text_table

    rows = []
    for one in scores:
        for metric in one.metrics:
            value = f"{100 * metric.value:.2f} ± {100 * metric.stderr:.2f}"
            shots = f"{one.few_shot} examples shown" if one.few_shot else "no examples"
            rows.append([f"{one.task} {metric.name}", value, f"{metric.count:,}", shots, one.data])
    return text_table(["task and metric", "%", "rows", "prompt", "data"], rows)
