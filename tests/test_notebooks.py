"""The notebooks run, and what they store is what they show."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from tests.notebooks import FOLDER, read, run, sources

FILES = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_stored_as_they_ran(file: Path) -> None:
    notebook = read(file)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for number, (cell, source) in enumerate(sources(notebook), start=1):
        compile(source, file.name, "exec")
        assert cell["execution_count"] == number  # run from top to bottom: python -m tests.notebooks
        assert not any(str(Path.home()) in str(output) for output in cell["outputs"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_they_run(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFTKNOW_CACHE", str(tmp_path / "cache"))
    notebook = read(file)
    stored = copy.deepcopy(notebook)
    run(notebook, tmp_path)
    for (cell, source), (before, _) in zip(sources(notebook), sources(stored), strict=True):
        kinds = [[sorted(output.get("data", "stream")) for output in one["outputs"]] for one in (cell, before)]
        assert kinds[0] == kinds[1], source


def test_there_are_some() -> None:
    assert FILES
