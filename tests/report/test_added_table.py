"""A table that an installed package brings is on the page, in its files and in results.json."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sftknow.cli.main import main
from sftknow.errors import RunError
from sftknow.report.blocks import BLOCKS, SECTIONS, in_order, report_block

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "extending" / "report-table.md"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The guide's example as an installed package."""
    code = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    (tmp_path / "best_seeds.py").write_text(code[0])
    info = tmp_path / "best_seeds-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: best_seeds\nVersion: 1.0\n")
    toml = re.findall(r"```toml\n\[project\.entry-points\.\"(.*?)\"\]\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    (info / "entry_points.txt").write_text(f"[{toml[0][0]}]\n{toml[0][1].replace(chr(34), '')}")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    BLOCKS.remove("best-seeds")
    sys.modules.pop("best_seeds", None)


@pytest.mark.usefixtures("installed")
def test_a_table_from_outside_is_everywhere(run: Path, tmp_path: Path) -> None:
    assert main(["report", str(run), "--out", str(tmp_path / "out")]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    scores = {
        seed: json.loads((run / "evaluation" / f"b2-n240-s{seed}" / "scores.json").read_text())["metrics"]
        for seed in (0, 1)
    }
    values = {
        seed: next(m["value"] for m in metrics if (m["task"], m["metric"]) == ("cbqa_mastery_test", "acc"))
        for seed, metrics in scores.items()
    }
    best = max(values, key=lambda seed: values[seed])
    line = results["tables"]["best-seeds"]["rows"][-1]
    assert line[0]["text"] == "bucket 2, 240 facts"
    assert (line[1]["value"], line[2]["value"]) == (best, pytest.approx(100 * values[best]))
    lines = list(csv.reader((tmp_path / "out" / "tables" / "best-seeds.csv").open()))
    assert lines[0] == ["Trained on", "Best seed", "Accuracy (%)"]
    assert float(lines[-1][2]) == line[2]["value"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Best seeds" in page
    order = list(results["tables"])
    assert order.index("best-seeds") == order.index("table-2-accuracy") + 1


def test_a_section_that_is_not_there() -> None:
    with pytest.raises(RunError, match="no section mine; there are mastery, accuracy"):
        report_block("mine", section="mine")


def test_a_name_that_is_taken() -> None:
    with pytest.raises(RunError, match="a report table called table-2 already"):
        report_block("table-2", section="accuracy")(lambda report: None)


def test_none_is_lost_between_the_others() -> None:
    shown = [make for section in SECTIONS for make in in_order(section)]
    assert len(shown) == len(list(BLOCKS))
