"""One synthetic run and its report, made once for the room's tests. Read only."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sftknow.report.compose import write_report
from sftknow.report.side_by_side import write_side_by_side
from tests.report.synthetic import add_extras, synthetic_run


def pytest_configure(config: pytest.Config) -> None:
    """Known here too, so that these tests run alone."""
    config.addinivalue_line("markers", "browser: opens reports in headless Chromium; skipped where there is none")


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


@pytest.fixture(scope="session")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything that the paper has: strategies, training facts, other tasks, layer ranges, three seeds."""
    folder = tmp_path_factory.mktemp("rich") / "rich"
    names = [f"b{b}-n{n}-s{s}" for b in (0, 4) for n in (240, 1920) for s in range(3)]
    synthetic_run(folder, buckets=(0, 2, 4), sizes=(60, 240, 1920), seeds=(0, 1, 2), restored=names, per_bucket=30)
    return add_extras(folder, per_bucket=30)


@pytest.fixture(scope="session")
def rich_page(rich: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its report."""
    return write_report(rich, tmp_path_factory.mktemp("rich-report"))


@pytest.fixture(scope="session")
def rich_results(rich_page: Path) -> Any:
    """The content of its results.json."""
    return json.loads((rich_page.parent / "results.json").read_text())


@pytest.fixture(scope="session")
def both(run: Path, rich: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a whole run beside a rich one and one that has just begun."""
    folder = tmp_path_factory.mktemp("both")
    shutil.copytree(run / "mastery", folder / "young" / "mastery")
    shutil.copy(run / "recipe.yaml", folder / "young")
    return write_side_by_side([run, rich, folder / "young"], folder / "out")
