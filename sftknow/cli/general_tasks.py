"""`--tasks` and `--data` of several commands: the general-ability tasks (xsum, gsm8k and those that were added)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sftknow.cli.options import add_options, comma_separated
from sftknow.errors import GeneralTaskError
from sftknow.evaluation.options import GeneralOptions
from sftknow.records import ModelRef

if TYPE_CHECKING:
    from sftknow.artifacts.general_scores import GeneralScores

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
    add_options(parser, GeneralOptions, "article_words")


def add_tasks(parser: argparse.ArgumentParser) -> None:
    """``--tasks`` of `sftknow evaluate`, with ``--data`` and ``--fewshot``."""
    parser.add_argument(
        "--tasks",
        default=QUESTIONS,
        metavar="A,B",
        help=f"of {QUESTIONS} (default) and, for general ability, xsum, gsm8k and those that you added",
    )
    add_options(parser, GeneralOptions, fewshot="few_shot")
    add_data(parser)


def split_tasks(text: str) -> tuple[list[str], bool]:
    """The general-ability tasks in ``--tasks``, and whether the questions are asked for too."""
    names = list(dict.fromkeys(name for name in comma_separated(text) if name))
    return [name for name in names if name != QUESTIONS], QUESTIONS in names or not names


def data_folders(texts: Sequence[str], tasks: Sequence[str]) -> dict[str, Path]:
    """``--data`` as folders by task. Raises GeneralTaskError for a task that is unknown or was not asked for."""
    from sftknow.run.general_ability import check_tasks

    folders = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder):
            raise GeneralTaskError(f"--data {text}: give a task and a folder, such as --data xsum=path/to/xsum")
        folders[name] = Path(folder).expanduser()
    check_tasks(tasks, folders)
    return folders


def score(
    models: Sequence[str], names: Sequence[str], data: Mapping[str, Path], out: Path | None, options: GeneralOptions
) -> None:
    """Score models on these tasks and print a table for each."""
    from sftknow.run.general_ability import score_general

    several = len(models) > 1
    for model in models:
        ref = ModelRef.parse(model)
        folder = out
        if folder is not None and several:
            folder = folder / (Path(ref.path).name if Path(ref.path).is_dir() else str(ref).replace("/", "--"))
        scores = score_general(ref, names, data=data, out=folder, options=options)
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
