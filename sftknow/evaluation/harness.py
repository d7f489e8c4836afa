"""Scoring loaded models on the cbqa_mastery tasks in one process, through lm-eval's own tasks, model and statistics.

The command ``lm_eval --model hf --tasks cbqa_mastery`` gives the same numbers. What is spared here: tasks and questions
are built once for any number of models, a model that is in memory is not loaded again, and one progress bar is shown.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lm_eval.api.metrics import mean, mean_stderr
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from sftknow.errors import MasteryDataError, ModelError
from sftknow.evaluation.dataset import training_facts
from sftknow.evaluation.prefix import needed_prefix
from sftknow.evaluation.scoring import METRICS
from sftknow.progress import progress
from sftknow.records import BUCKETS, EvalRun, MetricValue, ModelRef, QuestionResult, Split
from sftknow.resources import task_folder
from sftknow.storage.mastery_data import MasteryData
from sftknow.storage.models import find_device, load_model, load_tokenizer, quiet_libraries

AUTO_BATCH = 128
"""Questions a batch where the batch size is ``auto``; prompts are short, and lm-eval's own search takes longer."""


@dataclass(frozen=True, kw_only=True)
class _Leaf:
    """One bucket's task, with the requests that lm-eval built for it."""

    name: str
    split: Split
    bucket: int
    task: Any
    requests: Sequence[Any]
    """lm-eval instances; empty where the bucket is."""


@dataclass(frozen=True, kw_only=True)
class _Tasks:
    """One split's group with its leaves, and what they were built for."""

    group: Any
    leaves: Sequence[_Leaf]
    prefix: str
    fact_ids: tuple[str, ...] | None


class Harness:
    """Scores models on one graded data set.

    Args:
        dataset: folder of the data set.
        splits: which parts to score: ``test`` and ``testood`` are the group ``cbqa_mastery``.
        batch_size: questions a batch; ``auto`` is `AUTO_BATCH`.
        device: where `score_path` loads to: ``cpu``, ``cuda``, ``cuda:1``, or ``auto`` for a GPU where there is one.
        limit: score only the first questions of every bucket, as lm-eval's ``--limit``; for trying things out.

    Raises:
        MasteryDataError: the folder is not a whole graded data set.
        DeviceError: this machine lacks the device.
    """

    def __init__(
        self,
        dataset: Path,
        *,
        splits: Sequence[Split] = ("test", "testood"),
        batch_size: int | Literal["auto"] = "auto",
        device: str = "auto",
        limit: int | None = None,
    ) -> None:
        self._data = MasteryData(dataset)
        self._splits = tuple(splits)
        self._batch_size = AUTO_BATCH if batch_size == "auto" else batch_size
        self._device = str(find_device(device))
        self._limit = limit
        self._tasks: dict[Split, _Tasks] = {}

    def score(self, model: Any, tokenizer: Any, *, name: str, fact_ids: Collection[str] | None = None) -> EvalRun:
        """Score a loaded model where it is, in the dtype that it has.

        Args:
            model: a transformers causal language model; it is put into eval mode.
            tokenizer: its tokenizer.
            name: the model's name in the result.
            fact_ids: the model's own training facts; needed for the split ``train`` only.

        Raises:
            MasteryDataError: the data set has no question for these splits, or ``fact_ids`` are missing.
            ModelError: the tokenizer cannot reproduce the prompt of training, or the model does not stop at its end
                token.
        """
        prefix = needed_prefix(tokenizer)
        _check_end(model, tokenizer, name)
        with _quiet():
            tasks = [self._split(split, prefix, fact_ids) for split in self._splits]
            leaves = [leaf for part in tasks for leaf in part.leaves]
            requests = [request for leaf in leaves for request in leaf.requests]
            if not requests:
                raise MasteryDataError(f"{self._data.folder} has no question in {', '.join(self._splits)}")
            outputs = self._generate(model, tokenizer, requests, name)
            questions: list[QuestionResult] = []
            metrics: dict[str, dict[str, Any]] = {}
            for leaf in leaves:
                answers = _results(leaf, outputs[: len(leaf.requests)])
                outputs = outputs[len(leaf.requests) :]
                questions += answers
                metrics[leaf.name] = _leaf_metrics(answers)
            for part in tasks:
                metrics[part.group.name] = part.group.aggregate(metrics)
        return EvalRun(
            model=name,
            dataset_fingerprint=self._data.fingerprint,
            graded_by=self._data.graded_by,
            metrics=tuple(value for task, found in metrics.items() for value in _metric_values(task, found)),
            missing=tuple(leaf.name for leaf in leaves if not leaf.requests),
            questions=tuple(questions),
        )

    def score_path(self, ref: ModelRef, *, name: str) -> EvalRun:
        """Load a model and score it; the split ``train`` takes the training facts from its ``sftknow.json``.

        Raises:
            ModelError: the model or its tokenizer cannot be loaded.
            MasteryDataError: as `score`.
        """
        fact_ids = training_facts(ref) if "train" in self._splits else None
        model, tokenizer = load_model(ref, device=self._device), load_tokenizer(ref)
        return self.score(model, tokenizer, name=name, fact_ids=fact_ids)

    def _split(self, split: Split, prefix: str, fact_ids: Collection[str] | None) -> _Tasks:
        """The split's tasks: those of the model before where nothing differs, else new ones."""
        if split == "train" and fact_ids is None:
            raise MasteryDataError("the split train needs the model's own training facts: give fact_ids")
        ids = tuple(sorted(fact_ids)) if split == "train" and fact_ids is not None else None
        built = self._tasks.get(split)
        if built is None or built.prefix != prefix or built.fact_ids != ids:
            built = self._tasks[split] = self._build(split, prefix, ids)
        return built

    def _build(self, split: Split, prefix: str, ids: tuple[str, ...] | None) -> _Tasks:
        metadata = {"mastery_dataset": str(self._data.folder), "prompt_prefix": prefix, "fact_ids": ids}
        manager = TaskManager(include_path=str(task_folder()), include_defaults=False, metadata=metadata)
        name = f"cbqa_mastery_{split}"
        loaded = manager.load([name])
        leaves = []
        for bucket in BUCKETS:
            task = loaded["tasks"][f"{name}_bucket_{bucket}"]
            requests = [
                task.construct_requests(
                    doc=document,
                    ctx=task.fewshot_context(document, num_fewshot=0),
                    metadata=(task.task_name, number, 1),
                )
                for number, document in task.doc_iterator(limit=self._limit)
                if not document["placeholder"]
            ]
            leaves.append(_Leaf(name=task.task_name, split=split, bucket=bucket, task=task, requests=requests))
        return _Tasks(group=loaded["groups"][name], leaves=leaves, prefix=prefix, fact_ids=ids)

    def _generate(self, model: Any, tokenizer: Any, requests: Sequence[Any], name: str) -> list[str]:
        """The model's outputs in the order of the requests. Sorting, padding and stopping are lm-eval's."""
        if tokenizer.pad_token is None:
            tokenizer = copy.deepcopy(tokenizer)  # lm-eval sets one, and the caller's tokenizer stays as it was
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=self._batch_size)
        with progress(len(requests), f"evaluating {name}", unit="questions") as bar, torch.inference_mode():
            # lm-eval reports every finished request to this hook; its own bar is off.
            lm.set_cache_hook(_Ticker(bar))
            outputs: list[str] = lm.generate_until(list(requests), disable_tqdm=True)
        return outputs


class _Ticker:
    """Moves a progress bar for every request that lm-eval has finished."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        self._bar.update(1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval and transformers from talking about what is meant so here; errors are still shown."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with quiet_libraries():
            yield
    finally:
        logger.setLevel(level)


def _check_end(model: Any, tokenizer: Any, name: str) -> None:
    """Refuse a model that would talk on: lm-eval drops the end token's text and keeps what comes after it."""
    ends = model.generation_config.eos_token_id
    if tokenizer.eos_token_id not in (ends if isinstance(ends, list) else [ends]):
        raise ModelError(
            f"{name} stops at token {ends}, but its tokenizer's end token is {tokenizer.eos_token_id}; set "
            "eos_token_id in its generation_config.json"
        )


def _results(leaf: _Leaf, outputs: Sequence[str]) -> list[QuestionResult]:
    results = []
    for request, output in zip(leaf.requests, outputs, strict=True):
        scores = leaf.task.process_results(request.doc, [output])
        results.append(
            QuestionResult(
                fact_id=request.doc["fact_id"],
                split=leaf.split,
                bucket=leaf.bucket,
                output=output,
                **{metric: bool(scores[metric]) for metric in METRICS},
            )
        )
    return results


def _leaf_metrics(answers: Sequence[QuestionResult]) -> dict[str, Any]:
    """lm-eval's metrics of one task, in its own form, so that its groups can aggregate them."""
    found: dict[str, Any] = {"sample_len": len(answers)}
    for metric in METRICS if answers else ():
        values = [float(getattr(answer, metric)) for answer in answers]
        found[f"{metric},none"] = mean(values)
        found[f"{metric}_stderr,none"] = mean_stderr(values) if len(values) > 1 else "N/A"
    return found


def _metric_values(task: str, found: Mapping[str, Any]) -> list[MetricValue]:
    values = []
    for metric in METRICS:
        if f"{metric},none" in found:
            stderr = found[f"{metric}_stderr,none"]
            values.append(
                MetricValue(
                    task=task,
                    metric=metric,
                    value=float(found[f"{metric},none"]),
                    stderr=math.nan if stderr == "N/A" else float(stderr),
                    count=int(found["sample_len"]),
                )
            )
    return values
