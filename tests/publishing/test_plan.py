"""Plans: what would go where, before anything goes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import parse_eval_result_entries

from sftknow.artifacts.files import file_sha256
from sftknow.artifacts.manifests import MANIFEST, dataset_of_model
from sftknow.artifacts.mastery_data import MasteryData, bucket_file
from sftknow.errors import HubError
from sftknow.publishing.cards import Licence
from sftknow.publishing.licences import TERMS, Papers, allowed_name, check_terms, named_licence
from sftknow.publishing.publish import PublicationPlan, plan_publication, publish
from sftknow.records import BUCKETS, SPLITS
from tests.hub_fixtures import CELL
from tests.hub_server import HubServer


def manifest_of(plan: PublicationPlan) -> dict[str, Any]:
    content = plan.file(MANIFEST).content
    assert isinstance(content, bytes)
    return dict(json.loads(content))


def test_a_data_set_is_its_parquet_files_benchmark_card_and_manifest(tiny_dataset: Path) -> None:
    plan = plan_publication(tiny_dataset, "org/facts", licence="mit")
    parquet = [bucket_file(split, bucket) for split in SPLITS for bucket in BUCKETS]
    assert [file.path for file in plan.files] == [*parquet, "eval.yaml", "README.md", MANIFEST]
    assert plan.repo_type == "dataset"
    assert plan.private
    assert plan.bytes == sum(file.size for file in plan.files)
    hashes = manifest_of(plan)["sha256"]
    assert hashes.pop("eval.yaml") == plan.file("eval.yaml").sha256
    assert hashes == {path: file_sha256(tiny_dataset / path) for path in parquet}


def test_the_plan_can_be_read(tiny_dataset: Path) -> None:
    plan = plan_publication(tiny_dataset, "org/facts", licence="mit", private=False)
    lines = str(plan).splitlines()
    assert lines[0] == f"{tiny_dataset} → public data set org/facts: 23 files, {plan.bytes:,} bytes"
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


def test_a_data_set_without_a_commit_is_asked_for_its_own(
    hub: HubServer, tiny_dataset: Path, finished_run: Path, tmp_path: Path
) -> None:
    own = MasteryData(tiny_dataset).fingerprint
    shutil.copytree(finished_run, tmp_path / "run")
    mine = tmp_path / "run" / "restored" / CELL / "20pct"
    other = finished_run / "restored" / CELL / "20pct"
    manifest = json.loads((mine / MANIFEST).read_text())
    named = {"path": "somewhere", "fingerprint": own}
    (mine / MANIFEST).write_text(json.dumps({**manifest, "mastery_dataset": named}))
    link = {"endpoint": hub.endpoint, "token": "hf_test"}
    with pytest.raises(HubError, match="org/facts is not on the Hub"):
        plan_publication(mine, "org/model", dataset_repo="org/facts", **link)
    receipt = publish(plan_publication(tiny_dataset, "org/facts", licence="mit"), **link)
    plan = plan_publication(mine, "org/model", dataset_repo="org/facts", **link)
    assert manifest_of(plan)["mastery_dataset"] == {
        "repo": "org/facts",
        "revision": receipt.revision,
        "fingerprint": own,
    }
    results = yaml.safe_load(text(plan, ".eval_results/cbqa_mastery.yaml"))
    assert results[0]["dataset"] == {
        "id": "org/facts",
        "task_id": "cbqa_mastery_test_bucket_0",
        "revision": receipt.revision,
    }
    assert [entry["value"] for entry in results] == [22.5, 45.0, 33.75]
    entries = parse_eval_result_entries(results)
    assert entries[2].task_id == "cbqa_mastery_test"
    with pytest.raises(HubError, match="is not the graded data set that this model was made and scored with"):
        plan_publication(other, "org/model", dataset_repo="org/facts", **link)


def test_a_file_that_changes_after_planning_is_not_sent(hub: HubServer, restored_model: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(restored_model, mine)
    plan = plan_publication(mine, "org/model", endpoint=hub.endpoint, token="hf_test")
    weights = mine / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(HubError, match=r"model.safetensors was changed while it was being published"):
        publish(plan, endpoint=hub.endpoint, token="hf_test")
    assert hub.count("POST", "/commit/") == 0


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


def test_a_base_on_the_hub_is_named_by_its_commit(
    hub: HubServer, restored_model: Path, tiny_model: Path, tmp_path: Path
) -> None:
    commit = hub.put("model", "org/base", {"README.md": b"---\nlicense: mit\n---\n"})
    mine = with_base(restored_model, tmp_path, {"path": str(tiny_model), "revision": None})
    for name in ("org/base", "org/base@main", f"org/base@{commit}"):
        plan = plan_publication(mine, "org/model", base_repo=name, endpoint=hub.endpoint, token="hf_test")
        assert manifest_of(plan)["base"] == {"path": "org/base", "revision": commit}
    with pytest.raises(HubError, match="has no revision v9"):
        plan_publication(mine, "org/model", base_repo="org/base@v9", endpoint=hub.endpoint, token="hf_test")


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


def test_the_lab_is_called_lab_so_that_it_is_found_again(
    tiny_dataset: Path, restored_model: Path, tmp_path: Path
) -> None:
    mine = with_base(restored_model, tmp_path, {"path": "lab", "sha256": "0" * 64})
    assert manifest_of(plan_publication(mine, "org/model"))["base"]["path"] == "lab"
    shutil.copytree(tiny_dataset, tmp_path / "data")
    manifest = json.loads((tmp_path / "data" / MANIFEST).read_text())
    (tmp_path / "data" / MANIFEST).write_text(json.dumps({**manifest, "graded_by": "lab"}))
    plan = plan_publication(tmp_path / "data", "org/facts", licence="mit")
    assert manifest_of(plan)["graded_by"] == "lab"
    assert "the lab model of sftknow" in text(plan, "README.md")


def test_what_is_no_artifact_is_told_as_what_it_is(finished_run: Path, tmp_path: Path) -> None:
    for name in ("org", "org/model"):
        with pytest.raises(HubError, match=r"nofolder is not there; give the folder of a run"):
            plan_publication(tmp_path / "nofolder", name)
    with pytest.raises(
        HubError, match=rf"holds models or data sets \(20pct\); give one of them, such as .*{CELL}/20pct"
    ):
        plan_publication(finished_run / "restored" / CELL, "org/model")


def test_a_damaged_data_set_is_not_published(tiny_dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_dataset, tmp_path / "data")
    other = (tmp_path / "data" / "test" / "bucket_1.parquet").read_bytes()
    (tmp_path / "data" / "test" / "bucket_2.parquet").write_bytes(other)
    with pytest.raises(HubError, match=r"test/bucket_2.parquet is not what was graded"):
        plan_publication(tmp_path / "data", "org/facts", licence="mit")


def test_a_missing_licence_stops_and_says_what_to_pass(
    tiny_dataset: Path, restored_model: Path, tmp_path: Path, tiny_model: Path
) -> None:
    with pytest.raises(HubError, match=r"no licence is known for org/facts: pass .* \(--data-licence"):
        plan_publication(tiny_dataset, "org/facts")
    mine = with_base(restored_model, tmp_path, {"path": str(tiny_model), "revision": None})
    with pytest.raises(HubError, match=rf"no licence is known for org/model: .* {tiny_model.name}"):
        plan_publication(mine, "org/model")


@pytest.mark.parametrize(
    ("facts", "licence", "told"),
    [
        ({"source": "quick"}, "mit", "facts of EntityQuestions that ship with sftknow"),
        ("quick", "mit", "facts of EntityQuestions that ship with sftknow"),
        ({"source": "lab"}, "apache-2.0", "the synthetic world of sftknow's lab"),
        ({"source": "/data/eq.zip", "official_release": True}, "mit", "eq.zip"),
    ],
)
def test_the_licence_of_facts_that_are_known_here(
    tiny_dataset: Path, tmp_path: Path, facts: object, licence: str, told: str
) -> None:
    shutil.copytree(tiny_dataset, tmp_path / "data")
    manifest = json.loads((tmp_path / "data" / MANIFEST).read_text())
    (tmp_path / "data" / MANIFEST).write_text(json.dumps({**manifest, "facts": facts}))
    card = text(plan_publication(tmp_path / "data", "org/facts"), "README.md")
    assert f"\nlicense: {licence}\n" in card
    assert f"| source of the facts | {told} |" in card
    for other in ({"source": "./quick"}, {"source": "eq", "official_release": False}):
        (tmp_path / "data" / MANIFEST).write_text(json.dumps({**manifest, "facts": other}))
        with pytest.raises(HubError, match="no licence is known"):
            plan_publication(tmp_path / "data", "org/facts")


def test_the_licence_of_a_local_base_is_carried_over(restored_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: odd\nlicense_link: LICENSE\n---\n# Base\n")
    mine = with_base(restored_model, tmp_path, {"path": str(base), "revision": None})
    named = {"id": "other", "name": "odd", "link": "LICENSE"}
    assert manifest_of(plan_publication(mine, "org/model"))["license"] == named


def test_the_licence_of_a_base_on_the_hub_is_carried_over(hub: HubServer, restored_model: Path, tmp_path: Path) -> None:
    terms = b"Gemma Terms of Use ..."
    files = {"README.md": b"---\nlicense: gemma\n---\n", "LICENSE": terms, "config.json": b"{}"}
    commit = hub.put("model", "org/base", files)
    mine = with_base(restored_model, tmp_path, {"path": "org/base", "revision": commit})
    plan = plan_publication(mine, "org/model", endpoint=hub.endpoint, token="hf_test")
    assert manifest_of(plan)["license"] == {"id": "gemma"}
    assert text(plan, "LICENSE") == terms.decode()
    assert text(plan, "NOTICE").startswith("Gemma is provided under and subject to the Gemma Terms of Use found at")


def test_the_licence_of_facts_on_the_hub_is_carried_over(hub: HubServer, tiny_dataset: Path, tmp_path: Path) -> None:
    commit = hub.put("dataset", "org/facts", {"README.md": b"---\nlicense: cc-by-4.0\n---\n"})
    mine = tmp_path / "data"
    shutil.copytree(tiny_dataset, mine)
    manifest = json.loads((mine / MANIFEST).read_text())
    (mine / MANIFEST).write_text(json.dumps({**manifest, "facts": {"source": f"org/facts@{commit}"}}))
    plan = plan_publication(mine, "org/graded", endpoint=hub.endpoint, token="hf_test")
    assert manifest_of(plan)["license"] == {"id": "cc-by-4.0"}
    assert "[org/facts](https://huggingface.co/datasets/org/facts)" in text(plan, "README.md")


LLAMA_3 = """META LLAMA 3 COMMUNITY LICENSE AGREEMENT ... within a "Notice" text file distributed with such copies:
"Meta Llama 3 is licensed under the Meta Llama 3 Community License, Copyright © Meta Platforms,
Inc. All Rights Reserved." ..."""


def test_llama_s_rules(restored_model: Path, tmp_path: Path) -> None:
    agreement = tmp_path / "LICENSE"
    agreement.write_text(LLAMA_3)
    with pytest.raises(HubError, match="publish as org/Llama-3-model"):
        plan_publication(restored_model, "org/model", licence="llama3", licence_file=agreement)
    with pytest.raises(HubError, match=r"wants a copy of itself beside .* \(--licence-file LICENSE\)"):
        plan_publication(restored_model, "org/Llama-3-model", licence="llama3")
    for name in ("org/Llama-3-8B-restored", "org/llama3-restored"):
        plan = plan_publication(restored_model, name, licence="llama3", licence_file=agreement)
    notice, card = text(plan, "NOTICE"), text(plan, "README.md")
    assert notice.startswith(
        "Built with Meta Llama 3\n\nMeta Llama 3 is licensed under the Meta Llama 3 Community License,"
    )
    assert "Copyright © Meta Platforms, Inc. All Rights Reserved." in notice
    assert notice.strip() in card
    assert text(plan, "LICENSE") == LLAMA_3
    assert {"NOTICE", "LICENSE"} <= set(manifest_of(plan)["sha256"])


@pytest.mark.parametrize("licence", sorted(TERMS))
def test_every_licence_with_terms_wants_its_text_and_gives_a_notice(licence: str, restored_model: Path) -> None:
    known = Licence(id=licence) if licence.startswith(("llama", "gemma")) else Licence(id="other", name=licence)
    name = allowed_name(known, "org/model")
    with pytest.raises(HubError, match="wants a copy of itself"):
        check_terms(known, name, Papers(), base="org/base")
    notice = check_terms(known, name, Papers(files={"LICENSE.txt": b"terms"}), base="org/base")
    assert notice is not None
    assert TERMS[licence].notice in notice
    assert "made from those of org/base" in notice


def test_the_notice_in_the_agreement_goes_before_the_one_known_here() -> None:
    """Later releases name another holder, and break the line where they please."""
    agreement = (
        '"Qwen is licensed under the Qwen RESEARCH LICENSE AGREEMENT, Copyright (c)\n2026 X Ltd. All Rights Reserved."'
    )
    notice = check_terms(
        Licence(id="other", name="qwen-research"),
        "org/model",
        Papers(files={"LICENSE": agreement.encode()}),
        base="org/base",
    )
    assert "Copyright (c) 2026 X Ltd. All Rights Reserved." in str(notice)
    assert "Alibaba" not in str(notice)


def test_licence_files_of_a_local_base_come_along(restored_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (base / "LICENSE.md").write_text("Apache License")
    (base / "NOTICE.txt").write_text("Copyright 2024 Somebody\n")
    mine = with_base(restored_model, tmp_path, {"path": str(base), "revision": None})
    plan = plan_publication(mine, "org/model")
    assert text(plan, "LICENSE.md") == "Apache License"
    assert text(plan, "NOTICE").startswith("Copyright 2024 Somebody\n\nThe weights here were made from those of base")


def test_other_needs_a_name(restored_model: Path, tiny_dataset: Path) -> None:
    with pytest.raises(HubError, match=r"'other'.*other:NAME"):
        plan_publication(tiny_dataset, "org/facts", licence="other")
    assert named_licence("other:mine", None, None) == Licence(id="other", name="mine")
    assert named_licence("mit", None, None) == Licence(id="mit")
    assert named_licence(None, None, None) is None
    with pytest.raises(HubError, match="go with --licence other"):
        named_licence(None, "mine", None)
    with pytest.raises(HubError, match=r"'other'.*--licence-name"):
        plan_publication(restored_model, "org/model", licence="other")
    plan_publication(restored_model, "org/model", licence=Licence(id="other", name="mine", link="https://example.org"))


def text(plan: PublicationPlan, path: str) -> str:
    content = plan.file(path).content
    return content.decode() if isinstance(content, bytes) else content.read_text(encoding="utf-8")


def with_base(model: Path, folder: Path, base: dict[str, Any]) -> Path:
    """A copy of the model whose manifest names another base."""
    mine = folder / "mine"
    shutil.copytree(model, mine)
    manifest = json.loads((mine / MANIFEST).read_text())
    (mine / MANIFEST).write_text(json.dumps({**manifest, "base": base}))
    return mine
