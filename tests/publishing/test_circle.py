"""The full circle as a user goes it: every command in a process of its own, models and data by their Hub ids."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from sftknow.resources import lab_folder, task_folder
from tests.hub_server import HubServer

BASE_CARD = b"---\nlicense: apache-2.0\nlanguage: en\n---\n# Base\n"


def run(folder: Path, environment: Mapping[str, str], *command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, **environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("hub", ["lfs", "xet"], indirect=True)
def test_the_numbers_of_the_card_come_back_from_a_fresh_cache(hub: HubServer, tmp_path: Path) -> None:
    base = {p.name: p.read_bytes() for p in (lab_folder() / "model").iterdir() if p.name != "sftknow.json"}
    commit = hub.put("model", "org/base", {**base, "README.md": BASE_CARD, "LICENSE": b"Apache License"})
    mine = hub.environment(tmp_path / "home")

    def sftknow(*arguments: str) -> str:
        return run(tmp_path, mine, "sftknow.cli.main", *arguments)

    sftknow("grade", "org/base@main", "--facts", "lab", "--limit", "60", "--samples", "1", "--out", "graded")
    sftknow("publish", "graded", "--to", "org/facts-graded", "--data-licence", "mit")
    data = hub.repos["dataset", "org/facts-graded"].branches["main"]
    tuning = ("--bucket", "0", "--size", "8", "--out", "tuned", "--set", "learning_rate=3e-4")
    sftknow("sft", "--model", "org/base", "--mastery", "org/facts-graded@main", *tuning)
    sftknow("restore", f"org/base@{commit[:40]}", "tuned", "--top", "20%", "--out", "restored")
    sftknow("changes", "org/base@main", "tuned", "--levels", "5%,20%", "--out", "changes")
    sftknow("evaluate", "restored", "--out", "scores")
    given = ("--scores", "scores", "--changes", "changes")
    announced = sftknow("publish", "restored", "--to", "org/restored", *given)
    assert "private model org/restored" in announced

    manifest = json.loads(hub.read("model", "org/restored", "sftknow.json"))
    assert manifest["base"]["path"] == "org/base"
    assert manifest["base"]["revision"] == commit
    assert manifest["mastery_dataset"]["repo"] == "org/facts-graded"
    assert manifest["mastery_dataset"]["revision"] == data
    assert manifest["license"]["id"] == "apache-2.0"
    assert hub.read("model", "org/restored", "LICENSE") == b"Apache License"
    card = ModelCard(hub.read("model", "org/restored", "README.md").decode()).data
    told = {result.dataset_name: result.metric_value for result in card.eval_results}
    assert len(told) > 4

    arguments = ("--model", "hf", "--model_args", "pretrained=org/restored", "--tasks", "cbqa_mastery")
    where = ("--include_path", str(task_folder()), "--output_path", "out", "--device", "cpu")
    run(tmp_path, hub.environment(tmp_path / "fresh"), "lm_eval", *arguments, *where)
    (found,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(found.read_text())["results"]
    measured = {task: round(100 * results[task]["acc,none"], 2) for task in told}
    assert measured == told
