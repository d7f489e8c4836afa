"""Thirty models on a Hub: who is ranked, who is left out and why, and that nothing foreign reaches page or terminal."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from sftknow.cli.main import main
from sftknow.errors import HubError, MasteryDataError
from sftknow.leaderboard.answers import Questions, scores_from
from sftknow.leaderboard.claims import NotCounted, Told, place_of, read_claims, scores_of
from sftknow.leaderboard.make import make_leaderboard
from sftknow.leaderboard.page import render
from sftknow.leaderboard.ranking import Entrant, rank
from sftknow.models.hub_client import Connection
from sftknow.models.hub_files import open_repo
from tests.hub_server import Fault, HubServer
from tests.leaderboard.thirty import DATA, HOSTILE, PER_BUCKET, Hub, as_json, eval_results, fill, parquet, percent


def link(hub: HubServer, token: str = "hf_test") -> Connection:
    return Connection.open(endpoint=hub.endpoint, token=token)


@pytest.mark.slow
def test_thirty_models(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reasons = fill(Hub(hub, tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    assert len([1 for kind, _ in hub.repos if kind == "model"]) >= 30
    assert main(["leaderboard", DATA, "--out", str(tmp_path / "board")]) == 0
    board = json.loads((tmp_path / "board" / "leaderboard.json").read_text())
    assert {row["repo_id"]: row["reason"] for row in board["left_out"]} == reasons
    assert board["private"] == 1
    rows = {f"{row['repo_id']}@{row['branch']}": row for row in board["standings"]}
    assert len(rows) == 10 + 6 + 1 + 2
    assert "org/silent@main" not in rows
    assert "org/hidden" not in (tmp_path / "board" / "index.html").read_text()
    firsts = [row for row in board["standings"] if row["rank"] == 1]
    assert [(row["repo_id"], row["branch"], row["answers"]) for row in firsts] == [
        ("org/answered-5", "main", True), ("org/answered-5", "restore-5pct", True),
    ]  # fmt: skip
    values = [row["scores"]["test"]["value"] for row in board["standings"]]
    assert values == sorted(values, reverse=True)
    assert all(row["best"] <= row["rank"] <= row["worst"] for row in board["standings"])
    assert rows["org/answered-0@main"]["best"] > 1, "the worst of those with answers is surely not the first"
    assert rows["other/base@main"]["told_by"] == "other/results"
    assert (rows["other/mean-only@main"]["own"], rows["other/mean-only@main"]["answers"]) == (True, False)
    assert rows["other/mean-only@main"]["scores"]["test"]["value"] > 0.4, "a stranger's answers do not overrule it"
    assert rows["org/told-0@main"]["weights"]
    assert not rows["other/mean-only@main"]["weights"]
    with (tmp_path / "board" / "leaderboard.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["model"] for row in table] == [row["repo_id"] for row in board["standings"]]
    out = capsys.readouterr().out
    assert "  1 (1–3)    org/answered-5" in out
    assert "not counted: bad/liar: its mean on test" in out


def test_nothing_foreign_reaches_page_or_terminal(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put = Hub(hub, tmp_path)
    answers = put.answers(0.5)
    put.model("org/good", percent(answers), notes=HOSTILE)
    evil = {
        HOSTILE: {"repo": "org/good", "branch": "main"},
        "m": {"repo": HOSTILE},
        "n": {"repo": "org/good", "branch": HOSTILE},
    }
    put.results("evil/results", {}, more={"models": evil, "run": HOSTILE})
    hub.put("dataset", DATA, {"sftknow.json": as_json(**{**put.data.manifest, "graded_by": HOSTILE})})
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    assert main(["leaderboard", DATA, "--out", str(tmp_path / "board")]) == 0
    said = capsys.readouterr()
    for text in (*(p.read_text() for p in (tmp_path / "board").iterdir()), said.out, said.err):
        assert "\x1b" not in text
        assert "<script" not in text
    assert "graded by a model that is not on the Hub" in (tmp_path / "board" / "index.html").read_text()


def test_the_page_stands_alone(hub: HubServer, tmp_path: Path) -> None:
    put = Hub(hub, tmp_path)
    put.model("org/one", put.answers(0.5))
    page = render(make_leaderboard(DATA, link=link(hub)), hub="https://huggingface.co")
    assert re.findall(r'(?:href|src)="([^"#]+)', page) == [
        "data:,",
        f"https://huggingface.co/datasets/{DATA}",
        f"https://huggingface.co/org/one/tree/{hub.repos['model', 'org/one'].branches['main']}",
        "leaderboard.json",
        "leaderboard.csv",
    ]
    assert "1 model, ranked by in-domain test" in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def test_an_earlier_version_of_the_data_has_its_own_leaderboard(hub: HubServer, tmp_path: Path) -> None:
    put = Hub(hub, tmp_path)
    old = dict.fromkeys(percent(put.answers(0.5)), 50.0)
    put.model("org/old", old, commit=put.first, fingerprint=put.old.fingerprint)
    assert [row.repo_id for row in make_leaderboard(f"{DATA}@{put.first}", link=link(hub)).standings] == ["org/old"]
    board = make_leaderboard(DATA, link=link(hub))
    assert (board.standings, [row.repo_id for row in board.left_out]) == ((), ["org/old"])


def test_answers_in_part_or_twice_do_not_count(hub: HubServer, tmp_path: Path) -> None:
    put = Hub(hub, tmp_path)
    answers = put.answers(0.5)
    published = {"part": answers[:-1], "twice": [*answers[:-1], answers[0]], "none": []}
    for name in published:
        put.model(f"org/{name}", None)
        put.results(f"org/{name}-results", {"m": (f"org/{name}", "main", published[name])})
    put.model("org/broken", None)
    put.results("org/broken-results", {"m": ("org/broken", "main", answers)})
    hub.put("dataset", "org/broken-results", {"evaluation/m/questions.parquet": parquet(answers)[:-40]})
    put.model("org/stale", None)
    put.results("org/stale-results", {"m": ("org/stale", "main", answers)}, fingerprint="0" * 64)
    board = make_leaderboard(DATA, link=link(hub))
    assert board.standings == ()
    assert {row.repo_id: row.reason for row in board.left_out} == {
        "org/part": f"it published answers to {PER_BUCKET - 1} of {PER_BUCKET} questions of testood, bucket 4",
        "org/twice": "its table answers a question twice",
        "org/none": "its published answers are to none of the splits that are ranked",
        "org/broken": "its table of answers cannot be read",
        "org/stale": "its answers are to another version of the data set",
    }


def test_a_hub_that_stumbles_is_asked_again_and_one_that_is_down_is_told(hub: HubServer, tmp_path: Path) -> None:
    put = Hub(hub, tmp_path)
    put.model("org/one", put.answers(0.5))
    hub.faults.append(Fault("error", "GET", "/api/models/org/one", status=503))
    assert len(make_leaderboard(DATA, link=link(hub)).standings) == 1
    hub.faults.append(Fault("error", "GET", "/api/models/org/one", status=503, times=10**6))
    with pytest.raises(HubError, match="503"):
        make_leaderboard(DATA, link=link(hub))


def test_what_is_no_graded_data_set_is_refused(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.put("dataset", "org/plain", {"README.md": b"---\ntags: []\n---\n"})
    with pytest.raises(MasteryDataError, match="no graded data set"):
        make_leaderboard("org/plain", link=link(hub))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("my page")
    assert main(["leaderboard", DATA, "--out", str(tmp_path / "mine")]) == 2
    assert "holds other files" in capsys.readouterr().err
    assert (tmp_path / "mine" / "index.html").read_text() == "my page"


# ---- pure parts ---------------------------------------------------------------------------------------------------


def entrant(put: Hub, name: str, rate: float, seed: int = 5) -> Entrant:
    repo = open_repo(DATA, None, "dataset", link=link(put.server))
    table = put.data.folder.parent / f"{name}.parquet"
    table.write_bytes(parquet(put.answers(rate, seed=seed)))
    repo.file("sftknow.json")
    right = Questions(repo, put.data).right(table)
    return Entrant(
        repo_id=f"org/{name}", branch="main", commit="c", told_by="org/r", own=True, weights=True,
        scores=scores_from(right), right=right,
    )  # fmt: skip


def test_pairs_are_told_apart_where_answers_are_there(hub: HubServer, tmp_path: Path) -> None:
    """Two models that find the same questions hard: paired, a small difference is sure; unpaired, it is not."""
    put = Hub(hub, tmp_path)
    two = [entrant(put, "a", 0.50), entrant(put, "b", 0.57)]
    assert [(r.rank, r.best, r.worst) for r in rank(two, "test")] == [(2, 2, 2), (1, 1, 1)]
    blind = [replace(one, right=None) for one in two]
    assert [(r.rank, r.best, r.worst) for r in rank(blind, "test")] == [(2, 1, 2), (1, 1, 2)]


def test_equal_models_share_their_rank(hub: HubServer, tmp_path: Path) -> None:
    put = Hub(hub, tmp_path)
    same = [entrant(put, "a", 0.5), entrant(put, "b", 0.5), entrant(put, "c", 0.9)]
    assert [(r.rank, r.best, r.worst) for r in rank(same, "test")] == [(2, 2, 3), (2, 2, 3), (1, 1, 1)]


COUNTS = {"train": {0: 0}, "dev": {0: 0}, "test": dict(enumerate((7, 60, 333, 0, 1))), "testood": {0: 0}}


@settings(max_examples=60, deadline=None)
@given(st.tuples(*(st.integers(0, n) for n in (7, 60, 333, 1))), st.integers(1, 4))
def test_true_scores_are_taken_however_they_are_rounded(right: tuple[int, ...], digits: int) -> None:
    sizes = {bucket: count for bucket, count in COUNTS["test"].items() if count}
    shares = {bucket: r / sizes[bucket] for bucket, r in zip(sizes, right, strict=True)}
    values = {f"cbqa_mastery_test_bucket_{b}": round(100 * share, digits) for b, share in shares.items()}
    mean = math.fsum(shares.values()) / len(shares)
    values["cbqa_mastery_test"] = round(100 * mean, digits)
    told = read_claims([eval_results(values, "c" * 40)], DATA)
    score = scores_of(told, COUNTS)["test"]  # type: ignore[arg-type]
    assert score.value == pytest.approx(mean, abs=0.006 if digits == 1 else 1e-12)
    assert 0 <= score.low <= score.value <= score.high <= 1


def test_the_error_of_a_bare_mean_is_never_too_small() -> None:
    sizes = {0: 40, 1: 50, 2: 60}
    counts = {"train": {}, "dev": {}, "test": sizes, "testood": {}}
    buckets = {0: 0.1, 1: 0.5, 2: 0.9}
    told = {("test", b): Told(percent=100 * p, digits=2, count=None) for b, p in buckets.items()}
    known = scores_of(told, counts)["test"]  # type: ignore[arg-type]
    bare = scores_of({("test", None): Told(percent=50.0, digits=2, count=None)}, counts)["test"]  # type: ignore[arg-type]
    assert bare.stderr >= known.stderr
    assert bare.buckets == {}


@pytest.mark.parametrize("task", ["cbqa_mastery", "cbqa_mastery_train", "cbqa_mastery_test_bucket_5", "x", 3, None])
def test_other_tasks_are_passed_over(task: object) -> None:
    assert place_of(task) is None


@pytest.mark.parametrize("value", [True, None, "41", [1], {"a": 1}, -0.1, 100.01, math.nan, math.inf])
def test_a_value_that_is_no_percentage_is_refused(value: object) -> None:
    with pytest.raises(NotCounted, match="no percentage"):
        read_claims([eval_results({"cbqa_mastery_test": value}, None)], DATA)
