"""Graded data sets as benchmarks of the Hub: eval.yaml, the results that name its tasks, and Inspect's reader."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import parse_eval_result_entries

from sftknow.artifacts.mastery_data import write_mastery_data
from sftknow.publishing.cards import Licence
from sftknow.publishing.plan import plan_publication
from sftknow.publishing.publish import publish
from sftknow.run.publishing import RunOptions, publish_run
from tests.hub_fixtures import CELL
from tests.hub_server import HubServer
from tests.hub_yaml import benchmark_errors, results_errors
from tests.tiny import graded, tiny_facts

DATA, MODEL = "org/tiny-graded", f"org/tiny-{CELL}"


def tasks_of(content: bytes) -> list[dict[str, Any]]:
    assert benchmark_errors(content) == []
    return list(yaml.safe_load(content)["tasks"])


def test_results_name_the_tasks_of_the_benchmark_and_their_source(hub: HubServer, whole_run: Path) -> None:
    options = RunOptions(to="org", data_licence=Licence(id="mit"))
    publish_run(whole_run, options, endpoint=hub.endpoint, token="hf_test")
    tasks = tasks_of(hub.read("dataset", DATA, "eval.yaml"))
    assert len(tasks) == 3 * (1 + 5)
    assert {task["config"] for task in tasks if "bucket" not in task["id"]} == {"default"}
    for branch in ("main", "restore-20pct"):
        content = hub.read("model", MODEL, ".eval_results/cbqa_mastery.yaml", branch)
        assert results_errors(content) == []
        entries = parse_eval_result_entries(yaml.safe_load(content))
        assert {entry.dataset_id for entry in entries} == {DATA}
        assert {entry.task_id for entry in entries} <= {task["id"] for task in tasks}
        assert {entry.source_url for entry in entries} == {f"{hub.endpoint}/datasets/org/tiny-results"}


def test_a_model_by_itself_is_its_own_source(hub: HubServer, restored_model: Path, tiny_dataset: Path) -> None:
    plan = plan_publication(
        restored_model, "org/alone", dataset_repo=f"{DATA}@{'d' * 40}", endpoint=hub.endpoint, token="hf_test"
    )
    content = plan.file(".eval_results/cbqa_mastery.yaml").content
    assert isinstance(content, bytes)
    assert {entry["source"]["url"] for entry in yaml.safe_load(content)} == {f"{hub.endpoint}/org/alone"}


def test_an_empty_bucket_is_no_task(hub: HubServer, tmp_path: Path) -> None:
    rows = [graded(fact, i % 3) for i, fact in enumerate(tiny_facts(9, split="test"))]
    write_mastery_data(tmp_path / "data", rows, {"graded_by": "org/base@" + "a" * 40, "policy": {}})
    plan = plan_publication(tmp_path / "data", DATA, licence="mit", endpoint=hub.endpoint, token="hf_test")
    content = plan.file("eval.yaml").content
    assert isinstance(content, bytes)
    ids = [task["id"] for task in tasks_of(content)]
    assert ids == ["cbqa_mastery_test", *(f"cbqa_mastery_test_bucket_{bucket}" for bucket in range(3))]
    publish(plan, endpoint=hub.endpoint, token="hf_test")


def test_inspect_reads_the_benchmark(hub: HubServer, tiny_dataset: Path, tmp_path: Path) -> None:
    pytest.importorskip("inspect_ai", reason="inspect-ai is an extra and not installed")
    plan = plan_publication(
        tiny_dataset, DATA, licence="mit", base_repo=f"org/base@{'a' * 40}", endpoint=hub.endpoint, token="hf_test"
    )
    publish(plan, endpoint=hub.endpoint, token="hf_test")
    program = (
        "from inspect_ai._eval.task.hf import task_create_from_hf\n"
        f"for task in task_create_from_hf('hf/{DATA}'):\n"
        "    print(task.name.rpartition('/')[2], len(task.dataset))\n"
    )
    env = {**os.environ, **hub.environment(tmp_path / "home"), "INSPECT_CACHE_DIR": str(tmp_path / "inspect")}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = dict(line.split() for line in done.stdout.splitlines() if line.startswith("cbqa"))
    assert {name: int(count) for name, count in found.items()} == {
        task["id"]: 4 if "bucket" in task["id"] else 20 for task in tasks_of(hub.read("dataset", DATA, "eval.yaml"))
    }
