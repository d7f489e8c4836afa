"""The tasks of general ability by the names that a user gives; others can be added (docs/extending/evaluation-task.md).

Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sftknow.errors import GeneralTaskError
from sftknow.registry import Registry

ARTICLE_WORDS = 1000
"""Of an article so many words are shown. Most are shorter; a model with a short context needs fewer."""

ROUGE_SCORER = ("rouge_score.rouge_scorer", "xsum")

_NUMBER = re.compile(r"####\s*-?[0-9.,]+")


@dataclass(frozen=True, kw_only=True)
class GeneralTask:
    """One task, and where its data lie."""

    name: str
    """What the user writes: ``xsum``."""
    lm_eval_name: str
    """The task's name in lm-eval."""
    folder: Path | None = None
    """Where the task's YAML lies; None for a task of lm-eval in its folder of that name, and for those that ship."""
    hub: str
    """Data set on the Hub."""
    hub_config: str | None = None
    """The folder of the repository that holds its files, where it has several."""
    hub_revision: str | None = None
    columns: tuple[str, ...]
    """Text columns that every row must have."""
    metrics: Mapping[str, str]
    """Our name of each metric, the task's headline first, and lm-eval's (``metric,filter``)."""
    few_shot: bool
    """Whether it can be asked with examples before the question."""
    needs: tuple[str, str] | None = None
    """A module that scoring imports and the extra of sftknow that brings it; asked for before a model answers."""
    fault: Callable[[Mapping[str, str]], str | None] | None = None
    """Says of a row what makes it unusable, None of one that is not; rows without text are refused before."""
    prepare: Callable[[Mapping[str, str], int], dict[str, str]] | None = None
    """Makes the row that is shown, for training and evaluation alike, of a row and ``--article-words``."""


TASKS: Registry[GeneralTask] = Registry("general-ability task", GeneralTaskError)
"""Every task by its name."""


def find_task(name: str) -> GeneralTask:
    """The task of that name. Raises GeneralTaskError where there is none."""
    return TASKS.get(name)


def shortened(row: Mapping[str, str], words: int) -> dict[str, str]:
    """The row with the article's first words, one space apart; line breaks would look like the end of a summary."""
    return {"document": " ".join(row["document"].split()[:words]), "summary": " ".join(row["summary"].split())}


def _without_number(row: Mapping[str, str]) -> str | None:
    return None if _NUMBER.search(row["answer"]) else "the answer has no '#### number' at its end"


TASKS.register("xsum")(
    GeneralTask(
        name="xsum",
        lm_eval_name="sftknow_xsum",
        hub="EdinburghNLP/xsum",
        # The repository holds a loading script, which `datasets` no longer runs; this branch is the Hub's conversion.
        hub_config="default",
        hub_revision="refs/convert/parquet",
        columns=("document", "summary"),
        metrics={"rouge1": "rouge1,none", "rouge2": "rouge2,none", "rougeL": "rougeL,none"},
        few_shot=False,
        needs=ROUGE_SCORER,
        prepare=shortened,
    )
)
TASKS.register("gsm8k")(
    GeneralTask(
        name="gsm8k",
        lm_eval_name="gsm8k",
        hub="openai/gsm8k",
        hub_config="main",
        columns=("question", "answer"),
        metrics={"acc": "exact_match,strict-match", "acc_flexible": "exact_match,flexible-extract"},
        few_shot=True,
        fault=_without_number,
    )
)
