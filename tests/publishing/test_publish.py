"""Publishing to a real client's Hub: once, whole, and with one line where it cannot be."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import pytest

from sftknow.errors import HubError
from sftknow.models.hub_client import Patience
from sftknow.publishing.publish import PublicationPlan, plan_publication, publish
from sftknow.publishing.receipts import PublishReceipt
from tests.hub_fixtures import both_ways
from tests.hub_server import Fault, HubServer

REPO = "org/facts-graded"


@pytest.fixture
def plan(tiny_dataset: Path) -> PublicationPlan:
    return plan_publication(tiny_dataset, REPO, licence="mit")


def send(hub: HubServer, plan: PublicationPlan, *, token: str | None = "hf_test") -> PublishReceipt:
    return publish(plan, endpoint=hub.endpoint, token=token, patience=Patience(first_wait=0.5))


def commits(hub: HubServer, plan: PublicationPlan) -> int:
    """Commits on the branch beside the one that made the repository."""
    return len(hub.repos[plan.repo_type, plan.repo_id].history(plan.revision)) - 1


def assert_whole(hub: HubServer, plan: PublicationPlan) -> None:
    for file in plan.files:
        there = hub.read(plan.repo_type, plan.repo_id, file.path, plan.revision)
        assert there == (file.content if isinstance(file.content, bytes) else file.content.read_bytes()), file.path


@both_ways
def test_a_data_set_arrives_in_one_commit_and_private(hub: HubServer, plan: PublicationPlan) -> None:
    receipt = send(hub, plan)
    assert_whole(hub, plan)
    assert commits(hub, plan) == 1
    assert hub.repos["dataset", REPO].private
    assert receipt.revision == hub.repos["dataset", REPO].branches["main"]
    assert receipt.url == f"{hub.endpoint}/datasets/{REPO}/tree/main"
    assert receipt.files[-1] == "sftknow.json"


@both_ways
def test_the_same_again_makes_no_commit_and_sends_nothing(hub: HubServer, plan: PublicationPlan) -> None:
    first = send(hub, plan)
    hub.requests.clear()
    assert send(hub, plan) == first
    assert commits(hub, plan) == 1
    assert hub.count("PUT", ".") == hub.count("POST", "/commit/") == 0


@both_ways
def test_only_what_changed_is_sent(hub: HubServer, restored_model: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(restored_model, mine)
    send(hub, plan_publication(mine, "org/model"))
    hub.requests.clear()
    (mine / "generation_config.json").write_text("{}")
    changed = plan_publication(mine, "org/model")
    send(hub, changed)
    assert_whole(hub, changed)
    assert commits(hub, changed) == 2
    assert hub.count("PUT", ".") == 0, "the weights went up again"


def test_a_file_that_is_gone_from_the_model_goes_from_the_hub(
    hub: HubServer, restored_model: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(restored_model, mine)
    (mine / "extra.safetensors").write_bytes(b"old shard")
    send(hub, plan_publication(mine, "org/model"))
    hub.put("model", "org/model", {"picture.png": b"somebody's own"})
    (mine / "extra.safetensors").unlink()
    send(hub, plan_publication(mine, "org/model"))
    files = hub.repos["model", "org/model"].history("main")[0].files
    assert "extra.safetensors" not in files
    assert "picture.png" in files, "a file that sftknow did not put there is not its to remove"


@pytest.mark.parametrize(
    "fault",
    [
        Fault("error", "GET", "whoami"),
        Fault("error", "POST", "repos/create", status=503),
        Fault("error", "POST", "validate-yaml", status=502),
        Fault("error", "POST", "/preupload/"),
        Fault("error", "POST", "objects/batch"),
        Fault("error", "PUT", "/lfs/", times=2),
        Fault("error", "POST", "/commit/"),
        Fault("error", "GET", "/tree/"),
        Fault("rate_limit", "POST", "repos/create", retry_after=7),
        Fault("rate_limit", "POST", "/preupload/", retry_after=7),
        Fault("rate_limit", "POST", "/commit/", retry_after=7),
        Fault("drop", "GET", "/api/datasets/"),
        Fault("drop", "PUT", "/lfs/"),
        Fault("drop", "POST", "/commit/"),
        Fault("lose_response", "POST", "repos/create"),
        Fault("lose_response", "PUT", "/lfs/"),
        Fault("lose_response", "POST", "/commit/"),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.method}-{fault.pattern.strip('/').replace('/', '-')}",
)
def test_a_stumble_ends_in_one_whole_commit(
    hub: HubServer, plan: PublicationPlan, fault: Fault, naps: list[float]
) -> None:
    fault = dataclasses.replace(fault)
    hub.faults.append(fault)
    receipt = send(hub, plan)
    assert fault.times == 0, "the fault never struck"
    assert_whole(hub, plan)
    assert commits(hub, plan) == 1
    assert receipt.revision == hub.repos["dataset", REPO].branches["main"]
    if fault.kind == "rate_limit":
        assert max(naps) >= 7


@pytest.mark.parametrize("hub", ["xet"], indirect=True)
@pytest.mark.parametrize(
    "fault",
    [
        Fault("error", "GET", "xet-write-token"),
        Fault("drop", "GET", "xet-write-token"),
        Fault("error", "POST", "/commit/"),
        Fault("lose_response", "POST", "/commit/"),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.pattern.strip('/')}",
)
def test_a_stumble_over_xet_ends_in_one_whole_commit(hub: HubServer, plan: PublicationPlan, fault: Fault) -> None:
    fault = dataclasses.replace(fault)
    hub.faults.append(fault)
    send(hub, plan)
    assert fault.times == 0, "the fault never struck"
    assert_whole(hub, plan)
    assert commits(hub, plan) == 1


@pytest.mark.parametrize("hub", ["xet"], indirect=True)
@pytest.mark.parametrize(
    ("status", "says"),
    [(401, "refuses this token for org/facts-graded"), (403, "refuses this token"), (404, "HF_HUB_DISABLE_XET=1")],
)
def test_xet_storage_that_refuses(hub: HubServer, plan: PublicationPlan, status: int, says: str) -> None:
    hub.faults.append(Fault("error", "GET", "xet-write-token", status=status, times=10**6))
    with pytest.raises(HubError, match=says) as caught:
        send(hub, plan)
    assert "\n" not in str(caught.value)
    assert commits(hub, plan) == 0
    assert hub.count("GET", "xet-write-token") == 1, "the storage's own client knows when to try again"
    hub.faults.clear()
    send(hub, plan)
    assert_whole(hub, plan)


def test_somebody_else_commits_meanwhile(hub: HubServer, plan: PublicationPlan) -> None:
    send(hub, plan_publication(plan.artifact, REPO, licence="apache-2.0"))
    hub.faults.append(Fault("error", "POST", "/commit/", status=412))
    send(hub, plan)
    assert_whole(hub, plan)
    assert commits(hub, plan) == 2


def test_a_hub_that_stays_down_leaves_nothing_that_looks_finished(hub: HubServer, plan: PublicationPlan) -> None:
    hub.faults.append(Fault("error", "POST", "/commit/", times=10**6))
    with pytest.raises(HubError, match="start the same command again") as caught:
        send(hub, plan)
    assert caught.value.repo_id == REPO
    assert "\n" not in str(caught.value)
    assert set(hub.repos["dataset", REPO].history("main")[0].files) == {".gitattributes"}
    hub.faults.clear()
    hub.requests.clear()
    send(hub, plan)
    assert_whole(hub, plan)
    assert hub.count("PUT", ".") == 0, "what had been uploaded went up again"


def test_a_branch_for_each_level(hub: HubServer, restored_model: Path, finished_run: Path) -> None:
    tuned = plan_publication(finished_run / "models" / "b2-n240-s0", "org/model")
    branch = plan_publication(restored_model, "org/model", revision="restore-20pct")
    send(hub, tuned)
    receipt = send(hub, branch)
    assert_whole(hub, tuned)
    assert_whole(hub, branch)
    assert receipt.url.endswith("/tree/restore-20pct")
    assert "restoration" in json.loads(hub.read("model", "org/model", "sftknow.json", "restore-20pct"))
    assert "restoration" not in json.loads(hub.read("model", "org/model", "sftknow.json"))


@pytest.mark.parametrize(
    ("token", "says"),
    [
        (None, "no Hub token"),
        ("hf_expired", "not valid or has expired"),
        ("hf_read", "may only read"),
        ("hf_other", "may not write to org/facts-graded"),
    ],
)
def test_tokens_that_will_not_do(
    hub: HubServer, plan: PublicationPlan, token: str | None, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(HubError, match=says) as caught:
        send(hub, plan, token=token)
    assert "\n" not in str(caught.value)
    assert not hub.repos
    assert token is None or (token not in str(caught.value) and token not in caplog.text)


def test_a_repository_of_somebody_else(hub: HubServer, plan: PublicationPlan) -> None:
    hub.put("dataset", REPO, {"README.md": b"theirs"}, private=True)
    with pytest.raises(HubError, match="may not write"):
        send(hub, plan, token="hf_other")
    assert hub.read("dataset", REPO, "README.md") == b"theirs"


def test_a_name_that_the_hub_refuses(hub: HubServer, tiny_dataset: Path) -> None:
    with pytest.raises(HubError, match="not an allowed repository name"):
        send(hub, plan_publication(tiny_dataset, "org/reserved-word", licence="mit"))


@pytest.mark.parametrize("there_private", [True, False])
def test_visibility_is_never_changed_on_the_way(hub: HubServer, plan: PublicationPlan, there_private: bool) -> None:
    hub.put("dataset", REPO, {"README.md": b"there"}, private=there_private)
    with pytest.raises(HubError, match="is there already and is"):
        send(hub, dataclasses.replace(plan, private=not there_private))
    assert hub.read("dataset", REPO, "README.md") == b"there"


def test_weights_that_others_put_there_are_not_overwritten(hub: HubServer, restored_model: Path) -> None:
    hub.put("model", "org/model", {"model.safetensors": b"the original"}, private=True)
    with pytest.raises(HubError, match="did not put there"):
        send(hub, plan_publication(restored_model, "org/model"))
    assert hub.read("model", "org/model", "model.safetensors") == b"the original"


def test_a_tree_of_many_pages(hub: HubServer, plan: PublicationPlan) -> None:
    hub.page = 3
    send(hub, plan)
    hub.requests.clear()
    send(hub, plan)
    assert hub.count("POST", "/commit/") == 0
    assert hub.count("GET", "/tree/") > 5


def test_offline_is_said_at_once(hub: HubServer, plan: PublicationPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        send(hub, plan)
    assert not hub.requests
