"""A Hub on loopback, the clients let out to it, and a run directory with one fine-tuned and one restored model."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from sftknow.artifacts.files import write_json, write_text
from sftknow.artifacts.manifests import write_manifest
from sftknow.artifacts.mastery_data import MasteryData
from sftknow.records import EvalRun, LevelStatistics, MetricValue, ParameterChange, to_json
from tests.hub_server import HubServer

CELL = "b2-n240-s0"


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Every wait in seconds, not waited."""
    taken: list[float] = []
    monkeypatch.setattr(time, "sleep", taken.append)
    return taken


@pytest.fixture(params=["lfs"])
def hub(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, naps: list[float]
) -> Iterator[HubServer]:
    """The server; the client in this process may go to it, with an empty cache and no token but the one it is given.

    Large files go over LFS; tests that ask for ``xet`` as parameter have a server and a client that speak Xet.
    """
    xet = request.param == "xet"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with HubServer(tmp_path / "hub", xet=xet) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = f"{server.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server


both_ways = pytest.mark.parametrize("hub", ["lfs", "xet"], indirect=True)
"""Runs a test over LFS and over Xet."""


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A run directory as the pipeline leaves it, with real weights and made-up numbers. Read only."""
    run = tmp_path_factory.mktemp("run") / "tiny"
    tuned, restored = run / "models" / CELL, run / "restored" / CELL / "20pct"
    for folder in (tuned, restored):
        shutil.copytree(tiny_model, folder)
        (folder / "optimizer.pt").write_bytes(b"pickled")
        (folder / "README.md").write_text("a card of an earlier model")
    base = {"path": "org/base", "revision": "a" * 40, "license": "mit"}
    data = {"path": "../../mastery/dataset", "fingerprint": "f" * 64}
    recipe = {"learning_rate": 1e-5, "batch_size": 8, "epochs": 1, "save_dtype": "bfloat16"}
    sft = {"recipe": recipe, "seed": 0, "size": 240, "bucket": 2, "fact_ids": [f"P36/train/{i}" for i in range(240)]}
    write_manifest(tuned, "model", {"base": base, "mastery_dataset": data, "sft": sft})
    made = {"level": "20%", "strategy": "top", "region": "transformer", "layers": None, "restored": 1_234}
    plan = {"plan": "/home/somebody/runs/tiny/plan.json"}
    write_manifest(restored, "model", {"base": base, "mastery_dataset": data, "restoration": made, **plan})
    for name, accuracy in (("base", 0.1), (CELL, 0.4), (f"{CELL}@20pct", 0.45)):
        write_json(run / "evaluation" / name / "scores.json", scores(name, accuracy))
    write_json(run / "changes" / CELL / "changes.json", to_json(change()))
    write_json(
        run / "choice.json",
        {"cell": CELL, "level": "20%", "model": f"{CELL}@20pct", "chosen_on": "dev", "chosen_by": "both"},
    )
    return run


@pytest.fixture(scope="session")
def whole_run(finished_run: Path, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with its graded data set, recipe, provenance and report. Read only."""
    run = tmp_path_factory.mktemp("whole") / "tiny"
    shutil.copytree(finished_run, run)
    shutil.copytree(tiny_dataset, run / "mastery" / "dataset")
    fingerprint = MasteryData(tiny_dataset).fingerprint
    for manifest in run.rglob("models/*/sftknow.json"), run.rglob("restored/*/*/sftknow.json"):
        for path in manifest:
            content = json.loads(path.read_text())
            write_json(path, {**content, "mastery_dataset": {**content["mastery_dataset"], "fingerprint": fingerprint}})
    secret = "/home/somebody/facts.jsonl"
    write_text(run / "recipe.yaml", f"name: tiny\nfacts:\n  source: {secret}\nmodel:\n  path: org/base\n")
    known = {
        "packages": {"sftknow": "0.1.0", "torch": "2.13.0"},
        "device": "cpu",
        "base": {"name": f"org/base@{'a' * 40}"},
        "facts": {"source": secret},
        "seeds": {"facts": 0, "grid": [0]},
    }
    write_json(run / "provenance.json", known)
    (run / "report").mkdir()
    write_text(run / "report" / "report.html", f"<p>{run.resolve()}/report and {secret}</p>")
    (run / "report" / "figure.png").write_bytes(b"PNG")
    (run / "models" / "base").mkdir()
    write_manifest(run / "models" / "base", "model", {"base": {"path": "org/base"}})
    return run


@pytest.fixture
def restored_model(finished_run: Path) -> Path:
    """The restored model of the run. Read only."""
    return finished_run / "restored" / CELL / "20pct"


def scores(name: str, accuracy: float) -> dict[str, object]:
    """Scores as the evaluation writes them: two leaves, the group, an unknown standard error as null."""
    metrics = [
        MetricValue(task="cbqa_mastery_test_bucket_0", metric="acc", value=accuracy / 2, stderr=0.01, count=100),
        MetricValue(task="cbqa_mastery_test_bucket_1", metric="acc", value=accuracy, stderr=0.02, count=1),
        MetricValue(task="cbqa_mastery_test_bucket_1", metric="exact_match", value=0.3, stderr=0.02, count=100),
        MetricValue(task="cbqa_mastery_test", metric="acc", value=0.75 * accuracy, stderr=0.015, count=200),
        MetricValue(task="cbqa_mastery_test", metric="exact_match", value=0.5 * accuracy, stderr=0.01, count=200),
        MetricValue(task="cbqa_mastery_test", metric="ended", value=0.9, stderr=0.02, count=200),
    ]
    run: dict[str, object] = to_json(
        EvalRun(model=name, dataset_fingerprint="f", graded_by="b", metrics=tuple(metrics))
    )
    run["metrics"][1]["stderr"] = None  # type: ignore[index]
    run.pop("questions")
    return run


def change() -> ParameterChange:
    """A change of 1,000 parameters in two layers, most of it in the second layer's down projection."""
    level = LevelStatistics(
        level="20%",
        selected=200,
        selected_unchanged=20,
        concentration=0.75,
        concentration_nonzero_base=0.7,
        by_layer={"0": 50, "1": 150},
        by_module={"mlp.down_proj": 180, "self_attn.q_proj": 20},
    )
    return ParameterChange(
        region="transformer",
        elements=1_000,
        changed=500,
        elements_by_layer={"0": 500, "1": 500},
        elements_by_module={"mlp.down_proj": 600, "self_attn.q_proj": 400},
        levels=(level,),
        histogram=((1e-3, 500),),
    )
