"""A run's repositories in one Collection, over the real client."""

from __future__ import annotations

from pathlib import Path

import pytest

from sftknow.cli.main import main
from sftknow.errors import HubError
from sftknow.publishing.collection import collect
from sftknow.publishing.receipts import PublishReceipt
from tests.hub_server import Fault, HubServer

COMMAND = "--to org --data-licence mit --report-space --collection"
EVERYTHING = [
    ("org/tiny-graded", "dataset"),
    ("org/tiny-b2-n240-s0", "model"),
    ("org/tiny-results", "dataset"),
    ("org/tiny-report", "space"),
]


def gathered(hub: HubServer) -> list[tuple[str, str]]:
    (found,) = hub.collections.values()
    return [(item["id"], item["type"]) for item in found["items"]]


def test_a_run_is_gathered_once(
    hub: HubServer, whole_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    command = ["publish", str(whole_run), *COMMAND.split()]
    assert main([*command, "--dry-run"]) == 0
    assert "a private Collection 'tiny' of org with all of them" in capsys.readouterr().out
    assert hub.collections == {}
    hub.faults.append(Fault("lose_response", "POST", "/api/collections$"))
    hub.faults.append(Fault("error", "POST", "/items$", status=503))
    hub.faults.append(Fault("lose_response", "POST", "/items$"))
    assert main(command) == 0
    assert not hub.faults
    (slug,) = hub.collections
    assert f"in one Collection: {hub.endpoint}/collections/{slug}" in capsys.readouterr().out
    assert hub.collections[slug]["private"]
    assert gathered(hub) == EVERYTHING, "restored branches lie in the model's repository"
    hub.requests.clear()
    assert main(command) == 0
    assert gathered(hub) == EVERYTHING
    assert hub.count("POST", "/items$") == 0


def receipt(repo_id: str, kind: str = "model") -> PublishReceipt:
    return PublishReceipt(repo_id=repo_id, repo_type=kind, revision="f" * 40, files=(), url="")


def test_what_is_in_it_stays_and_its_visibility_is_looked_at(hub: HubServer) -> None:
    link = {"endpoint": hub.endpoint, "token": "hf_test"}
    for name in ("org/one", "org/two"):
        hub.put("model", name, {"config.json": b"{}"})
    address = collect([receipt("org/one")], title="Mine", private=False, **link)
    assert collect([receipt("org/two"), receipt("org/two")], title="Mine", private=False, **link) == address
    assert gathered(hub) == [("org/one", "model"), ("org/two", "model")]
    with pytest.raises(HubError, match=r"Collection 'Mine' of org is there already and is public: publish with --pub"):
        collect([receipt("org/two")], title="Mine", **link)


@pytest.mark.parametrize(
    ("token", "said"), [("hf_read", r"may not write to the Collection 'T' of org"), ("hf_none", "not valid or has")]
)
def test_a_refusal_names_the_collection(hub: HubServer, token: str, said: str) -> None:
    hub.put("model", "org/one", {"config.json": b"{}"})
    with pytest.raises(HubError, match=said):
        collect([receipt("org/one")], title="T", endpoint=hub.endpoint, token=token)
    assert hub.collections == {}
