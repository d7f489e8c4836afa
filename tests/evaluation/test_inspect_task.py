"""The tasks in Inspect: the prompts and, to the digit, the scores that lm-eval's harness gives. Needs inspect-ai."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sftknow.answers import Synonyms
from sftknow.artifacts.manifests import write_manifest
from sftknow.artifacts.mastery_data import write_mastery_data
from sftknow.evaluation.harness import Harness
from sftknow.facts.sources import load_facts
from sftknow.facts.topics import load_topics
from sftknow.prompts import prompt_ids
from sftknow.records import BUCKETS, EvalRun, ModelRef
from sftknow.resources import lab_folder
from sftknow.training.examples import chat_template
from tests.tiny import graded, tiny_tokenizer

inspect_ai = pytest.importorskip("inspect_ai", reason="inspect-ai is an extra and not installed")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Facts of the lab, in buckets by turns; bucket 3 has none."""
    folder = tmp_path_factory.mktemp("inspect") / "dataset"
    facts = [
        fact
        for fact in load_facts("lab", topics=load_topics(), synonyms=Synonyms.load()).facts
        if fact.split in ("test", "testood")
    ]
    chosen = [fact for split in ("test", "testood") for fact in [f for f in facts if f.split == split][:48]]
    buckets = [bucket for bucket in BUCKETS if bucket != 3]
    rows = [graded(fact, buckets[place % 4]) for place, fact in enumerate(chosen)]
    write_mastery_data(folder, rows, {"graded_by": "lab", "policy": {"samples": 10, "temperature": 0.7}})
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """The lab's model with a chat template and generation options that would change answers, were they looked at."""
    folder = tmp_path_factory.mktemp("inspect-model") / "model"
    shutil.copytree(lab_folder() / "model", folder)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"
    )
    options = json.loads((folder / "generation_config.json").read_text())
    options |= {"repetition_penalty": 3.0, "max_new_tokens": 3, "do_sample": True, "temperature": 5.0}
    (folder / "generation_config.json").write_text(json.dumps(options))
    (folder / "sftknow.json").unlink(missing_ok=True)
    write_manifest(folder, "model", {"base": {"path": "lab"}, "mastery_dataset": {"path": str(data)}})
    return folder


def evaluated(task: str, model: Path, logs: Path, **arguments: Any) -> Any:
    [log] = inspect_ai.eval(
        f"sftknow/{task}",
        model="hf/local",
        model_args={"model_path": str(model), "tokenizer_path": str(model), "device": "cpu"},
        task_args=arguments,
        log_dir=str(logs),
        display="none",
    )
    return log


@pytest.mark.parametrize("split", ["test", "testood"])
def test_the_scores_are_those_of_the_harness(data: Path, model: Path, tmp_path: Path, split: Any) -> None:
    log = evaluated(f"cbqa_mastery_{split}", model, tmp_path)
    assert log.status == "success", log.error
    run: EvalRun = Harness(data, splits=(split,), device="cpu").score_path(ModelRef(path=str(model)), name="m")
    answers = {question.fact_id: question.output for question in run.questions}
    assert {sample.id: sample.output.completion for sample in log.samples} == answers
    found = {score.name: {name: m.value for name, m in score.metrics.items()} for score in log.results.scores}
    assert set(found) == {"acc", "acc_word", "exact_match"}
    for reading, values in found.items():
        mean = run.value(f"cbqa_mastery_{split}", reading).value
        leaves = {f"{b}": run.value(f"cbqa_mastery_{split}_bucket_{b}", reading).value for b in (0, 1, 2, 4)}
        assert values == {f"sftknow/bucket_{name}": value for name, value in {**leaves, "mean": mean}.items()}
    assert 0 < found["acc"]["sftknow/bucket_mean"] < 1, "a model that knows nothing, or all, would prove nothing"
    assert log.eval.metadata["mastery_fingerprint"] == run.dataset_fingerprint


def test_the_prompt_is_that_of_training_to_the_token(model: Path) -> None:
    from inspect_ai.model import ChatMessageUser, get_model

    from sftknow.evaluation.inspect_task import _prompt

    api = get_model("hf/local", model_path=str(model), tokenizer_path=str(model), device="cpu").api
    text = _prompt(api, "What is the capital of France?")
    ids = api.tokenizer(api.hf_chat([ChatMessageUser(content=text)], []), **api.tokenizer_call_args)["input_ids"]
    assert ids == prompt_ids(api.tokenizer, "What is the capital of France?")


def test_a_server_is_sent_the_question_that_the_template_makes_the_prompt_of(data: Path, tmp_path: Path) -> None:
    from inspect_ai.model import ModelAPI, ModelOutput, modelapi

    asked: list[list[dict[str, str]]] = []

    @modelapi("served")
    class Served(ModelAPI):
        async def generate(self, input: Any, tools: Any, tool_choice: Any, config: Any) -> ModelOutput:
            asked.append([{"role": message.role, "content": message.text} for message in input])
            assert (config.max_tokens, config.temperature) == (16, 0.0)
            return ModelOutput.from_content("served/model", " nowhere")

    [log] = inspect_ai.eval(
        "sftknow/cbqa_mastery_test",
        model="served/model",
        task_args={"mastery_dataset": str(data)},
        log_dir=str(tmp_path),
        display="none",
    )
    assert log.status == "success", log.error
    questions = [sample.input for sample in log.samples]
    assert sorted(content["content"] for [content] in asked) == sorted(questions)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = chat_template()
    ids = tokenizer.apply_chat_template(asked[0], add_generation_prompt=True, return_dict=False)
    assert ids == prompt_ids(tokenizer, asked[0][0]["content"])


def test_what_is_missing_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from inspect_ai._util.error import PrerequisiteError

    with pytest.raises(PrerequisiteError, match="no graded data set is named; pass -T mastery_dataset="):
        inspect_ai.eval("sftknow/cbqa_mastery_test", model="mockllm/model", log_dir=str(tmp_path), display="none")
