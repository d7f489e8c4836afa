"""A task from another package, exactly as docs/extending/evaluation-task.md shows it, scored by the command."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sftknow.artifacts.files import read_json
from sftknow.cli.main import main
from sftknow.errors import GeneralTaskError
from sftknow.evaluation.general.runner import GeneralHarness
from sftknow.evaluation.general.tasks import TASKS, GeneralTask, find_task

PAGE = Path(__file__).resolve().parents[3] / "docs" / "extending" / "evaluation-task.md"
ROWS = [{"country": "France", "capital": "Paris"}, {"country": "Peru", "capital": "Lima"}]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The page's package, installed."""
    blocks = dict(re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL))
    package = tmp_path / "site" / "capitals_task"
    (package / "tasks").mkdir(parents=True)
    (package / "__init__.py").write_text(blocks["python"])
    (package / "tasks" / "capitals.yaml").write_text(blocks["yaml"])
    info = tmp_path / "site" / "capitals_task-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: capitals_task\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(blocks["toml"].replace("project.entry-points.", "").replace('"', ""))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield
    TASKS.remove("capitals")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    return folder


@pytest.mark.usefixtures("installed")
def test_the_command_scores_it(
    tiny_model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["evaluate", str(tiny_model), "--tasks", "capitals", "--data", f"capitals={data}", "--out"]
    assert main([*asked, str(tmp_path / "out")]) == 0
    assert "capitals acc" in capsys.readouterr().out
    scores = read_json(tmp_path / "out" / "capitals.json")
    assert [(metric["name"], metric["count"]) for metric in scores["metrics"]] == [("acc", 2)]
    rows = list(GeneralHarness(find_task("capitals"), data).training_rows(seed=0))
    assert {row.completion for row in rows} == {" Paris", " Lima"}


def test_a_task_whose_yaml_is_not_there(tmp_path: Path, data: Path) -> None:
    task = GeneralTask(
        name="lost",
        lm_eval_name="lost",
        folder=tmp_path,
        hub="org/lost",
        columns=("country",),
        metrics={"acc": "exact_match,none"},
        few_shot=False,
    )
    with pytest.raises(GeneralTaskError, match="lost: lm-eval finds no task lost in"):
        GeneralHarness(task, data)
