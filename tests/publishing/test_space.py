"""Reports and leaderboards as static Spaces."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from sftknow.cli.main import main
from sftknow.errors import HubError
from sftknow.publishing.cards import Licence
from sftknow.publishing.publish import publish
from sftknow.publishing.space import plan_space
from sftknow.run.leaderboard import leaderboard
from sftknow.run.publishing import RunOptions, publish_run
from tests.hub_server import HubServer
from tests.leaderboard.thirty import DATA, Hub

REPORT = "org/tiny-report"


def test_a_report_goes_up_as_a_space(hub: HubServer, whole_run: Path) -> None:
    options = RunOptions(to="org", data_licence=Licence(id="mit"), report_space=True)
    receipts = publish_run(whole_run, options, endpoint=hub.endpoint, token="hf_test")
    assert receipts[-1].url == f"{hub.endpoint}/spaces/{REPORT}/tree/main"
    page = hub.read("space", REPORT, "index.html").decode()
    assert "/home/somebody" not in page
    assert str(whole_run.resolve()) not in page
    assert hub.read("space", REPORT, "figure.png") == b"PNG"
    head = yaml.safe_load(hub.read("space", REPORT, "README.md").decode().split("---\n")[1])
    assert (head["sdk"], head["app_file"], head["datasets"]) == ("static", "index.html", ["org/tiny-graded"])
    assert hub.repos["space", REPORT].private
    hub.requests.clear()
    assert publish_run(whole_run, options, endpoint=hub.endpoint, token="hf_test") == receipts
    assert hub.count("POST", "/commit/") == 0


def test_a_run_without_a_report_says_so(hub: HubServer, whole_run: Path, tmp_path: Path) -> None:
    shutil.copytree(whole_run, tmp_path / "tiny")
    shutil.rmtree(tmp_path / "tiny" / "report")
    options = RunOptions(to="org", data_licence=Licence(id="mit"), report_space=True)
    with pytest.raises(HubError, match="has no report yet: make it with `sftknow report"):
        publish_run(tmp_path / "tiny", options, endpoint=hub.endpoint, token="hf_test")
    assert hub.repos == {}, "nothing was sent"


def test_somebodys_own_space_is_not_overwritten(hub: HubServer, tmp_path: Path) -> None:
    hub.put("space", "org/mine", {"index.html": b"my page"})
    plan = plan_space(tmp_path, "org/mine", {"index.html": b"ours"}, title="T", about="A.", private=False)
    with pytest.raises(HubError, match=r"org/mine"):
        publish(plan, endpoint=hub.endpoint, token="hf_test")
    assert hub.read("space", "org/mine", "index.html") == b"my page"


def test_a_leaderboard_goes_up_and_is_brought_up_to_date(hub: HubServer, tmp_path: Path) -> None:
    put = Hub(hub, tmp_path)
    put.model("org/one", put.answers(0.5))
    said: list[str] = []
    more = {"space": "org/ranks", "private": False, "endpoint": hub.endpoint, "token": "hf_test", "say": said.append}
    leaderboard(DATA, tmp_path / "board", **more)  # type: ignore[arg-type]
    assert b"org/one" in hub.read("space", "org/ranks", "index.html")
    assert not hub.repos["space", "org/ranks"].private
    assert f"published: {hub.endpoint}/spaces/org/ranks/tree/main" in said[-1]
    put.model("org/two", put.answers(0.6, seed=1))
    leaderboard(DATA, tmp_path / "board", **more)  # type: ignore[arg-type]
    assert b"org/two" in hub.read("space", "org/ranks", "index.html")


def test_public_without_a_space_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leaderboard", DATA, "--public"]) == 2
    assert "--space" in capsys.readouterr().err
