"""The class behind every leaf of the cbqa_mastery tasks: lm-eval's own configurable task with graded questions.

The YAML files name it (``class:``), so that the bare ``lm_eval`` command and the in-process harness run the same code.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from huggingface_hub import constants

from sftknow.artifacts.manifests import MANIFEST
from sftknow.checkpoints.completeness import check_files
from sftknow.dependencies import needs
from sftknow.errors import MasteryDataError, SftknowError
from sftknow.evaluation.command_line import CommandLine, local_stamp
from sftknow.evaluation.dataset import Questions, find_dataset
from sftknow.evaluation.examples import EXAMPLE_END, FEWSHOT_SEED, examples, with_examples
from sftknow.evaluation.scoring import documents
from sftknow.models.notes import ModelNotes, training_facts
from sftknow.records import BUCKETS, Fact, GradedFact

with needs("lm_eval"):
    from lm_eval.api.task import ConfigurableTask

_log = logging.getLogger("lm_eval.cbqa_mastery")


class TaskError(MasteryDataError, SystemExit):
    """Something that the user of the ``lm_eval`` command can mend: ends it with one line and exit code 1.

    lm-eval has no notion of such an error, so that anything else would show a page of its insides.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = f"cbqa_mastery: {message}"


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """What the leaves of one command share."""

    questions: Questions
    prefix: str
    pins: Mapping[str, Any]
    """Generation arguments beside those of the YAML."""
    fact_ids: frozenset[str] | None
    """The model's own training facts, where a leaf of the split ``train`` asked for them and it names some."""
    notes: tuple[str, ...]

    @cached_property
    def training_facts(self) -> list[Fact]:
        """Of which examples are drawn: all graded training facts, by id."""
        rows = (row for bucket in BUCKETS for row in self.questions.read("train", bucket))
        return sorted((row.fact for row in rows), key=lambda fact: fact.id)


class _LastCommand:
    """What was prepared for the command whose leaves lm-eval is building, one after the other.

    That spares nine more looks at model and Hub, and a branch that moves on the Hub meanwhile cannot give two leaves
    different questions. A leaf that comes a second time begins another command, and everything is looked at anew.
    """

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._leaves: set[str] = set()
        self._prepared: _Prepared | None = None

    def prepared(self, leaf: str, arguments: str, *, train: bool, stamps: tuple[int, ...]) -> _Prepared:
        """What the leaf shares with those before it; ``stamps`` are the times of local notes."""
        key = (arguments, train, stamps, constants.ENDPOINT)
        if self._prepared is None or key != self._key or leaf in self._leaves:
            self._prepared = None  # an error below must not leave the command before in its place
            self._prepared = _prepare(arguments, train)
            self._key, self._leaves = key, set()
        self._leaves.add(leaf)
        return self._prepared


_last_command = _LastCommand()


def _prepare(arguments: str, train: bool) -> _Prepared:
    """Look at model and data set."""
    command = CommandLine.parse(json.loads(arguments))
    models = [ModelNotes(ref) for ref in command.models]
    given = command.arguments.get("fact_ids")
    prefix = command.arguments.get("prompt_prefix")
    questions = find_dataset(command.mastery_dataset, models)
    notes = list(questions.notes)
    fact_ids: Collection[str] | None = None
    if train:
        fact_ids = given if given is not None else training_facts(models)
        notes += own_facts_notes(questions, fact_ids)
    if prefix is None:
        for ref in command.models:
            check_files(ref)
    return _Prepared(
        questions=questions,
        prefix=command.prefix() if prefix is None else prefix,
        pins=command.generation_pins() if prefix is None else {},
        fact_ids=None if fact_ids is None else frozenset(fact_ids),
        notes=tuple(notes),
    )


def own_facts_notes(questions: Questions, fact_ids: Collection[str] | None) -> list[str]:
    """What has to be said of the split ``train``.

    Raises:
        MasteryDataError: none of the model's training facts is in the data set.
    """
    if fact_ids is None:
        return ["the model names no training facts: the split train is the data set's whole training part"]
    absent = set(fact_ids) - questions.fact_ids("train")
    if absent and len(absent) == len(set(fact_ids)):
        raise MasteryDataError(
            f"none of the model's {len(absent)} training facts is in {questions.name}; name the data set that it was "
            "trained on"
        )
    return [f"{len(absent)} of the model's training facts are not in {questions.name}"] if absent else []


class MasteryTask(ConfigurableTask):  # type: ignore[misc]
    """One bucket of one split.

    Args:
        config: the leaf's YAML, where lm-eval has put ``--model_args`` and ``--metadata`` into ``metadata``.

    Raises:
        TaskError: there is no usable data set, model or tokenizer.
    """

    fewshot_seed = FEWSHOT_SEED

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def download(self, dataset_kwargs: Mapping[str, Any] | None = None, **_: Any) -> None:
        """Find the questions; called by lm-eval when the task is built."""
        where = dict(dataset_kwargs or {})
        split, bucket = where["mastery_split"], int(where["mastery_bucket"])
        own = ("version", "config_source")
        arguments = {key: value for key, value in (self.config.metadata or {}).items() if key not in own}
        try:
            prepared = _last_command.prepared(
                str(self.config.task), _key(arguments), train=split == "train", stamps=_stamps(arguments)
            )
            rows = prepared.questions.read(split, bucket)
        except SftknowError as error:
            raise TaskError(" ".join(str(error).split())) from None
        if split == "train" and prepared.fact_ids is not None:
            rows = [row for row in rows if row.fact.id in prepared.fact_ids]
        self.dataset = {"test": documents(rows, prepared.prefix)}
        self.config.generation_kwargs.update(prepared.pins)
        self._prepared, self._facts = prepared, {row.fact.id: row.fact for row in rows}
        self._record(prepared, rows)

    def set_fewshot_seed(self, seed: int | None = None) -> None:
        """Called by lm-eval with the last number of ``--seed``: decides which examples are drawn."""
        super().set_fewshot_seed(seed)
        self.fewshot_seed = FEWSHOT_SEED if seed is None else seed

    def build_all_requests(self, *, cache_requests: bool = False, **options: Any) -> None:
        """Build the requests; lm-eval's cache of them is refused."""
        if cache_requests:
            raise TaskError(
                "--cache_requests keeps prompts by the task's name alone, so that another data set or model would be "
                "scored with the old prompts; run without it (building them takes seconds)"
            )
        if self.config.num_fewshot:
            self.config.generation_kwargs["until"] = [EXAMPLE_END]
        super().build_all_requests(**options)

    def fewshot_context(
        self,
        doc: Mapping[str, Any],
        num_fewshot: int = 0,
        system_instruction: str | None = None,
        apply_chat_template: bool = False,
        **options: Any,
    ) -> Any:
        """The prompt; with ``--apply_chat_template`` the bare question in the model's own template.

        The template that sftknow saves with its models gives the prompt of training. With ``--num_fewshot`` that many
        solved questions stand before it, a line each: see `sftknow.evaluation.examples`.
        """
        if num_fewshot and apply_chat_template:
            raise TaskError(
                "--num_fewshot shows examples in the prompt of fine-tuning; leave --apply_chat_template out"
            )
        if num_fewshot and not doc["placeholder"]:
            try:
                shown = examples(
                    self._facts[doc["fact_id"]], self._prepared.training_facts, num_fewshot, self.fewshot_seed
                )
            except SftknowError as error:
                raise TaskError(" ".join(str(error).split())) from None
            doc = {**doc, "prompt": with_examples(self._prepared.prefix, shown, doc["question"])}
        if apply_chat_template:
            doc = {**doc, "prompt": doc["question"]}
        elif system_instruction:
            raise TaskError(
                "--system_instruction would change the prompt that the model was trained with; leave it out, or add "
                "--apply_chat_template for a model with a system role"
            )
        return super().fewshot_context(
            doc,
            num_fewshot=0,
            system_instruction=system_instruction,
            apply_chat_template=apply_chat_template,
            **options,
        )

    def _record(self, prepared: _Prepared, rows: list[GradedFact]) -> None:
        """Put into lm-eval's results which questions these are, and say it."""
        questions = prepared.questions
        self.config.metadata = {
            **{key: value for key, value in self.config.metadata.items() if key not in ("fact_ids", "prompt_prefix")},
            "mastery_dataset": questions.repo.repo_id if questions.repo else str(questions.data.folder),
            "mastery_revision": questions.repo.commit if questions.repo else None,
            "mastery_fingerprint": questions.data.fingerprint,
            "mastery_graded_by": questions.data.graded_by,
            "mastery_named_by": questions.named_by,
            "mastery_questions": len(rows),
            "mastery_notes": list(prepared.notes),
        }
        _log.info(
            f"{self.config.task}: {len(rows)} questions of {questions.name} ({questions.named_by}; graded by "
            f"{questions.data.graded_by}; fingerprint {questions.data.fingerprint[:12]})"
        )
        if not rows:
            _log.warning(f"{self.config.task}: the bucket is empty; the mean of its group leaves it out")
        for note in prepared.notes:
            _log.warning(f"{self.config.task}: {note}")


def _key(arguments: Mapping[str, Any]) -> str:
    """The arguments as text. Models and tokenizers in memory, which a program may hand to lm-eval, have no name."""
    objects = ("pretrained", "tokenizer", "peft")
    kept = {key: value for key, value in arguments.items() if key not in objects or isinstance(value, str)}
    return json.dumps(kept, sort_keys=True, default=repr)


def _stamps(arguments: Mapping[str, Any]) -> tuple[int, ...]:
    places = [arguments.get(key) for key in ("mastery_dataset", "pretrained", "peft")]
    names = (MANIFEST, "README.md", "tokenizer.json", "generation_config.json")
    return tuple(local_stamp(place, name) for place in places if isinstance(place, str) for name in names)
