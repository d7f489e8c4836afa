"""What makes a graded data set a benchmark of the Hub: ``eval.yaml`` in it, ``.eval_results`` in the models.

The Hub shows a model's results, and ranks them on the data set's page, where the data set has an ``eval.yaml`` with
the tasks that the results name (https://huggingface.co/docs/hub/eval-results). Of its frameworks Inspect is the one
that these tasks run in; `sftknow.evaluation.inspect_task` gives the very scores of lm-eval. Whoever has Inspect alone
can run this file too (``inspect eval hf/org/name/TASK``): that accepts the object only, not its synonyms, because
Inspect's reader of such files knows one target a question, and weighs questions alike where a task has several
buckets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, constants, eval_result_entries_to_yaml

from sftknow.artifacts.mastery_data import EVERYTHING
from sftknow.publishing.rendering import SPLIT_WORDS
from sftknow.records import MetricValue, Split

EVAL_YAML = "eval.yaml"
EVAL_RESULTS = ".eval_results/cbqa_mastery.yaml"
"""Where the Hub looks for a model's evaluation results."""

Counts = Mapping[Split, Mapping[int, int]]
"""Facts for each split and bucket."""


def tasks(counts: Counts) -> Iterator[tuple[str, str, str]]:
    """(task, configuration, split) of the questions that models are compared by: those that none is trained on."""
    for split, row in counts.items():
        filled = [bucket for bucket, count in row.items() if count]
        if split != "train" and filled:
            yield f"cbqa_mastery_{split}", EVERYTHING, split
            yield from ((f"cbqa_mastery_{split}_bucket_{bucket}", split, f"bucket_{bucket}") for bucket in filled)


def eval_yaml(repo_id: str, grader: str, counts: Counts) -> str:
    """The ``eval.yaml`` of a graded data set.

    Args:
        repo_id: of the data set.
        grader: name of the model that graded it.
        counts: its facts.
    """
    about = (
        f"Closed-book questions about single facts, in five buckets by how well {grader} knew each fact before any "
        "fine-tuning. The value of a split is the plain mean of its buckets, in percent: whether the greedy answer (16 "
        "tokens) contains the object or a synonym. `inspect eval sftknow/cbqa_mastery_test --model hf/ORG/MODEL` and "
        "`lm_eval --tasks cbqa_mastery` give it alike, both with the Python package sftknow."
    )
    shared = {
        "field_spec": {"input": "question", "target": "object", "metadata": ["fact_id", "bucket"]},
        "solvers": [{"name": "generate", "args": {"max_tokens": 16, "temperature": 0.0}}],
        "scorers": [{"name": "includes", "args": {"ignore_case": False}}],
    }
    content = {
        "name": repo_id.partition("/")[2],
        "description": about,
        "evaluation_framework": "inspect-ai",
        "tasks": [{"id": id, "config": config, "split": split, **shared} for id, config, split in tasks(counts)],
    }
    return _dump(content)


def eval_results(
    values: Mapping[str, MetricValue], *, dataset: str, revision: str | None, source: tuple[str, str]
) -> str | None:
    """A model's ``.eval_results`` file; None where it was scored on nothing that models are compared by.

    Args:
        values: task or group → accuracy by containment.
        dataset: ``org/name`` of the graded data set.
        revision: its commit.
        source: where the numbers come from: what it is called, and its path on the Hub.
    """
    entries = [
        EvalResultEntry(
            dataset_id=dataset,
            task_id=task,
            value=round(100 * value.value, 2),
            dataset_revision=revision,
            source_url=f"{constants.ENDPOINT}/{source[1]}",
            source_name=source[0],
            notes=f"percent of {value.count} questions whose greedy answer contains the object or a synonym",
        )
        for task, value in values.items()
        if task.split("_")[2] in SPLIT_WORDS and task.split("_")[2] != "train"
    ]
    return _dump(eval_result_entries_to_yaml(entries)) if entries else None


def _dump(content: Any) -> str:
    text: str = yaml.dump(content, Dumper=_NoAliases, sort_keys=False, allow_unicode=True, width=120)
    return text


class _NoAliases(yaml.SafeDumper):
    """Writes a value again where it occurs again: people read and mend these files."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
