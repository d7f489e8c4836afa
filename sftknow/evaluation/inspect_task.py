"""The cbqa_mastery tasks for Inspect: the questions, prompts and scores of the YAML files that lm-eval reads.

    inspect eval sftknow/cbqa_mastery_test --model hf/org/model
    inspect eval sftknow/cbqa_mastery_testood --model hf/org/model -T mastery_dataset=org/facts-graded

Inspect finds them by the entry point ``inspect_ai`` of this package. A model that Inspect runs itself (``hf/…``) is
shown the very token ids of training, whatever its chat template, and answers greedily, whatever its
``generation_config.json`` says. A model behind a server is sent the bare question, to which the server applies the
model's own chat template: that which sftknow saves beside its models gives the prompt of training.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageUser, GenerateConfig, get_model
from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, metric, scorer
from inspect_ai.solver import Generate, Solver, TaskState, solver
from transformers import GenerationConfig

from sftknow.artifacts.scores import METRICS
from sftknow.dependencies import needs
from sftknow.errors import SftknowError
from sftknow.evaluation.dataset import Questions, find_dataset
from sftknow.evaluation.greedy import MAX_NEW_TOKENS, end_tokens
from sftknow.evaluation.scoring import process_results
from sftknow.models.notes import ModelNotes, training_facts
from sftknow.prompts import prompt_ids, prompt_text
from sftknow.records import BUCKETS, ModelRef, Split

with needs("inspect_ai"):
    from inspect_ai._util.error import PrerequisiteError

BATCH = 128
"""Questions at once, as in `sftknow.evaluation.harness`."""

_AS_IT_IS = "{{ messages[0]['content'] }}"
"""A chat template that shows the text and nothing else."""


@task
def cbqa_mastery_dev(mastery_dataset: str | None = None) -> Task:
    """In-domain facts to choose by."""
    return _task("dev", mastery_dataset)


@task
def cbqa_mastery_test(mastery_dataset: str | None = None) -> Task:
    """In-domain facts (paper, section 3)."""
    return _task("test", mastery_dataset)


@task
def cbqa_mastery_testood(mastery_dataset: str | None = None) -> Task:
    """Out-of-domain facts."""
    return _task("testood", mastery_dataset)


@task
def cbqa_mastery_train(mastery_dataset: str | None = None) -> Task:
    """The model's own training facts; all of the data set where it names none."""
    return _task("train", mastery_dataset)


def _task(split: Split, asked: str | None) -> Task:
    """One split's questions, the buckets in their order; a bucket without a question is left out of the mean.

    Args:
        split: part of the graded data set.
        asked: the data set, as ``--metadata mastery_dataset=`` in lm-eval; None for the one that the model names.
    """
    try:
        models = _notes()
        questions = find_dataset(asked, models, way_out="pass -T mastery_dataset=FOLDER or org/name@revision")
        only = training_facts(models) if split == "train" else None
        samples = list(_samples(questions, split, only))
    except SftknowError as error:
        raise PrerequisiteError(f"cbqa_mastery: {' '.join(str(error).split())}") from None
    return Task(
        dataset=MemoryDataset(samples, name=questions.name),
        solver=ask(),
        scorer=readings(),
        config=GenerateConfig(max_tokens=MAX_NEW_TOKENS, temperature=0.0, max_connections=BATCH),
        metadata={
            "mastery_dataset": questions.name,
            "mastery_fingerprint": questions.data.fingerprint,
            "mastery_graded_by": questions.data.graded_by,
            "mastery_notes": list(questions.notes),
        },
    )


def _notes() -> list[ModelNotes]:
    """The notes of a model that Inspect runs itself; nothing is known of others."""
    api: Any = get_model().api
    return [ModelNotes(ModelRef(path=str(api.model.name_or_path)))] if hasattr(api, "hf_chat") else []


def _samples(questions: Questions, split: Split, only: tuple[str, ...] | None) -> Iterator[Sample]:
    wanted = None if only is None else set(only)
    for bucket in BUCKETS:
        for row in questions.read(split, bucket):
            if wanted is None or row.fact.id in wanted:
                yield Sample(
                    id=row.fact.id,
                    input=row.fact.question.strip(),
                    target=list(row.fact.answers),
                    metadata={"bucket": bucket, "topic": row.fact.topic},
                )


@solver
def ask() -> Solver:
    """Show the prompt of training and take the greedy answer."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        api: Any = get_model().api
        if not hasattr(api, "hf_chat"):
            return await generate(state)
        state.user_prompt.text = _prompt(api, state.input_text)
        state = await generate(state)
        end = api.tokenizer.decode(api.tokenizer.eos_token_id) if api.tokenizer.eos_token_id is not None else ""
        state.output.completion = state.output.completion.split(end)[0] if end else state.output.completion
        return state

    return solve


def _prompt(api: Any, question: str) -> str:
    """The prompt's text for a model that Inspect runs, which is set up to take it as it is.

    Raises:
        PrerequisiteError: Inspect would show the model other token ids than those of training.
    """
    api.chat_template, api.use_chat_template, api.do_sample = _AS_IT_IS, True, False
    api.tokenizer_call_args = {"add_special_tokens": False}
    ends = end_tokens(api.model.generation_config, api.tokenizer)
    api.model.generation_config = GenerationConfig(eos_token_id=ends)
    prompt = prompt_text(api.tokenizer, question)
    shown = api.tokenizer(api.hf_chat([ChatMessageUser(content=prompt)], []), **api.tokenizer_call_args)["input_ids"]
    if shown != prompt_ids(api.tokenizer, question):
        raise PrerequisiteError("cbqa_mastery: Inspect would not show this model the prompt of training")
    return prompt


@metric
def bucket() -> Metric:
    """Each bucket's share of right answers and their plain mean, worked out as lm-eval does it."""

    def shares(scores: list[SampleScore]) -> dict[str, float]:
        found: dict[str, float] = {}
        for number in BUCKETS:
            values = [one.score.as_float() for one in scores if (one.sample_metadata or {}).get("bucket") == number]
            if values:
                found[str(number)] = sum(values) / len(values)
        return {**found, "mean": sum(found.values()) / len(found)} if found else {}

    return shares


@scorer(metrics={name: [bucket()] for name in METRICS})
def readings() -> Scorer:
    """The three readings of a correct answer: containment, whole words, exact match."""

    async def score(state: TaskState, target: Target) -> Score:
        document = {"placeholder": False, "answers": list(target)}
        return Score(value=process_results(document, [state.output.completion]), answer=state.output.completion)

    return score
