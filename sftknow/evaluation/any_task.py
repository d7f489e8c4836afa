"""Any task of lm-eval, row by row: what a loaded model scores on rows of one's choice."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sftknow.dependencies import needs
from sftknow.errors import GeneralTaskError, SftknowError, first_line
from sftknow.evaluation.quiet import quiet_evaluation
from sftknow.resources import task_folder

with needs("lm_eval"):
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

_USUAL = ("acc", "exact_match", "acc_norm", "f1")
"""Metrics that stand for a task with several, in this order."""


class AnyTask:
    """A task or group of lm-eval with its documents.

    Args:
        name: as lm-eval knows it, or the path of a task's YAML file.
        batch_size: prompts a batch.

    Attributes:
        rows: ids of all documents.
        metric: the one that counts, as lm-eval names it.

    Raises:
        GeneralTaskError: there is no such task, its data cannot be had, or no metric has a value for each document.
    """

    def __init__(self, name: str, *, batch_size: int = 16) -> None:
        self._name, self._batch_size = name, batch_size
        places, wanted = [str(task_folder())], name
        if name.endswith((".yaml", ".yml")):
            file = Path(name).expanduser()
            named = re.search(r"^task:\s*(\S+)", file.read_text(), re.MULTILINE) if file.is_file() else None
            if named is None:
                raise GeneralTaskError(f"{name} is no YAML file of a task of lm-eval (with a line `task: name`)")
            places, wanted = [*places, str(file.parent)], named[1].strip("'\"")
        try:
            with quiet_evaluation():
                manager = TaskManager(include_path=places)
                if wanted not in manager.all_tasks:
                    raise GeneralTaskError(
                        f"lm-eval has no task {wanted}; give one that `lm-eval ls tasks` lists, the YAML file of a "
                        "task of your own, or a JSONL file of prompts and answers"
                    )
                self._tasks: dict[str, Any] = manager.load(wanted)["tasks"]
            self.rows = [f"{task}/{i}" for task, one in self._tasks.items() for i in range(len(one.eval_docs))]
        except SftknowError:
            raise
        except Exception as error:  # whatever the task's own code or data raises
            raise GeneralTaskError(f"the task {wanted} of lm-eval cannot be used: {first_line(error)}") from error
        self.metric = _metric(name, list(self._tasks.values()))

    def scores(self, model: Any, tokenizer: Any, rows: Sequence[str]) -> Mapping[str, float]:
        """The metric of each of these rows, by id.

        Args:
            model: a transformers causal language model.
            tokenizer: its tokenizer.
            rows: of `rows`.

        Raises:
            GeneralTaskError: the metric has no value for a row.
        """
        wanted: dict[str, list[int]] = {}
        for row in rows:
            task, _, place = row.rpartition("/")
            wanted.setdefault(task, []).append(int(place))
        if not wanted:
            return {}
        if tokenizer.pad_token is None:
            tokenizer = copy.deepcopy(tokenizer)  # lm-eval sets one, and the caller's tokenizer stays as it was
        tasks = {task: self._tasks[task] for task in wanted}
        with quiet_evaluation(), torch.inference_mode():
            lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=self._batch_size)
            found = evaluate(
                lm, {"tasks": tasks, "groups": {}}, samples={task: sorted(places) for task, places in wanted.items()}
            )
        scores: dict[str, float] = {}
        for task, samples in found["samples"].items():
            for sample in samples:
                if not isinstance(sample.get(self.metric), (int, float)):
                    raise GeneralTaskError(
                        f"{self._name} has no {self.metric} for each document by itself; give a task with acc or "
                        "exact_match"
                    )
                scores.setdefault(f"{task}/{sample['doc_id']}", float(sample[self.metric]))  # by the first filter
        return scores


def _metric(name: str, tasks: Sequence[Any]) -> str:
    """The metric that all these tasks have, higher being better."""
    common = [m for m, up in tasks[0].higher_is_better().items() if up] if tasks else []
    common = [m for m in common if all(task.higher_is_better().get(m) for task in tasks)]
    if not common:
        raise GeneralTaskError(f"{name} has no metric that all its tasks have, higher being better; give a single task")
    return next((m for m in _USUAL if m in common), common[0])
