"""Whole runs: every part in its repository, levels as branches, data set first, nothing twice."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from sftknow.artifacts.mastery_data import MasteryData
from sftknow.cli.main import main
from sftknow.errors import HubError
from sftknow.models.pull import pull
from sftknow.publishing.cards import Licence
from sftknow.run.publishing import RunOptions, plan_run, publish_run
from tests.hub_fixtures import CELL, both_ways
from tests.hub_server import Fault, HubServer

MODEL, DATA, RESULTS = f"org/tiny-{CELL}", "org/tiny-graded", "org/tiny-results"


def options(**more: Any) -> RunOptions:
    return RunOptions(**{"to": "org", "data_licence": Licence(id="mit"), **more})


def send(hub: HubServer, run: Path, **more: Any) -> list[str]:
    receipts = publish_run(run, options(**more), endpoint=hub.endpoint, token="hf_test")
    return [f"{receipt.repo_id} {receipt.url.rpartition('/')[2]}" for receipt in receipts]


@both_ways
def test_every_part_arrives_and_names_the_others(hub: HubServer, whole_run: Path) -> None:
    assert send(hub, whole_run) == [f"{DATA} main", f"{MODEL} main", f"{MODEL} restore-20pct", f"{RESULTS} main"]
    assert {repo.private for repo in hub.repos.values()} == {True}
    commit = hub.repos["dataset", DATA].branches["main"]
    own = MasteryData(whole_run / "mastery" / "dataset").fingerprint
    for branch, restored in (("main", False), ("restore-20pct", True)):
        manifest = json.loads(hub.read("model", MODEL, "sftknow.json", branch))
        assert manifest["mastery_dataset"] == {"repo": DATA, "revision": commit, "fingerprint": own}
        assert ("restoration" in manifest) == restored
        card = hub.read("model", MODEL, "README.md", branch).decode()
        assert (f'from_pretrained("{MODEL}", revision="restore-20pct")' in card) == restored
        assert (f"pretrained={MODEL},revision=restore-20pct --tasks" in card) == restored
        results = yaml.safe_load(hub.read("model", MODEL, ".eval_results/cbqa_mastery.yaml", branch))
        assert {entry["dataset"]["revision"] for entry in results} == {commit}
    assert (
        "| restored versions | branches `restore-20pct` of this repository |"
        in hub.read("model", MODEL, "README.md").decode()
    )
    folder = pull(RESULTS, endpoint=hub.endpoint, token="hf_test")
    rows = pq.read_table(folder / "scores.parquet").to_pylist()
    assert {row["model"] for row in rows} == {"base", CELL, f"{CELL}@20pct"}
    assert json.loads((folder / "sftknow.json").read_text())["models"][f"{CELL}@20pct"] == {
        "repo": MODEL,
        "branch": "restore-20pct",
    }


@both_ways
def test_twice_is_once(hub: HubServer, whole_run: Path) -> None:
    first = publish_run(whole_run, options(), endpoint=hub.endpoint, token="hf_test")
    hub.requests.clear()
    assert publish_run(whole_run, options(), endpoint=hub.endpoint, token="hf_test") == first
    assert hub.count("POST", "/commit/|preupload|/branch/|repos/create") == 0
    assert hub.count("PUT", ".") == hub.count("GET", "xet-write-token") == 0
    assert len(hub.repos["model", MODEL].history("main")) == 2


def test_what_breaks_off_goes_on(hub: HubServer, whole_run: Path) -> None:
    hub.faults.append(Fault("error", "POST", f"models/{MODEL}/commit/restore", times=10**6))
    with pytest.raises(HubError, match="start the same command again") as caught:
        send(hub, whole_run)
    assert caught.value.repo_id == MODEL
    branch = hub.repos["model", MODEL].history("restore-20pct")[0].files
    assert "sftknow.json" not in branch, "a branch that was never filled must not look like a copy of main"
    assert ("dataset", RESULTS) not in hub.repos
    hub.faults.clear()
    hub.requests.clear()
    send(hub, whole_run)
    assert hub.count("POST", f"models/{MODEL}/commit/main") == 0
    assert hub.count("POST", f"models/{MODEL}/commit/restore-20pct") == 1
    assert hub.count("PUT", ".") == 1, "but for the table of scores, all large files were there already"


def test_no_path_of_this_machine_leaves_it(hub: HubServer, whole_run: Path) -> None:
    send(hub, whole_run)
    for (kind, name), repo in hub.repos.items():
        for branch in repo.branches:
            for path in repo.history(branch)[0].files:
                content = hub.read(kind, name, path, branch)
                assert b"/home/" not in content, (name, path)
                assert str(whole_run.resolve()).encode() not in content, (name, path)


def test_parts_by_name(hub: HubServer, whole_run: Path) -> None:
    with pytest.raises(HubError, match=r"need their graded data set on the Hub first \(--only data\)"):
        send(hub, whole_run, only=("tuned",))
    assert not hub.repos
    assert send(hub, whole_run, only=("data",)) == [f"{DATA} main"]
    assert send(hub, whole_run, only=("restored",)) == [f"{MODEL} restore-20pct"]
    assert set(hub.repos["model", MODEL].history("main")[0].files) == {".gitattributes"}
    assert send(hub, whole_run, only=(CELL,)) == [f"{MODEL} main", f"{MODEL} restore-20pct"]
    with pytest.raises(HubError, match=f"--only b9: .* has data, tuned, restored, results, {CELL}"):
        send(hub, whole_run, only=("b9",))


def test_cards_say_what_is_on_the_hub_and_not_what_a_call_sends(hub: HubServer, whole_run: Path) -> None:
    def said(kind: str, name: str, branch: str = "main") -> str:
        return hub.read(kind, name, "README.md", branch).decode()

    main_line = "| restored versions | branches `restore-20pct` of this repository |"
    places = [f"| {CELL} |", f"| {CELL}@20pct |"]

    def told() -> list[bool]:
        rows = [row for row in said("dataset", RESULTS).splitlines() if row.startswith(tuple(places))]
        return [MODEL in row for row in rows]

    send(hub, whole_run)
    whole = said("dataset", RESULTS), said("model", MODEL)
    assert told() == [True, True]
    assert main_line in whole[1]
    for only in ("results", "tuned", "restored", "data", CELL):
        send(hub, whole_run, only=(only,))
        assert (said("dataset", RESULTS), said("model", MODEL)) == whole, only
    assert len(hub.repos["model", MODEL].history("main")) == 2

    hub.repos.clear()
    send(hub, whole_run, only=("data",))
    send(hub, whole_run, only=("results",))
    assert told() == [False, False]
    assert send(hub, whole_run, only=("tuned",)) == [f"{MODEL} main", f"{RESULTS} main"]
    assert told() == [True, False], "the results' card is brought up to date"
    assert "restored versions" not in said("model", MODEL)
    sent = send(hub, whole_run, only=("restored",))
    assert sent == [f"{MODEL} main", f"{MODEL} restore-20pct", f"{RESULTS} main"]
    assert told() == [True, True]
    assert main_line in said("model", MODEL), "as is the model's own"
    plan = str(plan_run(whole_run, options(only=("restored",)), endpoint=hub.endpoint, token="hf_test"))
    assert plan.count("its card is brought up to date") == 2


def test_a_branch_that_was_never_filled_is_in_no_card(hub: HubServer, whole_run: Path) -> None:
    hub.faults.append(Fault("error", "POST", f"models/{MODEL}/commit/restore", times=10**6))
    with pytest.raises(HubError, match="start the same command again"):
        send(hub, whole_run, only=("data", "restored"))
    hub.faults.clear()
    send(hub, whole_run, only=("tuned", "results"))
    assert "restored versions" not in hub.read("model", MODEL, "README.md").decode()
    assert "restore-20pct" not in hub.read("dataset", RESULTS, "README.md").decode()


def test_a_wrong_licence_is_refused_before_the_first_byte(hub: HubServer, whole_run: Path) -> None:
    for wrong in ({"licence": Licence(id="apache2")}, {"data_licence": Licence(id="MIT")}):
        with pytest.raises(
            HubError, match=r"the Hub knows no licence '(apache2|MIT)' \(org/tiny.*repositories-licenses"
        ):
            send(hub, whole_run, **wrong)
        assert not hub.repos
        assert hub.count("PUT", ".") == hub.count("POST", "repos/create|preupload|commit") == 0


def test_the_licence_of_facts_on_the_hub_goes_for_their_results(
    hub: HubServer, whole_run: Path, tmp_path: Path
) -> None:
    commit = hub.put("dataset", "org/facts", {"README.md": b"---\nlicense: cc-by-4.0\n---\n"})
    run = tmp_path / "tiny"
    shutil.copytree(whole_run, run)
    place = run / "mastery" / "dataset" / "sftknow.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "facts": {"source": f"org/facts@{commit}"}}))
    send(hub, run, data_licence=None)
    for name in (DATA, RESULTS):
        assert (
            yaml.safe_load(hub.read("dataset", name, "README.md").decode().split("---\n")[1])["license"] == "cc-by-4.0"
        )


def test_the_name_that_was_given_is_the_run_s_name(hub: HubServer, whole_run: Path) -> None:
    send(hub, whole_run, name="lab")
    assert 'What the run "lab" measured' in hub.read("dataset", "org/lab-results", "README.md").decode()


def test_a_missing_licence_stops_everything(hub: HubServer, whole_run: Path) -> None:
    with pytest.raises(
        HubError, match=r"no licence is known for org/tiny-graded: .*source of its facts.*--data-licence"
    ):
        send(hub, whole_run, data_licence=None)
    with pytest.raises(HubError, match=r"wants a copy of itself beside org/Llama-tiny-b2"):
        send(hub, whole_run, licence=Licence(id="llama3.1"))
    assert not hub.repos, "everything is checked before anything is sent"


def test_a_name_that_the_licence_wants(hub: HubServer, whole_run: Path, tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("agreement")
    named = {"licence": Licence(id="llama3.1"), "licence_file": tmp_path / "LICENSE", "name": "mine"}
    plans = plan_run(whole_run, options(**named), endpoint=hub.endpoint, token="hf_test").plans
    assert [plan.repo_id for plan in plans] == [
        "org/mine-graded",
        f"org/Llama-mine-{CELL}",
        f"org/Llama-mine-{CELL}",
        "org/mine-results",
    ]


def test_runs_that_did_not_get_far(hub: HubServer, whole_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "tiny"
    run.mkdir()
    (run / "recipe.yaml").write_text("name: tiny\n")
    with pytest.raises(HubError, match="has no graded data set yet"):
        send(hub, run)
    shutil.copytree(whole_run / "mastery", run / "mastery")
    shutil.copy(whole_run / "provenance.json", run)
    with pytest.raises(HubError, match="has no scores yet"):
        send(hub, run)
    assert send(hub, run, only=("data",)) == [f"{DATA} main"]


def test_the_command(
    hub: HubServer, whole_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    asked = ["publish", str(whole_run), "--to", "org", "--data-licence", "mit"]
    assert main([*asked, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert not hub.repos
    assert f"→ private data set {DATA}: 23 files," in told
    assert f"→ private model {MODEL}, branch restore-20pct: " in told
    assert re.search(r"in all 4 publications, \d+ files, [\d,]+ bytes", told)
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert said.startswith(told), "what was announced and what was done"
    assert said.count("published: ") == 4
    sent = sum(
        blob.size for repo in hub.repos.values() for b in repo.branches for blob in repo.history(b)[0].files.values()
    )
    planned = int(re.search(r"files, ([\d,]+) bytes$", told.strip())[1].replace(",", ""))  # type: ignore[index]
    attributes = 5 * len(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
    assert abs(sent - planned - attributes) < 60, "a commit's hash may need quotes in YAML"
    assert main(["publish", str(whole_run), "--to", "org/tiny"]) == 2
    assert "give --to org --name tiny" in capsys.readouterr().err
    assert main([*asked, "--public"]) == 2
    assert "is there already and is private" in capsys.readouterr().err


def test_nothing_printed_or_written_holds_the_token(
    hub: HubServer,
    whole_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    secret = "hf_" + "Zq8w" * 9
    hub.accounts[secret] = hub.accounts["hf_test"]
    monkeypatch.setenv("HF_TOKEN", secret)
    monkeypatch.chdir(tmp_path)
    asked = ["publish", str(whole_run), "--to", "org", "--data-licence", "mit"]
    caplog.set_level("DEBUG")
    assert main(asked) == 0
    assert main(["pull", MODEL, "--out", "model"]) == 0
    assert main(["pull", DATA]) == 0
    hub.faults.append(Fault("error", "POST", "commit", status=403, times=10**6))
    assert main([*asked, "--name", "again"]) == 2
    hub.faults.clear()
    del hub.accounts[secret]
    assert main([*asked, "--name", "other"]) == 2
    printed = capfd.readouterr()
    for text in (printed.out, printed.err, caplog.text):
        assert secret not in text
    for path in [*tmp_path.rglob("*"), *whole_run.rglob("*")]:
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path
