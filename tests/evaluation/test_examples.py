"""Solved questions before a question: the same by lm-eval and in process, and never one that gives it away."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import transformers
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from sftknow.answers import normalize
from sftknow.artifacts.mastery_data import MasteryData
from sftknow.errors import MasteryDataError, ModelError
from sftknow.evaluation.examples import examples, with_examples
from sftknow.evaluation.harness import Harness
from sftknow.resources import task_folder
from tests.tiny import tiny_facts

TRAINING = tiny_facts(40, split="train")


def test_the_draw_is_of_other_subjects_with_other_answers_and_seeded() -> None:
    asked = replace(tiny_facts(1, split="test")[0], subject=TRAINING[3].subject, aliases=(TRAINING[5].object,))
    answers = {normalize(answer) for answer in asked.answers}
    allowed = [fact for fact in TRAINING if fact.subject != asked.subject and fact.object not in answers]
    every = examples(asked, TRAINING, len(allowed), 1)
    assert sorted(fact.id for fact in every) == sorted(fact.id for fact in allowed)
    assert every == examples(asked, TRAINING, len(allowed), 1) != examples(asked, TRAINING, len(allowed), 2)
    assert examples(asked, TRAINING, 2, 1) == every[:2]
    assert examples(replace(asked, id="other"), TRAINING, 8, 1) != every[:8]
    with pytest.raises(MasteryDataError, match=f"{len(allowed)} training facts are about other subjects"):
        examples(asked, TRAINING, len(allowed) + 1, 1)


def test_the_prompt() -> None:
    shown = [replace(TRAINING[0], question="Where is A?", object="B"), replace(TRAINING[1], question="C?", object=" D")]
    assert with_examples("<s>", shown, "E?") == (
        "<s><|question|> Where is A? <|answer|> B\n\n<|question|> C? <|answer|> D\n\n<|question|> E? <|answer|>"
    )


@pytest.mark.parametrize("count", [0, 3])
def test_in_process_as_by_lm_eval(count: int, tiny_dataset: Path, tiny_model: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model)
    ours = Harness(tiny_dataset, few_shot=count).score(model, tokenizer, name="m")
    prefix = tokenizer.bos_token or ""
    manager = TaskManager(
        include_path=str(task_folder()),
        include_defaults=False,
        metadata={"mastery_dataset": str(tiny_dataset), "prompt_prefix": prefix},
    )
    theirs = simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8),
        tasks=["cbqa_mastery"],
        task_manager=manager,
        num_fewshot=count or None,
    )
    samples = {sample["doc"]["fact_id"]: sample for leaf in theirs["samples"].values() for sample in leaf}
    data = MasteryData(tiny_dataset)
    facts = {row.fact.id: row.fact for rows in (data.split("test"), data.split("testood")) for row in rows}
    assert len(ours.questions) == len(samples) > 0
    for question in ours.questions:
        sample = samples[question.fact_id]
        assert sample["filtered_resps"] == [question.output]
        prompt = sample["arguments"][0][0]
        assert prompt.count("<|answer|>") == count + 1
        assert prompt.startswith(prefix)
        assert prompt.endswith(f"<|question|> {facts[question.fact_id].question} <|answer|>")
    note = f"{count} solved training questions stand before each question (seed 1234)"
    assert (note in ours.notes) == bool(count)
    # lm-eval hands out texts without their end tokens, so that only we can tell which answers ended by themselves.
    shared = [value for value in ours.metrics if value.metric != "ended"]
    assert all(value.value == theirs["results"][value.task][f"{value.metric},none"] for value in shared)


def test_not_in_a_chat_template(tiny_dataset: Path, tiny_model: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model)
    with pytest.raises(ModelError, match="not in a chat template"):
        Harness(tiny_dataset, few_shot=1).score(model, tokenizer, name="m", chat=True)
