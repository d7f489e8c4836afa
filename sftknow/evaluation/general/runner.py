"""Score a loaded model on general-ability tasks through lm-eval: its tasks, prompts, filters, metrics, model class."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import torch

from sftknow.artifacts.files import digest
from sftknow.artifacts.general_scores import GeneralAnswer, GeneralMetric, GeneralScores
from sftknow.dependencies import import_extra, needs
from sftknow.errors import GeneralTaskError, ModelError
from sftknow.evaluation.general.data import load_split
from sftknow.evaluation.general.tasks import ARTICLE_WORDS, GeneralTask
from sftknow.evaluation.quiet import quiet_evaluation
from sftknow.progress import progress
from sftknow.records import TaskExample
from sftknow.resources import task_folder

with needs("lm_eval"):
    from lm_eval.defaults import DEFAULT_OTHER_SEED
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

_CHUNK = 1024
"""Training rows that are rendered at a time."""


class GeneralHarness:
    """One task with its test rows, read and checked once for any number of models.

    Args:
        task: from `sftknow.evaluation.general.tasks.find_task`.
        data: folder of the data; None for the Hub.
        few_shot: examples before each question, drawn from the train split as lm-eval does; None for what lm-eval's
            task has.
        limit: score only the first rows, as lm-eval's ``--limit``.
        batch_size: prompts a batch.
        article_words: words of an article that are shown, for tasks that shorten theirs (XSum).

    Attributes:
        task: as given.
        data: as given.
        article_words: as given.
        few_shot: examples before each question.
        data_sha256: hash of the test rows.

    Raises:
        GeneralTaskError: the data cannot be used, or the task cannot be asked with examples.
        HubError: the Hub refused or could not be reached.
        MissingExtraError: what computes the task's metrics is not installed.
    """

    def __init__(
        self,
        task: GeneralTask,
        data: Path | None,
        *,
        few_shot: int | None = None,
        limit: int | None = None,
        batch_size: int = 16,
        article_words: int = ARTICLE_WORDS,
    ) -> None:
        if task.needs is not None:
            import_extra(*task.needs)
        self.task = task
        self.data = data
        self._limit = limit
        self._batch_size = batch_size
        self.article_words = article_words
        with quiet_evaluation():
            here = task.folder or Path(lm_eval.__file__).parent / "tasks" / task.lm_eval_name
            places = [str(place) for place in (task_folder(), here) if place.is_dir()]
            self._manager = TaskManager(include_path=places, include_defaults=False)
        with needs("lm_eval"):
            index = self._manager.task_index
        if task.lm_eval_name not in index:
            raise GeneralTaskError(f"{task.name}: lm-eval finds no task {task.lm_eval_name} in {', '.join(places)}")
        usual = int((index[task.lm_eval_name].cfg or {}).get("num_fewshot") or 0)
        self.few_shot = usual if few_shot is None else few_shot
        if self.few_shot and not task.few_shot:
            raise GeneralTaskError(f"{task.name} is asked without examples; leave --fewshot out or give 0")
        test = load_split(task, data, "test")
        train = load_split(task, data, "train") if self.few_shot else None
        if train is not None and len(train) < self.few_shot:
            raise GeneralTaskError(
                f"{task.name}: {self.few_shot} examples are wanted before each question and the train split has "
                f"{len(train)}; give more rows or --fewshot 0"
            )
        self.data_sha256 = digest(test.to_list())
        self._built = self._build(test, train, self.few_shot)

    @property
    def count(self) -> int:
        """Rows that are scored."""
        rows = len(self._built.eval_docs)
        return rows if self._limit is None else min(self._limit, rows)

    @property
    def source(self) -> str:
        """Where the data are from: the folder, or the data set on the Hub."""
        return str(self.data) if self.data else self.task.hub

    def train_sha256(self) -> str:
        """Hash of the rows of the train split. Raises as `training_rows`."""
        return digest(load_split(self.task, self.data, "train").to_list())

    def training_rows(self, *, seed: int) -> Iterator[TaskExample]:
        """The task's own train split in a seeded order: what the task shows without examples, and what it expects.

        Raises:
            GeneralTaskError: the data have no usable train split.
        """
        rows = load_split(self.task, self.data, "train")
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
        for start in range(0, len(order), _CHUNK):
            places = order[start : start + _CHUNK]
            task = self._build(rows.select(places), None, 0)
            for place, document in zip(places, task.eval_docs, strict=True):
                yield TaskExample(
                    id=f"train/{place}",
                    prompt=task.fewshot_context(document, num_fewshot=0),
                    completion=f"{task.config.target_delimiter}{task.doc_to_target(document)}",
                )

    def score(self, model: Any, tokenizer: Any, *, name: str) -> GeneralScores:
        """Score a loaded model where it is, in the dtype that it has.

        Args:
            model: a transformers causal language model.
            tokenizer: its tokenizer.
            name: the model's name in the result.

        Raises:
            ModelError: the model's context is too short for the task.
        """
        if tokenizer.pad_token is None:
            tokenizer = copy.deepcopy(tokenizer)  # lm-eval sets one, and the caller's tokenizer stays as it was
        with quiet_evaluation(), torch.inference_mode():
            lm = _WatchedModel(pretrained=model, tokenizer=tokenizer, batch_size=self._batch_size)
            lm.description = f"{self.task.name}: {name}"
            self._check_room(lm, name)
            self._built.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)  # as the command does: every model sees the same
            found = evaluate(lm, {"tasks": {self.task.lm_eval_name: self._built}, "groups": {}}, limit=self._limit)
        results = found["results"][self.task.lm_eval_name]
        return GeneralScores(
            model=name,
            task=self.task.name,
            lm_eval_task=self.task.lm_eval_name,
            few_shot=self.few_shot,
            limit=self._limit,
            data=self.source,
            data_sha256=self.data_sha256,
            metrics=tuple(_metric(ours, theirs, results, self.count) for ours, theirs in self.task.metrics.items()),
            answers=_answers(self.task, found["samples"][self.task.lm_eval_name]),
        )

    def _check_room(self, lm: Any, name: str) -> None:
        """Raise ModelError where the output alone would fill the model's context."""
        longest = int(self._built.config.generation_kwargs.get("max_gen_toks", lm.max_gen_toks))
        if longest >= lm.max_length:
            raise ModelError(
                f"{name} takes {lm.max_length} tokens and {self.task.name} asks for up to {longest} of output alone; "
                "it needs a model with a longer context"
            )

    def _build(self, documents: datasets.Dataset, train: datasets.Dataset | None, few_shot: int) -> Any:
        """lm-eval's own task over these rows. A group is where lm-eval lets a task's settings be replaced."""
        if self.task.prepare is not None:
            shown = [self.task.prepare(row, self.article_words) for row in documents]
            documents = datasets.Dataset.from_list(shown)
        rows = functools.partial(_rows, documents=documents, train=train)
        replaced: dict[str, Any] = {"task": self.task.lm_eval_name, "num_fewshot": few_shot, "custom_dataset": rows}
        if train is None:
            replaced |= {"training_split": None, "fewshot_split": None}
        with quiet_evaluation():
            loaded = self._manager.load({"group": "sftknow_general", "task": [replaced]})
        return loaded["tasks"][self.task.lm_eval_name]


def _rows(*, documents: datasets.Dataset, train: datasets.Dataset | None, **_: Any) -> dict[str, datasets.Dataset]:
    """lm-eval's ``custom_dataset``: rows that are at hand already."""
    return {"test": documents} if train is None else {"test": documents, "train": train}


class _WatchedModel(HFLM):  # type: ignore[misc]
    """lm-eval's model with our bar: finished requests are told to the cache hook, which moves it."""

    description = "evaluating"

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
        with progress(len(requests), self.description, unit="rows") as bar:
            self.set_cache_hook(_Ticker(bar))
            return super().generate_until(requests, disable_tqdm=True)


class _Ticker:
    """Moves a progress bar for every request that lm-eval has finished."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        self._bar.update(1)


def _metric(ours: str, theirs: str, results: Mapping[str, Any], count: int) -> GeneralMetric:
    stderr = results[theirs.replace(",", "_stderr,", 1)]
    return GeneralMetric(
        name=ours,
        lm_eval_name=theirs,
        value=float(results[theirs]),
        stderr=math.nan if stderr == "N/A" else float(stderr),
        count=count,
    )


def _answers(task: GeneralTask, samples: Sequence[Mapping[str, Any]]) -> tuple[GeneralAnswer, ...]:
    """One answer a row; lm-eval has one sample for each row and filter."""
    answers: dict[int, GeneralAnswer] = {}
    for sample in samples:
        scores = {
            ours: float(sample[metric])
            for ours, (metric, filtered) in ((name, full.split(",")) for name, full in task.metrics.items())
            if filtered == sample["filter"]
        }
        row = int(sample["doc_id"])
        before = answers[row].scores if row in answers else {}
        answers[row] = GeneralAnswer(
            row=row,
            prompt=sample["arguments"][0][0],
            expected=str(sample["target"]),
            output=sample["resps"][0][0],
            scores={**before, **scores},
        )
    return tuple(answers[row] for row in sorted(answers))
