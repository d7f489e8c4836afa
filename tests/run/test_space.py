"""The disk that a run will need, and its refusal before any work."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from sftknow.artifacts.stages import RunDirectory
from sftknow.errors import RunError
from sftknow.resources import lab_folder
from sftknow.run.experiment import Experiment
from sftknow.run.space import (
    CELL_BYTES,
    DELTA_SHARES,
    Left,
    ModelSize,
    check_space,
    model_size,
    parts,
    restored_cells,
    size_text,
)
from tests.run.small_run import small_recipe

EIGHT = ModelSize(parameters=8_000_000_000, dtype="bfloat16")
LEFT = Left(cells=4, levels=14)
Usage = namedtuple("Usage", "total used free")


def free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(count, 0, count))


def need(*settings: str, model: ModelSize = EIGHT, left: Left = LEFT) -> dict[str, int]:
    return {part.name.split(" (")[0]: part.bytes for part in parts(small_recipe(*settings), model, left)}


def test_whole_checkpoints_and_restored_ones() -> None:
    assert need("grid.storage=full") == {
        "fine-tuned models": 4 * (16_000_000_000 + CELL_BYTES),
        "restored checkpoints": 14 * 16_000_000_000,
    }


def test_deltas_need_less_and_one_whole_checkpoint_beside() -> None:
    rate = "sft.learning_rate=1e-5"
    found = need("grid.storage=delta", rate)
    assert found["fine-tuned models"] == 4 * (int(16e9 * DELTA_SHARES["gentle"]) + CELL_BYTES)
    assert found["scratch while training"] == 16_000_000_000
    other = need("grid.storage=delta", rate, "sft.save_dtype=float16")
    assert other["fine-tuned models"] == 4 * (int(16e9 * DELTA_SHARES["own"]) + CELL_BYTES), "no dtype in common"
    assert "scratch while restoring" in need("grid.storage=delta", left=Left(cells=0, levels=3))


def test_snapshots_and_workers_count() -> None:
    # Weights and two moments in float32, three snapshots at the worst moment.
    assert need("tracking.save_steps=10")["scratch while training"] == 3 * 3 * 4 * 8_000_000_000
    many = need("grid.storage=delta", "grid.engine=ray", "grid.ray.replicas=3")
    assert many["scratch while training"] == 3 * 16_000_000_000


def test_the_size_of_a_model_is_that_of_its_files() -> None:
    folder = lab_folder() / "model"
    size = model_size(folder)
    weights = (folder / "model.safetensors").stat().st_size
    assert size.dtype == "bfloat16"
    assert 0 <= weights - 2 * size.parameters < 20_000, "all but the header"
    whole = sum(file.stat().st_size for file in folder.iterdir())
    assert size.whole("bfloat16") == pytest.approx(whole, rel=0.01)


def test_cells_to_restore_are_counted_once() -> None:
    assert restored_cells(small_recipe("restore.cells=all")) == 2
    assert restored_cells(small_recipe("restore.cells=best")) == 1
    assert restored_cells(small_recipe("restore.cells=[best,b0-n8-s0,b4-n8-s0]")) == 2


def test_too_little_is_one_line_with_numbers_and_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = list(parts(small_recipe("grid.storage=full"), EIGHT, LEFT))
    free(monkeypatch, 100_000_000_000)
    with pytest.raises(RunError) as told:
        check_space(tmp_path / "not" / "there", wanted)
    line = str(told.value)
    for words in ("288 GB", "100 GB are free", "14 × 16 GB restored checkpoints", "grid.storage: delta", "--out"):
        assert words in line
    free(monkeypatch, sum(part.bytes for part in wanted))
    check_space(tmp_path, wanted)


def test_a_run_is_refused_before_it_grades(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 30_000_000)
    said: list[str] = []
    with RunDirectory(tmp_path / "run") as directory, pytest.raises(RunError, match="30 MB are free"):
        Experiment(small_recipe("grid.seeds=[0,1,2]"), directory, say=said.append).run()
    assert said == []
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 kB"), (1_500, "2 kB"), (999e6, "999 MB"), (1.5e9, "1.5 GB"), (2e15, "2,000 TB")]
)
def test_sizes_in_words(count: float, text: str) -> None:
    assert size_text(count) == text
