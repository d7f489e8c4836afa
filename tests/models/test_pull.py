"""Pulling: commits, hashes, and no stale copy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants
from transformers import AutoModelForCausalLM

from sftknow.artifacts.mastery_data import MasteryData
from sftknow.errors import HubError, ModelError, RunError, SftknowError
from sftknow.evaluation.dataset import find_dataset
from sftknow.models.hub_client import Patience
from sftknow.models.notes import ModelNotes
from sftknow.models.pull import origin, pull
from sftknow.publishing.publish import plan_publication, publish
from sftknow.records import ModelRef
from tests.hub_fixtures import both_ways
from tests.hub_server import Fault, HubServer

REPO = "org/facts-graded"


@pytest.fixture
def published(hub: HubServer, tiny_dataset: Path) -> str:
    """The commit of a published data set."""
    plan = plan_publication(tiny_dataset, REPO, licence="mit")
    return publish(plan, endpoint=hub.endpoint, token="hf_test").revision


def fetch(hub: HubServer, name: str = REPO, *, token: str | None = "hf_test", **options: object) -> Path:
    patience = Patience(first_wait=0.5, tries=3)
    return pull(name, endpoint=hub.endpoint, token=token, patience=patience, **options)  # type: ignore[arg-type]


def test_a_data_set_comes_back_as_it_went(hub: HubServer, published: str, tiny_dataset: Path) -> None:
    folder = fetch(hub)
    assert folder.name == published, "the cache's folder tells the commit"
    assert MasteryData(folder).fingerprint == MasteryData(tiny_dataset).fingerprint
    assert MasteryData(folder).split("test") == MasteryData(tiny_dataset).split("test")


def test_a_model_comes_back_without_pickles(hub: HubServer, restored_model: Path, tmp_path: Path) -> None:
    publish(plan_publication(restored_model, "org/model"), endpoint=hub.endpoint, token="hf_test")
    hub.put("model", "org/model", {"pytorch_model.bin": b"pickle"})
    folder = fetch(hub, "org/model", local_dir=tmp_path / "out")
    assert (folder / "model.safetensors").read_bytes() == (restored_model / "model.safetensors").read_bytes()
    assert not (folder / "pytorch_model.bin").exists()


def test_a_revision_is_a_commit(hub: HubServer, published: str) -> None:
    hub.put("dataset", REPO, {"README.md": b"newer"})
    assert (fetch(hub) / "README.md").read_bytes() == b"newer"
    assert (fetch(hub, f"{REPO}@{published}") / "README.md").read_bytes() != b"newer"
    hub.repos["dataset", REPO].tags["v1"] = published
    assert fetch(hub, f"{REPO}@v1").name == published
    with pytest.raises(HubError, match="has no revision nowhere"):
        fetch(hub, f"{REPO}@nowhere")


@pytest.mark.parametrize("path", ["test/bucket_3.parquet", "sftknow.json"])
def test_a_flipped_bit_is_seen_and_mended(hub: HubServer, published: str, path: str) -> None:
    hub.faults.append(Fault("flip", "GET", f"resolve/.*/{path}"))
    folder = fetch(hub)
    assert (folder / path).read_bytes() == hub.read("dataset", REPO, path)
    assert not hub.faults


@pytest.mark.parametrize("local", [True, False])
def test_a_bit_that_stays_flipped_is_refused(hub: HubServer, published: str, tmp_path: Path, local: bool) -> None:
    hub.faults.append(Fault("flip", "GET", "resolve/.*/test/bucket_3.parquet", times=10**6))
    options = {"local_dir": tmp_path / "out"} if local else {}
    with pytest.raises(HubError, match=r"test/bucket_3.parquet of org/facts-graded arrives damaged"):
        fetch(hub, **options)
    assert not (tmp_path / "out" / "sftknow.json").exists(), "a folder that is not whole must not look whole"
    hub.faults.clear()
    folder = fetch(hub, **options)
    assert MasteryData(folder).bucket("test", 3)


def test_a_cached_copy_that_rotted_is_fetched_again(hub: HubServer, published: str) -> None:
    file = (fetch(hub) / "dev" / "bucket_0.parquet").resolve()
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"?")
    assert (fetch(hub) / "dev" / "bucket_0.parquet").read_bytes() == content


@pytest.mark.parametrize("kind", ["error", "drop"])
def test_no_stale_copy_when_the_hub_is_down(hub: HubServer, published: str, kind: str) -> None:
    fetch(hub)
    hub.faults.append(Fault(kind, "GET", "/api/", times=10**6, status=503))  # type: ignore[arg-type]
    with pytest.raises(HubError, match=r"503|connection") as caught:
        fetch(hub)
    assert caught.value.repo_id == REPO
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("error", "GET", "/api/"),
        Fault("error", "GET", "/tree/"),
        Fault("error", "HEAD", "/resolve/", status=503),
        Fault("error", "GET", "/resolve/", status=503),
        Fault("rate_limit", "GET", "/api/", retry_after=2),
        Fault("drop", "GET", "/resolve/"),
        Fault("drop", "HEAD", "/resolve/"),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.method}-{fault.pattern.strip('/')}",
)
def test_a_stumble_is_survived(hub: HubServer, published: str, fault: Fault) -> None:
    fault = Fault(fault.kind, fault.method, fault.pattern, status=fault.status, retry_after=fault.retry_after)
    hub.faults.append(fault)
    assert MasteryData(fetch(hub)).bucket("test", 3)
    assert fault.times == 0, "the fault never struck"


@both_ways
def test_over_both_ways(hub: HubServer, restored_model: Path) -> None:
    publish(plan_publication(restored_model, "org/model"), endpoint=hub.endpoint, token="hf_test")
    folder = fetch(hub, "org/model")
    assert (folder / "model.safetensors").read_bytes() == (restored_model / "model.safetensors").read_bytes()
    assert (hub.count("GET", "xet-read-token") > 0) == (hub.xet is not None)


def test_an_interrupted_download_goes_on(hub: HubServer, tmp_path: Path) -> None:
    weights = bytes(range(256)) * 100_000
    hub.put("model", "org/model", {"config.json": b"{}", "model.safetensors": weights})
    hub.faults.append(Fault("cut", "GET", "/resolve/.*safetensors"))
    folder = fetch(hub, "org/model", local_dir=tmp_path / "out")
    assert (folder / "model.safetensors").read_bytes() == weights
    assert not hub.faults
    assert any(int(asked.removeprefix("bytes=").partition("-")[0]) > 0 for asked in hub.ranges), "it started over"


def test_two_processes_pull_the_same(hub: HubServer, published: str, tmp_path: Path) -> None:
    script = f"from sftknow.models.pull import origin, pull; print(pull({REPO!r}))"
    environment = {**os.environ, **hub.environment(tmp_path / "home")}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    done = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], done
    assert done[0][0] == done[1][0]
    assert MasteryData(done[0][0].strip()).bucket("test", 3)


@pytest.mark.parametrize("kind", ["error", "drop"])
def test_a_hub_that_breaks_in_the_middle_is_one_line(hub: HubServer, published: str, kind: str) -> None:
    hub.faults.append(Fault(kind, "HEAD", "/resolve/", times=10**6, status=503))  # type: ignore[arg-type]
    with pytest.raises(HubError, match="again") as caught:
        fetch(hub)
    assert "\n" not in str(caught.value)


def test_a_pulled_folder_knows_where_it_came_from(hub: HubServer, published: str) -> None:
    found = origin(fetch(hub))
    assert found is not None
    assert (found.repo_id, found.repo_type, found.commit) == (REPO, "dataset", published)
    assert origin("graded") is None


def test_a_push_that_did_not_finish_is_not_taken_for_a_data_set(hub: HubServer) -> None:
    hub.put("dataset", REPO, {"test/bucket_0.parquet": b"half"})
    with pytest.raises(HubError, match=r"has no sftknow.json: it is no graded data set, or its upload did not finish"):
        fetch(hub)


def test_a_manifest_of_something_else(hub: HubServer) -> None:
    hub.put("dataset", REPO, {"sftknow.json": json.dumps({"sftknow": 1, "kind": "model"}).encode()})
    with pytest.raises(RunError, match="holds a model"):
        fetch(hub)


def test_files_that_were_changed_on_the_hub_are_refused(hub: HubServer, published: str) -> None:
    hub.put("dataset", REPO, {"README.md": b"mended by hand"})
    fetch(hub)
    hub.put("dataset", REPO, {"test/bucket_3.parquet": b"other facts"})
    with pytest.raises(HubError, match="was changed after it was published"):
        fetch(hub)


def test_a_model_of_pickles_is_refused(hub: HubServer) -> None:
    hub.put("model", "org/old", {"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    with pytest.raises(HubError, match="no safetensors weights"):
        fetch(hub, "org/old")


def test_the_kind_is_found_out(hub: HubServer, published: str) -> None:
    assert fetch(hub, repo_type="dataset") == fetch(hub)
    with pytest.raises(HubError, match="is not on the Hub"):
        fetch(hub, repo_type="model")
    hub.put("model", REPO, {"model.safetensors": b"weights"})
    with pytest.raises(HubError, match="both a model and a data set"):
        fetch(hub)


@pytest.mark.parametrize(
    ("name", "token", "says"),
    [
        ("org/nothing", "hf_test", "org/nothing is not on the Hub"),
        (REPO, "hf_other", "is not on the Hub, or this token may not see it"),
        (REPO, None, "is not on the Hub, or this token may not see it"),
        (REPO, "hf_expired", "not valid or has expired"),
        ("nothing", "hf_test", "give it as org/name"),
        ("org/a--b", "hf_test", "not an allowed repository name"),
    ],
)
def test_what_cannot_be_had(hub: HubServer, published: str, name: str, token: str | None, says: str) -> None:
    with pytest.raises(HubError, match=says) as caught:
        fetch(hub, name, token=token)
    assert "\n" not in str(caught.value)


def test_a_folder_with_other_things_is_left_alone(hub: HubServer, published: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(HubError, match=r"holds files that are not in org/facts-graded \(thesis.tex\)"):
        fetch(hub, local_dir=mine)
    out = tmp_path / "out"
    assert fetch(hub, local_dir=out) == fetch(hub, local_dir=out) == out
    assert MasteryData(out).bucket("test", 3)


def test_offline_what_was_pulled_is_used(
    hub: HubServer, published: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put("model", "org/tiny", {path.name: path.read_bytes() for path in tiny_model.iterdir()})
    hub.put("dataset", REPO, {"README.md": b"newer"})
    old, data, model = fetch(hub, f"{REPO}@{published}"), fetch(hub), fetch(hub, "org/tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert (fetch(hub), fetch(hub, f"{REPO}@{published}"), fetch(hub, "org/tiny")) == (data, old, model)
    copy = fetch(hub, "org/tiny", local_dir=tmp_path / "copy")
    assert (copy / "model.safetensors").read_bytes() == (tiny_model / "model.safetensors").read_bytes()
    # Other programs find it by its name as well.
    assert AutoModelForCausalLM.from_pretrained("org/tiny", cache_dir=constants.HF_HUB_CACHE) is not None
    with pytest.raises(HubError, match="org/nothing is not in the cache; unset HF_HUB_OFFLINE to fetch it"):
        fetch(hub, "org/nothing")
    assert not hub.requests


def test_offline_half_of_a_model_is_refused(hub: HubServer, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put("model", "org/tiny", {path.name: path.read_bytes() for path in tiny_model.iterdir()})
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    hub.put("model", "org/tiny", {"model.safetensors.index.json": json.dumps(index).encode()})
    fetch(hub, "org/tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"lacks the weight files model-2\.safetensors"):
        fetch(hub, "org/tiny")


@pytest.mark.parametrize(
    ("status", "says"),
    [(403, "this token may not read the data set org/facts-graded"), (429, "limiting requests"), (401, "expired")],
)
def test_refusals_to_read(hub: HubServer, published: str, status: int, says: str) -> None:
    hub.faults.append(Fault("error", "GET", "/tree/", times=10**6, status=status))
    with pytest.raises(HubError, match=says):
        fetch(hub, repo_type="dataset")


DEEP = b'{"sftknow": 1, "kind": "model", "sha256": ' + b"[" * 5000 + b"]" * 5000 + b"}"


@pytest.mark.parametrize(
    "content",
    [b"[]", b'"x"', b"null", b"3", b"\xff\xfe", b"{", DEEP, b'{"sftknow": "1"}', b'{"sftknow": 99, "kind": "model"}']
    + [
        json.dumps({"sftknow": 1, "kind": "model", "sha256": sha256}).encode()
        for sha256 in (
            ["model.safetensors"],
            {"model.safetensors": 3},
            {"/proc/kmsg": "0" * 64},
            {"/dev/zero": "0" * 64},
            {"../../../../../../../etc/passwd": "0" * 64},
            {"a/../../b": "0" * 64},
            {"tokenizer.json": "\x1b[2J"},
        )
    ],
    ids=lambda content: content.decode(errors="replace")[:60],
)
def test_a_hostile_manifest_is_refused_in_one_line(hub: HubServer, tmp_path: Path, content: bytes) -> None:
    files = {"model.safetensors": b"weights", "tokenizer.json": b"{}", "config.json": b"{}", "sftknow.json": content}
    hub.put("model", "org/evil", files)
    for local_dir in (None, tmp_path / "out"):
        with pytest.raises(SftknowError) as caught:
            fetch(hub, "org/evil", local_dir=local_dir)
        assert "\n" not in str(caught.value)
        assert "\x1b" not in str(caught.value)
    assert not (tmp_path / "out" / "sftknow.json").exists(), "what was refused must not look finished"


def test_side_files_that_people_mend_on_the_hub_do_not_matter(
    hub: HubServer, restored_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(plan_publication(restored_model, "org/model"), endpoint=hub.endpoint, token="hf_test")
    side = {"README.md": b"new", "generation_config.json": b"{}", ".eval_results/more.yaml": b"[]", "NEW.txt": b"new"}
    hub.put("model", "org/model", side)
    folder = fetch(hub, "org/model", local_dir=tmp_path / "mended")
    assert (folder / "generation_config.json").read_bytes() == b"{}"
    assert "generation_config.json" in caplog.text
    assert "README.md" not in caplog.text, "cards are made to be mended"
    for path in ("tokenizer.json", "config.json", "model.safetensors"):
        right = hub.read("model", "org/model", path)
        hub.put("model", "org/model", {path: b"other"})
        with pytest.raises(HubError, match=f"{path} of org/model was changed after it was published"):
            fetch(hub, "org/model", local_dir=tmp_path / "refused")
        assert not (tmp_path / "refused" / "sftknow.json").exists()
        hub.put("model", "org/model", {path: right})
    assert (fetch(hub, "org/model", local_dir=tmp_path / "refused") / "sftknow.json").exists()


@pytest.mark.parametrize("key", ["path", "repo"])
def test_a_model_of_the_hub_names_nothing_of_this_machine(
    hub: HubServer, tiny_dataset: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    shutil.copytree(tiny_dataset, tmp_path / "here" / "data")
    monkeypatch.chdir(tmp_path)
    files = {path.name: path.read_bytes() for path in tiny_model.iterdir()}
    for place in (str(tiny_dataset), "here/data", "../../../../../here/data"):
        named = {"sftknow": 1, "kind": "model", "mastery_dataset": {key: place}}
        hub.put("model", "org/evil", {**files, "sftknow.json": json.dumps(named).encode()})
        for ref in (ModelRef(path="org/evil"), ModelRef(path=str(fetch(hub, "org/evil")))):
            with pytest.raises(SftknowError, match=r"names no graded data set|is not on the Hub"):
                find_dataset(None, [ModelNotes(ref)], way_out="pass it")
