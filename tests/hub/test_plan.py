"""Plans: what would go where, before anything goes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sftknow.errors import HubError
from sftknow.hub.cards import Licence
from sftknow.hub.publish import PublicationPlan, plan_publication
from sftknow.records import BUCKETS, SPLITS
from sftknow.storage.artifacts import file_sha256
from sftknow.storage.manifests import MANIFEST, dataset_of_model
from sftknow.storage.mastery_data import bucket_file
from tests.hub_server import HubServer


def manifest_of(plan: PublicationPlan) -> dict[str, Any]:
    content = plan.file(MANIFEST).content
    assert isinstance(content, bytes)
    return dict(json.loads(content))


def test_a_data_set_is_its_parquet_files_card_and_manifest(tiny_dataset: Path) -> None:
    plan = plan_publication(tiny_dataset, "org/facts", licence="mit")
    parquet = [bucket_file(split, bucket) for split in SPLITS for bucket in BUCKETS]
    assert [file.path for file in plan.files] == [*parquet, "README.md", MANIFEST]
    assert plan.repo_type == "dataset"
    assert plan.private
    assert plan.bytes == sum(file.size for file in plan.files)
    assert manifest_of(plan)["sha256"] == {path: file_sha256(tiny_dataset / path) for path in parquet}


def test_the_plan_can_be_read(tiny_dataset: Path) -> None:
    plan = plan_publication(tiny_dataset, "org/facts", licence="mit", private=False)
    lines = str(plan).splitlines()
    assert lines[0] == f"{tiny_dataset} → public data set org/facts: 22 files, {plan.bytes:,} bytes"
    assert lines[-1].split() == [f"{plan.files[-1].size:,}", MANIFEST]


def test_a_model_goes_without_pickles_and_under_its_own_card(restored_model: Path) -> None:
    plan = plan_publication(restored_model, "org/model")
    paths = [file.path for file in plan.files]
    assert paths[-1] == MANIFEST
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= set(paths)
    assert "optimizer.pt" not in paths
    assert paths.count("README.md") == 1
    assert plan.file("README.md").content != (restored_model / "README.md").read_bytes()


def test_a_model_names_its_data_set_on_the_hub(restored_model: Path, tmp_path: Path) -> None:
    plan = plan_publication(restored_model, "org/model", dataset_repo=f"org/facts@{'c' * 40}")
    (tmp_path / MANIFEST).write_bytes(plan.file(MANIFEST).content)  # type: ignore[arg-type]
    assert dataset_of_model(tmp_path) == ("org/facts", "c" * 40)
    assert manifest_of(plan)["mastery_dataset"]["fingerprint"] == "f" * 64


def test_a_model_without_one_names_none_rather_than_a_folder(restored_model: Path, tmp_path: Path) -> None:
    plan = plan_publication(restored_model, "org/model")
    (tmp_path / MANIFEST).write_bytes(plan.file(MANIFEST).content)  # type: ignore[arg-type]
    assert dataset_of_model(tmp_path) is None


def test_no_path_of_this_machine_leaves_it(restored_model: Path) -> None:
    plan = plan_publication(restored_model, "org/model")
    made = b"".join(file.content for file in plan.files if isinstance(file.content, bytes)).decode()
    assert "/home/" not in made
    assert str(restored_model) not in made
    assert manifest_of(plan)["plan"] == "plan.json"


def test_a_local_base_is_called_by_its_folder_s_name(restored_model: Path, tiny_model: Path, tmp_path: Path) -> None:
    mine = with_base(restored_model, tmp_path, {"path": str(tiny_model), "revision": None})
    plan = plan_publication(mine, "org/model", licence="mit")
    assert manifest_of(plan)["base"]["path"] == tiny_model.name
    named = plan_publication(mine, "org/model", licence="mit", base_repo="org/base@v1")
    assert manifest_of(named)["base"] == {"path": "org/base", "revision": "v1"}


def test_a_restored_model_tells_how_it_was_fine_tuned(restored_model: Path) -> None:
    assert manifest_of(plan_publication(restored_model, "org/model"))["sft"]["size"] == 240


@pytest.mark.parametrize("repo_id", ["name", "a/b/c", "org/-x", "org/a--b", "org/a..b", "org/x.git", "org/ä"])
def test_names_that_are_not_allowed(tiny_dataset: Path, repo_id: str) -> None:
    with pytest.raises(HubError) as caught:
        plan_publication(tiny_dataset, repo_id, licence="mit")
    assert "\n" not in str(caught.value)


def test_what_is_not_finished_is_not_published(tmp_path: Path, restored_model: Path, finished_run: Path) -> None:
    with pytest.raises(HubError, match="not finished"):
        plan_publication(tmp_path, "org/model")
    shutil.copytree(restored_model, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(HubError, match="no safetensors"):
        plan_publication(tmp_path / "model", "org/model")


def test_a_damaged_data_set_is_not_published(tiny_dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_dataset, tmp_path / "data")
    other = (tmp_path / "data" / "test" / "bucket_1.parquet").read_bytes()
    (tmp_path / "data" / "test" / "bucket_2.parquet").write_bytes(other)
    with pytest.raises(HubError, match=r"test/bucket_2.parquet is not what was graded"):
        plan_publication(tmp_path / "data", "org/facts", licence="mit")


def test_a_missing_licence_stops_and_says_what_to_pass(
    tiny_dataset: Path, restored_model: Path, tmp_path: Path, tiny_model: Path
) -> None:
    with pytest.raises(HubError, match=r"no licence is known for org/facts: pass .* \(--licence"):
        plan_publication(tiny_dataset, "org/facts")
    mine = with_base(restored_model, tmp_path, {"path": str(tiny_model), "revision": None})
    with pytest.raises(HubError, match=rf"no licence is known for org/model: .* {tiny_model.name}"):
        plan_publication(mine, "org/model")


def test_the_licence_of_a_local_base_is_carried_over(restored_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: odd\nlicense_link: LICENSE\n---\n# Base\n")
    mine = with_base(restored_model, tmp_path, {"path": str(base), "revision": None})
    named = {"id": "other", "name": "odd", "link": "LICENSE"}
    assert manifest_of(plan_publication(mine, "org/model"))["license"] == named


def test_the_licence_of_a_base_on_the_hub_is_carried_over(hub: HubServer, restored_model: Path, tmp_path: Path) -> None:
    commit = hub.put("model", "org/base", {"README.md": b"---\nlicense: gemma\n---\n"})
    mine = with_base(restored_model, tmp_path, {"path": "org/base", "revision": commit})
    plan = plan_publication(mine, "org/model", endpoint=hub.endpoint, token="hf_test")
    assert manifest_of(plan)["license"] == {"id": "gemma"}


def test_llama_s_rules(restored_model: Path) -> None:
    with pytest.raises(HubError, match="publish as org/Llama-3-model"):
        plan_publication(restored_model, "org/model", licence="llama3")
    plan = plan_publication(restored_model, "org/Llama-3-8B-restored", licence="llama3")
    notice, card = plan.file("NOTICE").content, plan.file("README.md").content
    assert isinstance(notice, bytes)
    assert isinstance(card, bytes)
    assert b"Built with Meta Llama 3" in notice
    assert notice.strip() in card
    assert "NOTICE" in manifest_of(plan)["sha256"]


def test_other_needs_a_name(restored_model: Path) -> None:
    with pytest.raises(HubError, match="'other'"):
        plan_publication(restored_model, "org/model", licence="other")
    plan_publication(restored_model, "org/model", licence=Licence(id="other", name="mine", link="https://example.org"))


def with_base(model: Path, folder: Path, base: dict[str, Any]) -> Path:
    """A copy of the model whose manifest names another base."""
    mine = folder / "mine"
    shutil.copytree(model, mine)
    manifest = json.loads((mine / MANIFEST).read_text())
    (mine / MANIFEST).write_text(json.dumps({**manifest, "base": base}))
    return mine
