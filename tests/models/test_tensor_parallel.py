"""Grading and evaluation by a model that two processes hold half of each: the numbers of one that holds it whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sftknow.artifacts.files import read_json
from sftknow.models.loading import load_model
from sftknow.records import ModelRef
from tests.models.tensor_parallel import graded_and_scored

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_two_processes_grade_and_score_as_one(tiny_model: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    whole = graded_and_scored(load_model(ModelRef(path=str(tiny_model))), tiny_model, tiny_dataset)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = [ROOT / "tests" / "models" / "tensor_parallel.py", tiny_model, tiny_dataset, tmp_path]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, *words, *map(str, script)],
        env={**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, other = (read_json(tmp_path / f"{rank}.json") for rank in (0, 1))
    assert one == other
    assert one["kept"] == 0.5
    assert one["scores"] == whole["scores"]
    assert sum(whole["hits"]) > 0
    # Halves are added up in another order than wholes: a draw may fall on the other side.
    assert sum(abs(a - b) for a, b in zip(one["hits"], whole["hits"], strict=True)) <= 1
