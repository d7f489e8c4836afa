"""Scoring loaded models on the cbqa_mastery tasks in one process, through lm-eval's own tasks and statistics.

The command ``lm_eval --model hf --tasks cbqa_mastery`` gives the same numbers to the last digit at the same batch size
and dtype. What is spared here: tasks are built and questions tokenised once for any number of models, a model that is
in memory is not loaded again, an evaluation that was cut off goes on, and one progress bar is shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from sftknow.artifacts.choice import ENDED
from sftknow.artifacts.files import digest
from sftknow.artifacts.journal import Journal, journal_name
from sftknow.artifacts.scores import METRICS
from sftknow.dependencies import needs
from sftknow.errors import MasteryDataError, ModelError
from sftknow.evaluation.dataset import Questions, open_dataset
from sftknow.evaluation.examples import EXAMPLE_END, FEWSHOT_SEED
from sftknow.evaluation.generation import Batch, Said, answer, make_batches, padded_tokenizer
from sftknow.evaluation.lm_eval_task import own_facts_notes
from sftknow.evaluation.quiet import quiet_evaluation
from sftknow.models.loading import find_device, load_model, load_tokenizer
from sftknow.models.notes import ModelNotes
from sftknow.progress import progress
from sftknow.records import BUCKETS, SPLITS, EvalRun, MetricValue, ModelRef, QuestionResult, Split
from sftknow.resources import task_folder

with needs("lm_eval"):
    from lm_eval.api.metrics import mean, mean_stderr
    from lm_eval.tasks import TaskManager

AUTO_BATCH = 128
"""Questions a batch where the batch size is ``auto``; prompts are short, and lm-eval's own search takes longer."""

_TOGETHER: tuple[tuple[Split, ...], ...] = (("test", "testood"), ("dev",), ("train",))
"""Splits whose questions share batches: those of one lm-eval group, as one command would put them together."""


@dataclass(frozen=True, kw_only=True)
class _Leaf:
    """One bucket's task with its questions."""

    name: str
    split: Split
    bucket: int
    task: Any
    documents: Sequence[Mapping[str, Any]]
    """Empty where the bucket is."""
    prompts: Sequence[str]
    """What lm-eval would show for each document."""


@dataclass(frozen=True, kw_only=True)
class _Tasks:
    """One split's group with its leaves, and what they were built for."""

    group: Any
    leaves: Sequence[_Leaf]
    built_for: tuple[str, frozenset[str] | None, str | None]
    """What stands before every prompt, of the split ``train`` the facts that were asked for, and the chat template."""
    notes: Sequence[str]


class Harness:
    """Scores models on one graded data set.

    Args:
        dataset: folder of the data set, its name on the Hub, or what `find_dataset` found.
        splits: which parts to score: ``test`` and ``testood`` are the group ``cbqa_mastery``.
        batch_size: questions a batch; ``auto`` is `AUTO_BATCH`.
        device: where `score_path` loads to: as `load_model` takes it; ``auto`` is a GPU where there is one.
        limit: score only the first questions of every bucket, as lm-eval's ``--limit``; for trying things out.
        few_shot: solved training facts before every question, as lm-eval's ``--num_fewshot``.

    Attributes:
        questions: the data set, how it was found, and what a reader of the scores has to know of it.

    Raises:
        MasteryDataError: it is not a whole graded data set.
        HubError: the Hub refused or could not be reached.
        DeviceError: this machine lacks the device.
    """

    def __init__(
        self,
        dataset: Path | str | Questions,
        *,
        splits: Sequence[Split] = ("test", "testood"),
        batch_size: int | Literal["auto"] = "auto",
        device: str = "auto",
        limit: int | None = None,
        few_shot: int = 0,
    ) -> None:
        self.questions = dataset if isinstance(dataset, Questions) else open_dataset(str(dataset))
        self._splits = tuple(split for split in SPLITS if split in splits)
        self._batch_size = AUTO_BATCH if batch_size == "auto" else batch_size
        find_device(device)  # refused before any work
        self._device = device
        self._limit = limit
        self._few_shot = few_shot
        self._tasks: dict[Split, _Tasks] = {}
        self._batches: dict[tuple[Split, ...], tuple[str, list[Batch]]] = {}

    def score(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        fact_ids: Collection[str] | None = None,
        work: str | Path | None = None,
        key: str = "",
        chat: bool = False,
    ) -> EvalRun:
        """Score a loaded model where it is, in the dtype that it has. Its weights may be others at the next call.

        Args:
            model: a transformers causal language model; it is put into eval mode. Its generation configuration says
                where an answer ends and nothing else (`sftknow.evaluation.greedy`).
            tokenizer: its tokenizer.
            name: the model's name in the result.
            fact_ids: the model's own training facts, for the split ``train``; None scores the whole split.
            work: a folder for the answers given so far. A second call with the same folder, key and questions goes on
                where the first was cut off; `write_eval` to that folder clears them away.
            key: identifies the weights; needed with `work`.
            chat: ask in the tokenizer's own chat template, as ``lm_eval --apply_chat_template`` does, in place of the
                prompt of fine-tuning.

        Raises:
            MasteryDataError: the data set has no question for these splits, or is damaged.
            ModelError: the model has no end token, or no chat template.
        """
        work = None if work is None else Path(work)
        if chat and self._few_shot:
            raise ModelError(
                "examples are shown in the prompt of fine-tuning, not in a chat template; ask for one of both"
            )
        if chat and not tokenizer.chat_template:
            raise ModelError(f"{tokenizer.name_or_path or 'the tokenizer'} has no chat template to ask {name} in")
        if work is not None and not key:
            raise ValueError("work needs a key that identifies the weights")
        model.eval()
        padded = padded_tokenizer(tokenizer, model.config)
        with quiet_evaluation():
            tasks = {
                split: self._split(split, padded.bos_token or "", fact_ids, padded if chat else None)
                for split in self._splits
            }
            total = sum(len(leaf.documents) for part in tasks.values() for leaf in part.leaves)
            if not total:
                raise MasteryDataError(f"{self.questions.name} has no question in {', '.join(self._splits)}")
            outputs: dict[str, list[Said]] = {}
            with progress(total, f"evaluating {name}", unit="questions") as bar:
                for together in _TOGETHER:
                    parts = tuple(split for split in together if split in tasks)
                    if not parts:
                        continue
                    leaves = [leaf for split in parts for leaf in tasks[split].leaves]
                    batches, made_of = self._make_batches(parts, leaves, padded, model.config)
                    whole_key = digest(
                        [key, made_of, str(getattr(model, "dtype", "")), str(model.device), _versions(), Said._fields]
                    )
                    journal = Journal(work / journal_name(parts) if work else None, whole_key)
                    answers = answer(model, padded, batches, journal=journal, tick=lambda count: bar.update(count))
                    if self._few_shot:
                        answers = [_first(said) for said in answers]
                    for leaf in leaves:
                        outputs[leaf.name] = answers[: len(leaf.documents)]
                        answers = answers[len(leaf.documents) :]
        return self._run(name, tasks, outputs, str(getattr(model, "dtype", "")).removeprefix("torch.") or None)

    def score_path(
        self, ref: ModelRef, *, name: str, work: str | Path | None = None, key: str = "", chat: bool = False
    ) -> EvalRun:
        """Load a model and score it; the split ``train`` takes the training facts from its ``sftknow.json``.

        Args:
            ref: folder or Hub id.
            name: the model's name in the result.
            work: as for `score`.
            key: as for `score`.
            chat: as for `score`.

        Raises:
            ModelError: the model or its tokenizer cannot be loaded.
            MasteryDataError: as `score`.
        """
        work = None if work is None else Path(work)
        fact_ids = (ModelNotes(ref).training_facts or None) if "train" in self._splits else None
        model, tokenizer = load_model(ref, device=self._device), load_tokenizer(ref)
        return self.score(model, tokenizer, name=name, fact_ids=fact_ids, work=work, key=key, chat=chat)

    def _split(self, split: Split, prefix: str, fact_ids: Collection[str] | None, chat: Any) -> _Tasks:
        """The split's tasks: those of the model before where nothing differs, else new ones."""
        own = frozenset(fact_ids) if split == "train" and fact_ids is not None else None
        built = self._tasks.get(split)
        wanted = (prefix, own, str(chat.chat_template) if chat else None)
        if built is None or built.built_for != wanted:
            built = self._tasks[split] = self._build(split, wanted, chat)
        return built

    def _build(self, split: Split, wanted: tuple[str, frozenset[str] | None, str | None], chat: Any) -> _Tasks:
        """The tasks, with prompts in the chat template of a tokenizer where there is one."""
        prefix, own, _ = wanted
        template = {} if chat is None else {"apply_chat_template": True, "chat_template": _templated(chat)}
        metadata = {
            "mastery_dataset": self.questions.name,
            "prompt_prefix": prefix,
            **({"fact_ids": sorted(own)} if own is not None else {}),
        }
        manager = TaskManager(include_path=str(task_folder()), include_defaults=False, metadata=metadata)
        name = f"cbqa_mastery_{split}"
        loaded = manager.load([name])
        leaves = []
        for bucket in BUCKETS:
            task = loaded["tasks"][f"{name}_bucket_{bucket}"]
            documents = [
                document for _, document in task.doc_iterator(limit=self._limit) if not document["placeholder"]
            ]
            prompts = [task.fewshot_context(document, num_fewshot=self._few_shot, **template) for document in documents]
            leaves.append(
                _Leaf(name=task.task_name, split=split, bucket=bucket, task=task, documents=documents, prompts=prompts)
            )
        notes = own_facts_notes(self.questions, own) if split == "train" else []
        return _Tasks(group=loaded["groups"][name], leaves=leaves, built_for=wanted, notes=notes)

    def _make_batches(
        self, parts: tuple[Split, ...], leaves: Sequence[_Leaf], tokenizer: Any, config: Any
    ) -> tuple[list[Batch], str]:
        """The batches of these splits, and what identifies them; made anew for another tokenizer or other questions."""
        prompts = [prompt for leaf in leaves for prompt in leaf.prompts]
        made_of = digest([prompts, _tokenizer_key(tokenizer), self._batch_size, _positions(config)])
        known = self._batches.get(parts)
        if known is None or known[0] != made_of:
            batches = make_batches(prompts, tokenizer, batch_size=self._batch_size, config=config)
            known = self._batches[parts] = (made_of, batches)
        return known[1], made_of

    def _run(
        self, name: str, tasks: Mapping[Split, _Tasks], outputs: Mapping[str, Sequence[Said]], dtype: str | None
    ) -> EvalRun:
        questions: list[QuestionResult] = []
        metrics: dict[str, dict[str, Any]] = {}
        leaves = [leaf for part in tasks.values() for leaf in part.leaves]
        for leaf in leaves:
            answers = _results(leaf, outputs[leaf.name])
            questions += answers
            metrics[leaf.name] = _leaf_metrics(answers)
        with quiet_evaluation():
            for part in tasks.values():
                metrics[part.group.name] = part.group.aggregate(metrics) | _ended_mean(
                    [found for leaf in part.leaves if f"{ENDED},none" in (found := metrics[leaf.name])]
                )
        repo = self.questions.repo
        shown = f"{self._few_shot} solved training questions stand before each question (seed {FEWSHOT_SEED})"
        return EvalRun(
            model=name,
            dataset_fingerprint=self.questions.data.fingerprint,
            graded_by=self.questions.data.graded_by,
            dtype=dtype,
            dataset_repo=repo.repo_id if repo else None,
            dataset_revision=repo.commit if repo else None,
            notes=(
                *self.questions.notes,
                *[shown][: self._few_shot],
                *(note for part in tasks.values() for note in part.notes),
            ),
            metrics=tuple(value for task, found in metrics.items() for value in _metric_values(task, found)),
            missing=tuple(leaf.name for leaf in leaves if not leaf.documents),
            questions=tuple(questions),
        )


def _templated(tokenizer: Any) -> Callable[..., str]:
    """What puts messages into a tokenizer's chat template, as lm-eval's model type ``hf`` does."""

    def apply(history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        return str(
            tokenizer.apply_chat_template(
                history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    return apply


def _tokenizer_key(tokenizer: Any) -> str:
    """Identifies what a tokenizer does with a text; another object of the same content has the same key."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else f"{id(tokenizer)}"
    return digest([content, tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token_id])


def _positions(config: Any) -> Any:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return [getattr(text, name, None) for name in ("n_positions", "max_position_embeddings", "n_ctx")]


def _versions() -> list[str]:
    return [torch.__version__, transformers.__version__]


def _first(said: Said) -> Said:
    """The answer up to where the next example would begin."""
    text, end, _ = said.text.partition(EXAMPLE_END)
    return Said(text, said.ended or bool(end))


def _ended_mean(leaves: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many answers of a group end by themselves: the plain mean over its tasks, as lm-eval's own aggregation."""
    if not leaves:
        return {}
    errors = [leaf[f"{ENDED}_stderr,none"] for leaf in leaves]
    return {
        f"{ENDED},none": sum(leaf[f"{ENDED},none"] for leaf in leaves) / len(leaves),
        f"{ENDED}_stderr,none": "N/A" if "N/A" in errors else math.hypot(*errors) / len(leaves),
    }


def _results(leaf: _Leaf, outputs: Sequence[Said]) -> list[QuestionResult]:
    results = []
    for document, said in zip(leaf.documents, outputs, strict=True):
        scores = leaf.task.process_results(document, [said.text])
        results.append(
            QuestionResult(
                fact_id=document["fact_id"],
                split=leaf.split,
                bucket=leaf.bucket,
                output=said.text,
                ended=said.ended,
                **{metric: bool(scores[metric]) for metric in METRICS},
            )
        )
    return results


def _leaf_metrics(answers: Sequence[QuestionResult]) -> dict[str, Any]:
    """lm-eval's metrics of one task, in its own form, so that its groups can aggregate them."""
    found: dict[str, Any] = {"sample_len": len(answers)}
    for metric in (*METRICS, ENDED) if answers else ():
        values = [float(getattr(answer, metric)) for answer in answers]
        found[f"{metric},none"] = mean(values)
        found[f"{metric}_stderr,none"] = mean_stderr(values) if len(values) > 1 else "N/A"
    return found


def _metric_values(task: str, found: Mapping[str, Any]) -> list[MetricValue]:
    values = []
    for metric in (*METRICS, ENDED):
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
