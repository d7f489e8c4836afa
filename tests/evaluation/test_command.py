"""The real `lm_eval` command in a process of its own. Slow: it reads twelve thousand task files before it begins."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import lm_eval
import pytest

from sftknow.artifacts.manifests import write_manifest
from sftknow.evaluation.harness import Harness
from sftknow.records import EvalRun, ModelRef
from sftknow.resources import task_folder
from sftknow.training.examples import chat_template
from tests.evaluation.conftest import upload
from tests.hub_server import HubServer
from tests.tiny import tiny_llama, tiny_mastery_data, tiny_tokenizer

pytestmark = pytest.mark.slow


def command(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``lm_eval`` with the tasks on its path."""
    given = [sys.executable, "-m", "lm_eval", *arguments]
    if not (Path(lm_eval.__file__).parent / "tasks" / "cbqa_mastery").is_dir():
        given += ["--include_path", str(task_folder())]  # an editable install carries no YAML into lm-eval
    env = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    return subprocess.run(given, env=env, capture_output=True, text=True, timeout=280, check=False)


def results(folder: Path) -> dict[str, Any]:
    return dict(json.loads(next(folder.rglob("results*.json")).read_text()))


def assert_same(run: EvalRun, found: dict[str, Any]) -> None:
    for value in run.metrics:
        theirs = found["results"][value.task]
        assert theirs[f"{value.metric},none"] == value.value, value
        assert theirs[f"{value.metric}_stderr,none"] == value.stderr, value


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data set, and a model of a run that names it; its chat template is the one that every checkpoint gets."""
    run = tmp_path_factory.mktemp("run")
    data = tiny_mastery_data(run / "mastery" / "dataset")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = chat_template()
    model = tiny_llama(run / "models" / "b2", tokenizer)
    manifest = {"mastery_dataset": {"path": "../../mastery/dataset"}, "sft": {"fact_ids": ["P17/train/0"]}}
    write_manifest(model, "model", manifest)
    return data, model


@pytest.mark.parametrize("extra", [(), ("--apply_chat_template",)], ids=["plain", "chat-template"])
def test_numbers_are_those_of_the_harness(extra: tuple[str, ...], folders: tuple[Path, Path], tmp_path: Path) -> None:
    data, model = folders
    arguments = ["--model", "hf", "--model_args", f"pretrained={model}", "--device", "cpu", "--batch_size", "20"]
    tasks = "cbqa_mastery,cbqa_mastery_train"
    done = command(*arguments, "--tasks", tasks, "--output_path", str(tmp_path), *extra)
    assert done.returncode == 0, done.stderr[-3000:]
    run = Harness(data, device="cpu", batch_size=20).score_path(ModelRef(path=str(model)), name="m")
    assert len(run.questions) == 40
    assert_same(run, results(tmp_path))
    assert results(tmp_path)["results"]["cbqa_mastery_train"]["sample_len"] == 1
    assert "cbqa_mastery_test" in done.stdout


def test_a_template_of_ones_own_is_that_of_the_command(folders: tuple[Path, Path], tmp_path: Path) -> None:
    data, model = folders
    own = Path(shutil.copytree(model, tmp_path / "own"))
    (own / "chat_template.jinja").write_text(
        "{% for m in messages %}A user asks: {{ m['content'] }} I say:{% endfor %}"
    )
    arguments = ["--model", "hf", "--model_args", f"pretrained={own}", "--device", "cpu", "--batch_size", "20"]
    where = ["--metadata", json.dumps({"mastery_dataset": str(data)}), "--output_path", str(tmp_path / "out")]
    done = command(*arguments, "--tasks", "cbqa_mastery_test", *where, "--apply_chat_template")
    assert done.returncode == 0, done.stderr[-3000:]
    harness = Harness(data, splits=("test",), device="cpu", batch_size=20)
    plain, chat = (harness.score_path(ModelRef(path=str(own)), name="m", chat=asked) for asked in (False, True))
    assert_same(chat, results(tmp_path / "out"))
    assert [q.output for q in chat.questions] != [q.output for q in plain.questions]


def test_model_and_data_set_on_the_hub_with_nothing_else_said(
    hub: HubServer, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    data, model = folders
    commit = upload(hub, data, "org/facts", "dataset")
    shutil.copytree(model, tmp_path / "tuned")
    write_manifest(tmp_path / "tuned", "model", {"mastery_dataset": {"repo": "org/facts", "revision": commit}})
    upload(hub, tmp_path / "tuned", "org/tuned", "model")
    arguments = ["--model", "hf", "--model_args", "pretrained=org/tuned", "--device", "cpu", "--batch_size", "20"]
    done = command(
        *arguments,
        *("--tasks", "cbqa_mastery_test", "--output_path", str(tmp_path / "out")),
        environment=hub.environment(tmp_path / "home"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = results(tmp_path / "out")
    recorded = found["configs"]["cbqa_mastery_test_bucket_0"]["metadata"]
    assert (recorded["mastery_dataset"], recorded["mastery_revision"]) == ("org/facts", commit)
    run = Harness(data, splits=("test",), device="cpu", batch_size=20).score_path(ModelRef(path=str(model)), name="m")
    assert_same(run, found)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--metadata", "mastery_dataset=/nowhere"), "cbqa_mastery: /nowhere is not there; give the folder that"),
        (("--cache_requests", "true"), "cbqa_mastery: --cache_requests keeps prompts by the task's name alone"),
    ],
)
def test_mistake_is_the_last_line(arguments: tuple[str, ...], line: str, folders: tuple[Path, Path]) -> None:
    model = ("--model", "hf", "--model_args", f"pretrained={folders[1]}", "--device", "cpu")
    done = command(*model, "--tasks", "cbqa_mastery_test", *arguments)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(line)


def test_validate(folders: tuple[Path, Path]) -> None:
    done = command("validate", "--tasks", "cbqa_mastery,cbqa_mastery_train,cbqa_mastery_dev")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All tasks found and valid" in done.stdout
