"""What the YAML files of the cbqa_mastery tasks name: reading one bucket, and scoring one answer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import datasets
from transformers import AutoTokenizer

from sftknow.answers import contains, contains_word, exact_match
from sftknow.errors import MasteryDataError, ModelError, SftknowError
from sftknow.evaluation.dataset import find_dataset, first_line, read_bucket, training_facts
from sftknow.evaluation.prefix import needed_prefix
from sftknow.prompts import question_prompt
from sftknow.records import GradedFact, ModelRef, Split

METRICS: tuple[str, ...] = ("acc", "acc_word", "exact_match")

_FEATURES = datasets.Features(
    {
        "fact_id": datasets.Value("string"),
        "topic": datasets.Value("string"),
        "question": datasets.Value("string"),
        "prompt": datasets.Value("string"),
        "object": datasets.Value("string"),
        "answers": datasets.List(datasets.Value("string")),
        "placeholder": datasets.Value("bool"),
    }
)


class TaskDataError(MasteryDataError, SystemExit):
    """A data set that the tasks cannot use. Uncaught, it ends the lm_eval command with its one line and exit code 1.

    lm-eval has no notion of an error that its user can mend, so that anything else would show a page of its insides.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = f"cbqa_mastery: {message}"


def load_bucket(
    *,
    mastery_split: Split,
    mastery_bucket: int,
    mastery_dataset: str | None = None,
    pretrained: str | None = None,
    prompt_prefix: str | None = None,
    fact_ids: Collection[str] | None = None,
    **model_args: Any,
) -> dict[str, datasets.Dataset]:
    """The questions of one bucket: lm-eval's ``custom_dataset``.

    lm-eval hands over what stands in the leaf's YAML, in ``--metadata`` and in ``--model_args``.

    Args:
        mastery_split: ``train`` holds the model's own training facts only (paper, Table 6).
        mastery_bucket: 0 to 4.
        mastery_dataset: folder or Hub id; None for the one that the model names in its ``sftknow.json``.
        pretrained: the model's folder or Hub id.
        prompt_prefix: stands before every prompt; None for what the model's tokenizer needs.
        fact_ids: of the split ``train`` keep these; None for what the model's ``sftknow.json`` lists.
        model_args: of lm-eval's other model arguments those that a tokenizer is loaded by.

    Returns:
        ``{"test": data set}``; for an empty bucket with a single row marked ``placeholder``, because lm-eval
        breaks on a task without questions. `process_results` gives it no score.

    Raises:
        TaskDataError: there is no usable data set, model manifest or tokenizer.
    """
    try:
        model = _model(pretrained, model_args)
        rows = read_bucket(find_dataset(mastery_dataset, model), mastery_split, int(mastery_bucket))
        if mastery_split == "train":
            rows = _own(rows, fact_ids, model)
        if prompt_prefix is None:
            prompt_prefix = _prefix(model, model_args) if model else ""
    except SftknowError as error:
        raise TaskDataError(str(error)) from None
    documents = [_document(row, prompt_prefix) for row in rows] or [_placeholder(prompt_prefix)]
    return {"test": datasets.Dataset.from_list(documents, features=_FEATURES)}


def process_results(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Score one answer: lm-eval's ``process_results``.

    Args:
        document: a row of `load_bucket`.
        results: the model's output, alone in its list.

    Returns:
        ``acc`` (containment with synonyms, the paper's), ``acc_word`` and ``exact_match``, each 0 or 1; nothing for a
        placeholder, whereby lm-eval's group leaves the bucket out and says so.
    """
    if document["placeholder"]:
        return {}
    output, answers = results[0], document["answers"]
    return {
        "acc": float(contains(output, answers)),
        "acc_word": float(contains_word(output, answers)),
        "exact_match": float(exact_match(output, answers)),
    }


def _document(row: GradedFact, prefix: str) -> dict[str, Any]:
    fact = row.fact
    return {
        "fact_id": fact.id,
        "topic": fact.topic,
        "question": fact.question,
        "prompt": prefix + question_prompt(fact.question),
        "object": fact.object,
        "answers": list(fact.answers),
        "placeholder": False,
    }


def _placeholder(prefix: str) -> dict[str, Any]:
    empty = {"fact_id": "", "topic": "", "question": "", "object": "", "answers": []}
    return {**empty, "prompt": prefix + question_prompt("?"), "placeholder": True}


def _model(pretrained: str | None, model_args: Mapping[str, Any]) -> ModelRef | None:
    if not isinstance(pretrained, str):
        return None
    revision = model_args.get("revision")
    return ModelRef(path=pretrained, revision=str(revision) if revision else None)


def _own(rows: Sequence[GradedFact], fact_ids: Collection[str] | None, model: ModelRef | None) -> list[GradedFact]:
    if fact_ids is None:
        if model is None:
            raise MasteryDataError("cbqa_mastery_train needs --model_args pretrained=MODEL to know its training facts")
        fact_ids = training_facts(model)
    wanted = frozenset(fact_ids)
    return [row for row in rows if row.fact.id in wanted]


def _prefix(model: ModelRef, model_args: Mapping[str, Any]) -> str:
    taken = ("subfolder", "trust_remote_code", "add_bos_token")
    options = {name: model_args[name] for name in taken if model_args.get(name) is not None}
    name = str(model_args.get("tokenizer") or model.path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=model.revision or "main", **options)
    except (OSError, ValueError) as error:
        raise ModelError(f"the tokenizer of {name} cannot be loaded: {first_line(error)}") from None
    return needed_prefix(tokenizer, add_bos_token=options.get("add_bos_token"))
