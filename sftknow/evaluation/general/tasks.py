"""The tasks of general ability by the names that a user gives. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sftknow.errors import GeneralTaskError


@dataclass(frozen=True, kw_only=True)
class GeneralTask:
    """One task, and where its data lie."""

    name: str
    """What the user writes: ``xsum``."""
    lm_eval_name: str
    """The task's name in lm-eval."""
    hub: str
    """Data set on the Hub."""
    hub_config: str | None = None
    hub_revision: str | None = None
    columns: tuple[str, ...]
    """Text columns that every row must have."""
    metrics: Mapping[str, str]
    """Our name of each metric, the task's headline first, and lm-eval's (``metric,filter``)."""
    few_shot: bool
    """Whether it can be asked with examples before the question."""


TASKS: dict[str, GeneralTask] = {
    "xsum": GeneralTask(
        name="xsum",
        lm_eval_name="sftknow_xsum",
        hub="EdinburghNLP/xsum",
        # The repository holds a loading script, which `datasets` no longer runs; this branch is the Hub's conversion.
        hub_config="default",
        hub_revision="refs/convert/parquet",
        columns=("document", "summary"),
        metrics={"rouge1": "rouge1,none", "rouge2": "rouge2,none", "rougeL": "rougeL,none"},
        few_shot=False,
    ),
    "gsm8k": GeneralTask(
        name="gsm8k",
        lm_eval_name="gsm8k",
        hub="openai/gsm8k",
        hub_config="main",
        columns=("question", "answer"),
        metrics={"acc": "exact_match,strict-match", "acc_flexible": "exact_match,flexible-extract"},
        few_shot=True,
    ),
}


def find_task(name: str) -> GeneralTask:
    """The task of that name. Raises GeneralTaskError where there is none."""
    try:
        return TASKS[name]
    except KeyError:
        raise GeneralTaskError(f"there is no general-ability task {name!r}; there are {', '.join(TASKS)}") from None
