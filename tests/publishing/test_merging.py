"""Cards mended by hand on the Hub: additions stay, changes to sftknow's own part are asked about."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi

from sftknow.cli.main import main
from sftknow.errors import HubError
from sftknow.publishing.merging import BEGIN, END, marked, merge, noted, split_card
from sftknow.publishing.publish import plan_publication, publish
from tests.hub_server import HubServer

REPO = "org/facts"


def send(hub: HubServer, folder: Path, *, licence: str = "mit", replace: bool = False) -> str:
    plan = plan_publication(folder, REPO, licence=licence)
    return publish(plan, replace_card=replace, endpoint=hub.endpoint, token="hf_test").revision


def card(hub: HubServer) -> str:
    return hub.read("dataset", REPO, "README.md").decode()


def mend(hub: HubServer, old: str, new: str) -> None:
    """As somebody does it in the Hub's editor, by the real client."""
    content = card(hub)
    assert content.count(old) >= 1
    HfApi(endpoint=hub.endpoint, token="hf_test").upload_file(
        path_or_fileobj=content.replace(old, new, 1).encode(),
        path_in_repo="README.md",
        repo_id=REPO,
        repo_type="dataset",
    )


def test_what_was_added_stays(hub: HubServer, tiny_dataset: Path) -> None:
    send(hub, tiny_dataset)
    mend(hub, BEGIN, f"> Read our paper first.\n\n{BEGIN}")
    mend(hub, END, f"{END}\n\n## Thanks\n\nTo Ada.")
    mend(hub, "license: mit", "license: mit\nextra_gated_prompt: be kind")
    kept = send(hub, tiny_dataset)
    assert kept == hub.repos["dataset", REPO].branches["main"]
    assert len(hub.repos["dataset", REPO].history("main")) == 5, "nothing to do, nothing done"
    send(hub, tiny_dataset, licence="apache-2.0")
    text = card(hub)
    found = split_card(text)
    assert found.above.strip() == "> Read our paper first."
    assert found.below.strip() == "## Thanks\n\nTo Ada."
    assert found.metadata["extra_gated_prompt"] == "be kind"
    assert found.metadata["license"] == "apache-2.0"
    assert text.count("How to load") == 1


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("Facts are as right and as old as their source.", "Facts are from 2019.", r"“- Facts are from 2019\.”"),
        ("license: mit", "license: cc-by-4.0", "license: cc-by-4.0"),
        ("pretty_name: ", "#pretty_name: ", "pretty_name: taken away"),
        (BEGIN, "", "“"),
        (END, f"{END}{BEGIN}", "“"),
        ("## Columns", "## Columns\x1b[2J", r"“## Columns\\x1b\[2J”"),
    ],
)
def test_a_change_to_what_sftknow_wrote_is_asked_about(
    hub: HubServer, tiny_dataset: Path, old: str, new: str, says: str
) -> None:
    send(hub, tiny_dataset)
    hub.put("dataset", REPO, {"README.md": card(hub).replace(old, new, 1).encode()})
    mended = card(hub)
    hub.requests.clear()
    with pytest.raises(HubError, match=rf"changed by hand where sftknow writes \(.*{says}.*--replace-card") as caught:
        send(hub, tiny_dataset, licence="apache-2.0")
    assert "\n" not in str(caught.value)
    assert card(hub) == mended
    assert hub.count("PUT", ".") == hub.count("POST", "/commit/|preupload") == 0, "nothing is sent before"
    send(hub, tiny_dataset, licence="apache-2.0", replace=True)
    assert split_card(card(hub)).metadata["license"] == "apache-2.0"
    assert split_card(card(hub)).body is not None
    send(hub, tiny_dataset)


def test_line_ends_and_the_order_of_entries_are_no_changes(hub: HubServer, tiny_dataset: Path) -> None:
    send(hub, tiny_dataset)
    head, rest = re.match(r"---\n(.*?)\n---\n(.*)", card(hub), re.DOTALL).groups()  # type: ignore[union-attr]
    sorted_head = yaml.safe_dump(yaml.safe_load(head), sort_keys=True)
    hub.put("dataset", REPO, {"README.md": f"---\n{sorted_head}---\n{rest}".replace("\n", "\r\n").encode()})
    send(hub, tiny_dataset, licence="apache-2.0")
    assert split_card(card(hub)).metadata["license"] == "apache-2.0"


def test_a_repository_that_was_made_by_hand(hub: HubServer, tiny_dataset: Path) -> None:
    hub.put("dataset", REPO, {"README.md": b"---\nlicense: mit\ntags:\n- sftknow\n- mine\n---\n"}, private=True)
    with pytest.raises(HubError, match="tags: "):
        send(hub, tiny_dataset)
    hub.put("dataset", REPO, {"README.md": b"---\nlicense: mit\nviewer: false\n---\n"})
    send(hub, tiny_dataset)
    assert split_card(card(hub)).metadata["viewer"] is False
    hub.put("dataset", REPO, {"README.md": b"# My own words\n", "sftknow.json": b"{}"})
    with pytest.raises(HubError, match="My own words"):
        send(hub, tiny_dataset)


def test_a_manifest_that_says_nothing_of_use(tiny_dataset: Path) -> None:
    ours = marked("---\nlicense: mit\n---\n\n# Facts\n\nNew.\n")
    theirs = marked("---\nlicense: mit\n---\n\n# Facts\n\nOld.\n")
    for known in (None, [], "x", 3, {"text": []}, {"metadata": [1]}, {"text": "a", "metadata": {"license": {}}}):
        with pytest.raises(HubError, match="Old"):
            merge(ours, theirs, known, REPO)
        assert merge(ours, theirs, known, REPO, replace=True) == ours
    assert merge(ours, theirs, noted(theirs), REPO) == ours


def test_a_run_looks_at_every_card_before_it_sends_anything(
    hub: HubServer, whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    run = tmp_path / "tiny"
    shutil.copytree(whole_run, run)
    asked = ["publish", str(run), "--to", "org", "--data-licence", "mit"]
    assert main(asked) == 0
    text = hub.read("dataset", "org/tiny-results", "README.md").decode()
    hub.put("dataset", "org/tiny-results", {"README.md": text.replace("## Limits", "## Limitations").encode()})
    (run / "recipe.yaml").write_text(json.dumps({"name": "other"}))
    hub.requests.clear()
    assert main([*asked, "--data-licence", "apache-2.0"]) == 2
    assert "README.md of org/tiny-results was changed by hand" in capsys.readouterr().err
    assert hub.count("POST", "/commit/|preupload") == 0
    assert main([*asked, "--data-licence", "apache-2.0", "--replace-card"]) == 0
    assert "## Limitations" not in hub.read("dataset", "org/tiny-results", "README.md").decode()
