"""Several runs on one page."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from sftknow.cli.main import main
from sftknow.errors import RunError
from sftknow.report.side_by_side import write_side_by_side
from tests.report.browser import Site, assert_sound, find_browser


def test_runs_beside_each_other(both: Path) -> None:
    content, folder = both.read_text(), both.parent
    for name in ("made-up", "rich", "young"):
        assert (folder / name / "report.html").is_file()
        assert f'href="{name}/report.html"' in content
    tables = json.loads((folder / "results.json").read_text())["tables"]
    own = json.loads((folder / "rich" / "results.json").read_text())
    matrix = tables["table-m-verdicts"]
    assert matrix["columns"] == ["Claim", "made-up", "rich", "young"]
    assert [row[2]["text"] for row in matrix["rows"]] == [v["word"] for v in own["verdicts"]]
    assert {row[3]["text"] for row in matrix["rows"]} == {"nothing scored"}
    overview = tables["runs-overview"]
    place = overview["columns"].index("Its accuracy (%)")
    assert overview["rows"][1][place]["value"] == pytest.approx(100 * own["findings"]["best_training"]["test"])
    ids = re.findall(r'\bid="([^"]+)"', content)
    assert len(ids) == len(set(ids))
    assert "young: the accuracy of fine-tuned models" in content


def test_runs_of_one_name_are_numbered(run: Path, tmp_path: Path) -> None:
    runs = [tmp_path / place / "same" for place in ("one", "two")]
    for folder in runs:
        shutil.copytree(run / "mastery", folder / "mastery")
    page = write_side_by_side(runs, tmp_path / "both")
    assert (page.parent / "same-2" / "report.html").is_file()


def test_what_would_be_overwritten(run: Path, tmp_path: Path) -> None:
    young = tmp_path / "young"
    shutil.copytree(run / "mastery", young / "mastery")
    with pytest.raises(RunError, match="given twice"):
        write_side_by_side([run, run], tmp_path / "out")
    with pytest.raises(RunError, match="is one of the runs"):
        write_side_by_side([run, young], young)
    with pytest.raises(RunError, match="into the run itself"):
        write_side_by_side([run, young], tmp_path)
    assert not (young / "report.html").exists()


def test_the_command(run: Path, rich: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run), str(rich)]) == 2
    assert "--out DIR" in capsys.readouterr().err
    assert main(["report", str(run), str(tmp_path)]) == 2
    assert "is no run directory" in capsys.readouterr().err


@pytest.mark.browser
@pytest.mark.skipif(find_browser() is None, reason="no Chromium: apt-get install chromium, or set CHROMIUM")
def test_in_a_browser(both: Path) -> None:
    with Site(both.parent) as site:
        assert_sound(site, both.name, 360, pictures=2)
        assert_sound(site, "young/report.html", 360, pictures=1, dark=True)
