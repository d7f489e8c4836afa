"""The leaves as the bare command builds them: where questions come from, what they record and what they refuse."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.dummy import DummyLM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from safetensors.torch import load_file, save_file

from sftknow.artifacts.manifests import write_manifest
from sftknow.artifacts.mastery_data import MasteryData, write_mastery_data
from sftknow.errors import MasteryDataError, SftknowError
from sftknow.evaluation.command_line import CommandLine
from sftknow.evaluation.lm_eval_task import TaskError
from sftknow.prompts import question_prompt
from sftknow.resources import task_folder
from tests.evaluation.conftest import upload
from tests.hub_server import HubServer
from tests.tiny import graded, tiny_facts, tiny_llama, tiny_tokenizer


def task(name: str, **metadata: Any) -> Any:
    """A leaf as lm-eval builds it; ``metadata`` is --model_args and --metadata together."""
    manager = TaskManager(include_path=str(task_folder()), include_defaults=False, metadata=metadata)
    return manager.load([name])["tasks"][name]


def model_folder(folder: Path, content: dict[str, Any]) -> Path:
    tiny_llama(folder, tiny_tokenizer())
    write_manifest(folder, "model", content)
    return folder


def test_questions_and_what_is_recorded(tiny_dataset: Path, tiny_model: Path) -> None:
    leaf = task("cbqa_mastery_test_bucket_2", pretrained=str(tiny_model), mastery_dataset=str(tiny_dataset))
    facts = [row.fact for row in MasteryData(tiny_dataset).bucket("test", 2)]
    assert leaf.eval_docs["prompt"] == ["<s>" + question_prompt(fact.question) for fact in facts]
    recorded = leaf.dump_config()["metadata"]
    assert recorded["mastery_dataset"] == str(tiny_dataset)
    assert recorded["mastery_revision"] is None
    assert recorded["mastery_fingerprint"] == MasteryData(tiny_dataset).fingerprint
    assert recorded["mastery_graded_by"] == "tiny"
    assert recorded["mastery_named_by"] == "asked for"
    assert recorded["mastery_questions"] == 4
    json.dumps(recorded)


def test_repository_and_commit_are_recorded(hub: HubServer, tiny_dataset: Path, tiny_model: Path) -> None:
    commit = upload(hub, tiny_dataset, "org/facts", "dataset")
    leaf = task("cbqa_mastery_dev_bucket_0", pretrained=str(tiny_model), mastery_dataset="org/facts")
    recorded = leaf.dump_config()["metadata"]
    assert (recorded["mastery_dataset"], recorded["mastery_revision"]) == ("org/facts", commit)


def test_one_look_at_the_hub_for_all_leaves(hub: HubServer, tiny_dataset: Path, tiny_model: Path) -> None:
    upload(hub, tiny_dataset, "org/facts", "dataset")
    hub.requests.clear()
    metadata = {"pretrained": str(tiny_model), "mastery_dataset": "org/facts"}
    TaskManager(include_path=str(task_folder()), include_defaults=False, metadata=metadata).load(["cbqa_mastery"])
    assert hub.count("GET", r"/api/datasets/org/facts(/revision/.*)?$") == 1
    assert hub.count("GET", r"resolve/.*parquet") == 10


def test_train_is_the_models_own_facts_or_the_whole_split(
    tiny_dataset: Path, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = model_folder(tmp_path / "own", {"sft": {"fact_ids": ["P36/train/1", "P17/train/0", "x"]}})
    given = {"mastery_dataset": str(tiny_dataset)}
    leaf = task("cbqa_mastery_train_bucket_0", pretrained=str(own), **given)
    assert leaf.eval_docs["fact_id"] == ["P17/train/0", "P36/train/1"]
    assert leaf.config.metadata["mastery_notes"] == [f"1 of the model's training facts are not in {tiny_dataset}"]
    assert task("cbqa_mastery_train_bucket_1", pretrained=str(own), **given).eval_docs["placeholder"] == [True]
    with caplog.at_level(logging.WARNING, logger="lm_eval"):
        whole = task("cbqa_mastery_train_bucket_0", pretrained=str(tiny_model), **given)
    assert len(whole.eval_docs) == 4
    assert "the split train is the data set's whole training part" in caplog.text
    # An adapter's facts, where the base has none.
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    write_manifest(adapter, "model", {"sft": {"fact_ids": ["P17/train/0"]}})
    leaf = task("cbqa_mastery_train_bucket_0", pretrained=str(tiny_model), peft=str(adapter), **given)
    assert leaf.eval_docs["fact_id"] == ["P17/train/0"]
    stranger = model_folder(tmp_path / "stranger", {"sft": {"fact_ids": ["y", "z"]}})
    with pytest.raises(MasteryDataError, match="none of the model's 2 training facts is in"):
        task("cbqa_mastery_train_bucket_0", pretrained=str(stranger), **given)


def test_empty_bucket_is_left_out_and_said(tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    facts = tiny_facts(9, split="test")
    rows = [graded(fact, bucket) for fact, bucket in zip(facts, (0, 0, 0, 1, 1, 3, 3, 4, 4), strict=True)]
    write_mastery_data(tmp_path / "data", rows, {"graded_by": "m"})
    metadata = {"pretrained": str(tiny_model), "mastery_dataset": str(tmp_path / "data")}
    manager = TaskManager(include_path=str(task_folder()), include_defaults=False, metadata=metadata)
    lm = HFLM(pretrained=str(tiny_model), device="cpu", batch_size=8)
    with caplog.at_level(logging.WARNING, logger="lm_eval"):
        results = simple_evaluate(lm, tasks=["cbqa_mastery"], task_manager=manager, bootstrap_iters=1)
    leaves = results["results"]
    assert "acc,none" not in leaves["cbqa_mastery_test_bucket_2"]
    present = [leaves[f"cbqa_mastery_test_bucket_{bucket}"] for bucket in (0, 1, 3, 4)]
    group = results["groups"]["cbqa_mastery_test"]
    assert group["acc,none"] == sum(leaf["acc,none"] for leaf in present) / 4
    # The standard error of a plain mean, and not lm-eval's pooled one for weighted means.
    by_hand = sum(leaf["acc_stderr,none"] ** 2 for leaf in present) ** 0.5 / 4
    assert group["acc_stderr,none"] == pytest.approx(by_hand, abs=1e-15)
    assert "cbqa_mastery_test_bucket_2: the bucket is empty; the mean of its group leaves it out" in caplog.text
    assert "Missing in: cbqa_mastery_test_bucket_2" in caplog.text
    assert "acc,none" not in results["groups"]["cbqa_mastery_testood"]
    assert results["configs"]["cbqa_mastery_test_bucket_2"]["metadata"]["mastery_questions"] == 0


def test_model_without_a_name_or_tokenizer(tiny_dataset: Path) -> None:
    """--model dummy, and models behind a server that take text."""
    manager = TaskManager(
        include_path=str(task_folder()), include_defaults=False, metadata={"mastery_dataset": str(tiny_dataset)}
    )
    results = simple_evaluate(DummyLM(), tasks=["cbqa_mastery_test"], task_manager=manager, bootstrap_iters=1)
    assert results["groups"]["cbqa_mastery_test"]["acc,none"] == 0.0


def test_routes(tmp_path: Path) -> None:
    def route(**arguments: Any) -> str:
        return CommandLine.parse(arguments).route

    assert route(pretrained="org/x") == "local"
    assert route(model="org/x", base_url="http://h/v1/completions") == "server-ids"
    assert route(model="org/x", base_url="http://h/v1", tokenized_requests=False) == "server-text"
    served = CommandLine.parse({"model": "org/x", "base_url": "http://h", "tokenizer": str(tmp_path)})
    assert served.models == ()
    local = CommandLine.parse({"pretrained": "org/x", "revision": "v1", "peft": "org/adapter"})
    assert [str(ref) for ref in local.models] == ["org/adapter", "org/x@v1"]


def test_pins_are_for_transformers_alone(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tiny_model, tmp_path / "m")
    stored = json.loads((tmp_path / "m" / "generation_config.json").read_text())
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps({**stored, "repetition_penalty": 1.2}))
    command = CommandLine.parse({"pretrained": str(tmp_path / "m")})
    assert command.generation_pins() == {"repetition_penalty": 1.0}
    monkeypatch.setitem(sys.modules, "lm_eval.models.vllm_causallms", sys)
    assert command.generation_pins() == {}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "no graded data set is named; pass --metadata mastery_dataset="),
        ({"mastery_dataset": "/nowhere"}, "/nowhere is not there"),
        ({"mastery_datset": "x"}, "'mastery_datset', which is not known; did you mean mastery_dataset"),
        ({"mastery-dataset": "x"}, "'mastery-dataset', which is not known"),
        ({"dataset": "x"}, "'dataset', which is not known"),
        ({"mastery_bucket": 3}, "'mastery_bucket', which is not known"),
        ({"mastery_dataset": 3}, "mastery_dataset is 3"),
        ({"mastery_dataset": ["a"]}, "mastery_dataset is ['a']"),
    ],
)
def test_mistakes_on_the_command_line(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError) as caught:
        task("cbqa_mastery_test_bucket_0", **metadata)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, SftknowError)
    assert caught.value.code == f"cbqa_mastery: {caught.value}"


def test_models_that_are_not_whole(tiny_model: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    def refused(folder: Path) -> str:
        with pytest.raises(TaskError) as caught:
            task("cbqa_mastery_test_bucket_0", pretrained=str(folder), mastery_dataset=str(tiny_dataset))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    shutil.copytree(tiny_model, tmp_path / "layerless")
    weights = load_file(tmp_path / "layerless" / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if ".layers.1." not in name}
    save_file(kept, tmp_path / "layerless" / "model.safetensors", metadata={"format": "pt"})
    assert "no weights for layer 1; they would be random numbers" in refused(tmp_path / "layerless")
    shutil.copytree(tiny_model, tmp_path / "shardless")
    index = {"metadata": {}, "weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "shardless" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks the weight files model-00002-of-00002.safetensors" in refused(tmp_path / "shardless")
    shutil.copytree(tiny_model, tmp_path / "cut")
    whole = (tmp_path / "cut" / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert str(tmp_path / "cut") in refused(tmp_path / "cut")
    shutil.copytree(tiny_model, tmp_path / "mute")
    for file in (tmp_path / "mute").glob("tokenizer*"):
        file.unlink()
    assert "tokenizer" in refused(tmp_path / "mute")


def test_request_cache_and_system_prompt_are_refused(tiny_dataset: Path) -> None:
    leaf = task("cbqa_mastery_test_bucket_0", mastery_dataset=str(tiny_dataset))
    with pytest.raises(TaskError, match="--cache_requests keeps prompts by the task's name alone"):
        leaf.build_all_requests(cache_requests=True)
    leaf.build_all_requests(limit=2)
    assert len(leaf.instances) == 2
    with pytest.raises(TaskError, match="--system_instruction would change the prompt"):
        leaf.build_all_requests(system_instruction="Be brief.")


def test_instruct_model_is_asked_in_its_own_template(tiny_dataset: Path) -> None:
    """The bare question goes into the template: another model's template must not wrap our tags."""
    leaf = task("cbqa_mastery_test_bucket_0", mastery_dataset=str(tiny_dataset))

    def render(messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return "".join(f"[{m['role']}] {m['content']}" for m in messages)

    leaf.build_all_requests(
        apply_chat_template=True, chat_template=render, fewshot_as_multiturn=True, system_instruction="Be brief."
    )
    facts = [row.fact for row in MasteryData(tiny_dataset).bucket("test", 0)]
    assert [i.args[0] for i in leaf.instances] == [f"[system] Be brief.[user] {fact.question}" for fact in facts]


def test_error_ends_a_command_with_its_line_alone() -> None:
    code = "from sftknow.evaluation.lm_eval_task import TaskError; raise TaskError('no such thing; do that')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "cbqa_mastery: no such thing; do that\n")


def test_changed_folders_are_read_anew(tiny_dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(tiny_dataset, folder)
    before = task("cbqa_mastery_test_bucket_0", mastery_dataset=str(folder))
    write_mastery_data(folder, [graded(fact, 0) for fact in tiny_facts(2, split="test")], {"graded_by": "m"})
    after = task("cbqa_mastery_test_bucket_0", mastery_dataset=str(folder))
    assert (len(before.eval_docs), len(after.eval_docs)) == (4, 2)
