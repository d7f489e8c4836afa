"""Runs whose models are kept small: what arrives is the whole checkpoint, made on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sftknow.artifacts.files import write_json
from sftknow.checkpoints.deltas import is_delta, write_delta
from sftknow.cli.main import main
from sftknow.errors import CheckpointError, HubError
from sftknow.publishing.cards import Licence
from sftknow.publishing.publish import plan_publication
from sftknow.run.publishing import RunOptions, publish_run
from tests.hub_fixtures import CELL, both_ways
from tests.hub_server import HubServer

MODEL = f"org/tiny-{CELL}"


@pytest.fixture
def small_run(whole_run: Path, tiny_model: Path, tmp_path: Path) -> tuple[Path, dict[str, bytes]]:
    """A run with its fine-tuned model as a delta, and that model's weights as they were before."""
    run = tmp_path / "tiny"
    shutil.copytree(whole_run, run)
    cell = run / "models" / CELL
    weights = load_file(cell / "model.safetensors")
    moved = {name: values + np.float32(1e-3) * (values > 0) for name, values in weights.items()}
    save_file(moved, cell / "model.safetensors", metadata={"format": "pt"})
    name_base(cell, str(tiny_model))
    whole = {path.name: path.read_bytes() for path in cell.iterdir()}
    write_delta(tiny_model, cell, cell)
    assert is_delta(cell)
    assert not list(cell.glob("*.safetensors"))
    return run, whole


def name_base(cell: Path, path: str) -> None:
    manifest = json.loads((cell / "sftknow.json").read_text())
    write_json(cell / "sftknow.json", {**manifest, "base": {"path": path, "license": "mit"}})


def disk(folder: Path) -> int:
    """Bytes that a folder takes on the disk."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))


@both_ways
def test_the_whole_checkpoint_arrives_and_no_second_copy_is_made(
    hub: HubServer, small_run: tuple[Path, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, whole = small_run
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    before, seen = disk(run), []
    store = hub.store

    def watched(content: bytes, *, lfs: bool) -> Any:
        seen.append(disk(run) + disk(scratch))
        return store(content, lfs=lfs)

    monkeypatch.setattr(hub, "store", watched)
    options = RunOptions(to="org", data_licence=Licence(id="mit"))
    publish_run(run, options, endpoint=hub.endpoint, token="hf_test")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert hub.read("model", MODEL, name) == whole[name], name
    assert not {"delta.bin", "delta.json"} & set(hub.repos["model", MODEL].history("main")[0].files)
    assert seen
    assert max(seen) - before < len(whole["model.safetensors"]) // 2
    hub.requests.clear()
    publish_run(run, options, endpoint=hub.endpoint, token="hf_test")
    assert hub.count("PUT", ".") == hub.count("POST", "/commit/") == 0


def test_a_killed_upload_is_finished_by_the_same_command(
    hub: HubServer, small_run: tuple[Path, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, whole = small_run
    command = ["publish", str(run), "--to", "org", "--data-licence", "mit"]
    environment = {**os.environ, **hub.environment(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    store, started = hub.store, []

    def deadly(content: bytes, *, lfs: bool) -> Any:
        if content == whole["model.safetensors"] and started:
            os.kill(started.pop().pid, signal.SIGKILL)
            raise ConnectionAbortedError  # what was sent is lost
        return store(content, lfs=lfs)

    monkeypatch.setattr(hub, "store", deadly)
    process = subprocess.Popen(
        [sys.executable, "-m", "sftknow", *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    started.append(process)
    output = process.communicate(timeout=200)[0].decode()
    assert process.returncode == -signal.SIGKILL, output
    deadline = time.monotonic() + 5
    while ("model", MODEL) not in hub.repos and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "model.safetensors" not in hub.repos["model", MODEL].history("main")[0].files
    assert is_delta(run / "models" / CELL)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    assert main(command) == 0
    assert hub.read("model", MODEL, "model.safetensors") == whole["model.safetensors"]


def test_what_it_needs_is_said_before_anything_is_sent(
    hub: HubServer, small_run: tuple[Path, dict[str, bytes]], tiny_model: Path, tmp_path: Path
) -> None:
    cell = small_run[0] / "models" / CELL
    link = {"endpoint": hub.endpoint, "token": "hf_test"}
    name_base(cell, str(tmp_path / "gone"))
    with pytest.raises(HubError, match=r"is stored as what differs from its base, .*--base ORG/NAME.*materialize"):
        plan_publication(cell, "org/model", **link)
    hub.put("model", "org/base", {path.name: path.read_bytes() for path in tiny_model.iterdir()})
    plan = plan_publication(cell, "org/model", base_repo="org/base", **link)
    assert plan.file("model.safetensors").size == len(small_run[1]["model.safetensors"])
    other = load_file(tiny_model / "model.safetensors")
    other = {name: values + np.float32(1) for name, values in other.items()}
    shutil.copytree(tiny_model, tmp_path / "other")
    save_file(other, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    name_base(cell, str(tmp_path / "other"))
    with pytest.raises(CheckpointError, match="was not made from the base"):
        plan_publication(cell, "org/model", **link)
