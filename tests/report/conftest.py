"""One synthetic run and its report, made once for the room's tests. Read only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sftknow.report.compose import write_report
from tests.report.synthetic import synthetic_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two buckets, two sizes, two seeds; the worst cell restored at four levels."""
    folder = tmp_path_factory.mktemp("run") / "made-up"
    return synthetic_run(folder, buckets=(0, 2), sizes=(60, 240), seeds=(0, 1), per_bucket=20)


@pytest.fixture(scope="session")
def page(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's report, outside the run directory."""
    return write_report(run, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="session")
def results(page: Path) -> Any:
    """The content of its results.json."""
    return json.loads((page.parent / "results.json").read_text())
