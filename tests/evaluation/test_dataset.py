"""Which data set a model is scored on: what was asked for, what the model says, the default; folders and the Hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from sftknow.artifacts.manifests import MANIFEST, write_manifest
from sftknow.artifacts.mastery_data import MasteryData, write_mastery_data
from sftknow.errors import HubError, MasteryDataError, SftknowError
from sftknow.evaluation.dataset import Questions, find_dataset, open_dataset
from sftknow.evaluation.harness import Harness
from sftknow.models.notes import ModelNotes, training_facts
from sftknow.records import ModelRef
from tests.evaluation.conftest import upload
from tests.hub_server import Fault, HubServer
from tests.tiny import graded, tiny_facts


def small_data(folder: Path, bucket: int, *, graded_by: str = "tiny") -> Path:
    write_mastery_data(folder, [graded(fact, bucket) for fact in tiny_facts(3, split="test")], {"graded_by": graded_by})
    return folder


def model(folder: Path, manifest: dict[str, Any] | None = None, card: str | None = None) -> ModelNotes:
    folder.mkdir(parents=True, exist_ok=True)
    if manifest is not None:
        write_manifest(folder, "model", manifest)
    if card is not None:
        (folder / "README.md").write_text(card)
    return ModelNotes(ModelRef(path=str(folder)))


def card(*names: str) -> str:
    return "---\nlicense: mit\ndatasets:\n" + "".join(f"- {name}\n" for name in names) + "---\n# a model\n"


def test_order_of_places(tmp_path: Path) -> None:
    asked, own, carded, default = (small_data(tmp_path / name, i) for i, name in enumerate("abcd"))
    says = model(tmp_path / "m", {"mastery_dataset": {"path": str(own)}}, card(str(carded)))
    only_card = model(tmp_path / "n", card=card("squad", str(carded)))
    silent = model(tmp_path / "o", card="# no metadata")
    options: dict[str, Any] = {"default": str(default)}
    assert find_dataset(str(asked), [says], **options).data.folder == asked
    found = find_dataset(None, [says], **options)
    assert (found.data.folder, found.named_by) == (own, f"named by the sftknow.json of {tmp_path / 'm'}")
    found = find_dataset(None, [only_card], **options)
    assert (found.data.folder, found.named_by) == (carded, f"named by the model card of {tmp_path / 'n'}")
    found = find_dataset(None, [silent], **options)
    assert (found.data.folder, found.named_by) == (default, "the recipe's default")
    # An adapter's own word comes before its base's.
    assert find_dataset(None, [says, only_card]).data.folder == own
    assert find_dataset(None, [silent, only_card]).data.folder == carded
    with pytest.raises(MasteryDataError, match=r"names no graded data set; pass --metadata mastery_dataset="):
        find_dataset(None, [silent])
    with pytest.raises(MasteryDataError, match="no graded data set is named"):
        find_dataset(None, [])


def test_several_in_a_card_the_first_is_taken_and_the_others_named(tmp_path: Path) -> None:
    first, second = small_data(tmp_path / "a", 0), small_data(tmp_path / "b", 1)
    (tmp_path / "other").mkdir()
    found = find_dataset(None, [model(tmp_path / "m", card=card(str(tmp_path / "other"), str(first), str(second)))])
    assert found.data.folder == first
    assert found.notes == (f"the card of {tmp_path / 'm'} names 2 graded data sets; the first is taken, not {second}",)


def test_another_grader_is_named(tmp_path: Path) -> None:
    data = small_data(tmp_path / "a", 0, graded_by="org/other@abc")
    notes = model(tmp_path / "m", {"base": {"path": "org/base"}})
    found = find_dataset(str(data), [notes])
    assert found.notes == ("the data set was graded by org/other@abc, and the model's base is org/base",)
    same = model(tmp_path / "n", {"base": {"path": "org/other", "revision": "abc"}})
    assert find_dataset(str(data), [same]).notes == ()
    run = Harness(found, splits=("test",))
    assert run.questions.notes == found.notes


def test_data_set_that_was_graded_anew_is_said(tmp_path: Path) -> None:
    data = small_data(tmp_path / "a", 0)
    notes = model(tmp_path / "m", {"mastery_dataset": {"path": str(data), "fingerprint": "0" * 64}})
    assert "no longer what it was" in find_dataset(None, [notes]).notes[0]


def test_training_facts(tmp_path: Path) -> None:
    silent = model(tmp_path / "base", {"lab": {}})
    tuned = model(tmp_path / "tuned", {"sft": {"fact_ids": ["a", "b"]}})
    assert training_facts([silent]) is None
    assert training_facts([silent, tuned]) == ("a", "b")


# ---- bad input --------------------------------------------------------------------------------------------------


def copied(tiny_dataset: Path, folder: Path, **columns: Any) -> Path:
    """A copy whose first test bucket has other columns; its manifest knows no hashes, as somebody else's may not."""
    shutil.copytree(tiny_dataset, folder)
    path = folder / "test" / "bucket_0.parquet"
    table = pq.read_table(path)
    for name, values in columns.items():
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array(values)) if values is not None else table.remove_column(place)
    pq.write_table(table, path)
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "sha256": {}}))
    return folder


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"object": None}, "lacks the columns object"),
        ({"aliases": ["a", "b", "c", "d"]}, "columns of another kind"),
        ({"object": ["x", "", "y", "z"]}, r"row 2 \(P36/test/1\): an answer is missing or empty"),
        ({"object": ["x", None, "y", "z"]}, "row 2 .*: an answer is missing or empty"),
        ({"aliases": [["x"], [], ["\u200b"], []]}, "row 3 .*: an answer is missing or empty"),
        ({"aliases": [None, ["x"], ["y"], []]}, "row 1 .*: an answer is missing or empty"),
        ({"question": ["x", "y", "z", " "]}, r"row 4 .* has no question"),
    ],
)
def test_rows_that_cannot_be_asked(tiny_dataset: Path, tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    folder = copied(tiny_dataset, tmp_path / "odd", **columns)
    with pytest.raises(MasteryDataError, match=message) as caught:
        open_dataset(str(folder)).read("test", 0)
    assert str(folder / "test" / "bucket_0.parquet") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whole_columns_of_other_widths_are_taken(tiny_dataset: Path, tmp_path: Path) -> None:
    wide = copied(tiny_dataset, tmp_path / "wide", hits=pa.array([0, 0, 0, 0], pa.int64()))
    assert open_dataset(str(wide)).read("test", 0) == MasteryData(tiny_dataset).bucket("test", 0)


def test_folders_that_are_no_whole_data_set(tiny_dataset: Path, tiny_model: Path, tmp_path: Path) -> None:
    swapped = tmp_path / "swapped"
    shutil.copytree(tiny_dataset, swapped)
    shutil.copy(swapped / "test" / "bucket_1.parquet", swapped / "test" / "bucket_0.parquet")
    (swapped / "test" / "bucket_3.parquet").unlink()
    (swapped / "test" / "bucket_4.parquet").write_bytes(b"PAR1 or not")
    for bucket, message in ((0, "not the file that its sftknow.json names"), (3, "is missing"), (4, "not the file")):
        with pytest.raises(MasteryDataError, match=message):
            open_dataset(str(swapped)).read("test", bucket)
    assert open_dataset(str(swapped)).read("test", 1)
    write_manifest(tmp_path, "model", {})
    (tmp_path / "empty").mkdir()
    for name, message in (
        (str(tmp_path), "holds a model, not a mastery-dataset"),
        (str(tmp_path / "empty"), "it is no graded data set"),
        (str(tmp_path / "nowhere"), "is not there"),
    ):
        with pytest.raises(MasteryDataError, match=message):
            open_dataset(name)
    (tmp_path / "empty" / MANIFEST).write_text("{")
    with pytest.raises(SftknowError, match="damaged"):
        open_dataset(str(tmp_path / "empty"))
    gone = model(tmp_path / "m", {"mastery_dataset": {"path": "/gone/data"}})
    with pytest.raises(MasteryDataError, match="/gone/data, which is not there; pass --metadata"):
        find_dataset(None, [gone])
    with pytest.raises(SftknowError, match="no YAML"):
        find_dataset(None, [model(tmp_path / "n", card="---\ndatasets: [\n---\n")])


# ---- the Hub ----------------------------------------------------------------------------------------------------


def test_model_on_the_hub_names_a_data_set_on_the_hub(hub: HubServer, tiny_dataset: Path, tmp_path: Path) -> None:
    commit = upload(hub, tiny_dataset, "org/facts", "dataset")
    named = model(tmp_path / "m", {"mastery_dataset": {"repo": "org/facts", "revision": commit}})
    upload(hub, Path(named.ref.path), "org/tuned", "model")
    other = small_data(tmp_path / "newer", 0)
    assert upload(hub, other, "org/facts", "dataset") != commit
    found = find_dataset(None, [ModelNotes(ModelRef(path="org/tuned"))])
    assert found.repo is not None
    assert (found.repo.repo_id, found.repo.commit, found.name) == ("org/facts", commit, f"org/facts@{commit}")
    assert found.named_by == "named by the sftknow.json of org/tuned"
    assert found.read("test", 2) == MasteryData(tiny_dataset).bucket("test", 2)
    # Only what was read has come over.
    assert [path.name for path in found.data.folder.rglob("*.parquet")] == ["bucket_2.parquet"]
    assert find_dataset("org/facts", []).data.fingerprint == MasteryData(other).fingerprint


def test_card_on_the_hub(hub: HubServer, tiny_dataset: Path, tmp_path: Path) -> None:
    commit = upload(hub, tiny_dataset, "org/facts", "dataset")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "data.csv").write_text("a,b\n")
    upload(hub, tmp_path / "plain", "org/plain", "dataset")
    text = card("squad", "org/gone", "org/plain", "org/facts")
    upload(hub, Path(model(tmp_path / "m", card=text).ref.path), "org/tuned", "model")
    found = find_dataset(None, [ModelNotes(ModelRef(path="org/tuned"))])
    assert found.name == f"org/facts@{commit}"
    assert found.named_by == "named by the model card of org/tuned"
    # A card in a folder may name data sets on the Hub too.
    assert find_dataset(None, [model(tmp_path / "n", card=text)]).name == found.name


def test_flipped_bytes_are_noticed(hub: HubServer, tiny_dataset: Path) -> None:
    upload(hub, tiny_dataset, "org/facts", "dataset")
    hub.faults.append(Fault("flip", "GET", "resolve/.*/sftknow.json"))
    found = open_dataset("org/facts")
    assert found.data.fingerprint == MasteryData(tiny_dataset).fingerprint, "the second try was whole"
    hub.faults += [Fault("flip", "GET", "resolve/.*bucket_1", times=2)]
    with pytest.raises(HubError, match="arrives damaged"):
        found.read("test", 1)
    assert found.read("test", 1) == MasteryData(tiny_dataset).bucket("test", 1)


def test_hub_that_is_down_gives_no_stale_copy(hub: HubServer, tiny_dataset: Path, tmp_path: Path) -> None:
    upload(hub, tiny_dataset, "org/facts", "dataset")
    open_dataset("org/facts").read("test", 0)
    hub.faults.append(Fault("error", "GET", "/api/", status=503))
    assert open_dataset("org/facts"), "a stumble is nothing"
    hub.faults.append(Fault("error", "GET", "/api/", status=503, times=9))
    with pytest.raises(HubError, match="answers 503 for the data set org/facts") as caught:
        open_dataset("org/facts")
    assert "\n" not in str(caught.value)
    hub.faults.clear()
    for name, message in (
        ("org/gone", "org/gone is not on the Hub"),
        ("org/facts@nowhere", "has no revision nowhere"),
    ):
        with pytest.raises(HubError, match=message):
            open_dataset(name)
    upload(hub, Path(model(tmp_path / "m", {}).ref.path), "org/half", "dataset")
    with pytest.raises(SftknowError, match="holds a model"):
        open_dataset("org/half")


def test_offline_the_cache_is_read_because_it_was_wished_for(
    hub: HubServer, tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = upload(hub, tiny_dataset, "org/facts", "dataset")
    open_dataset("org/facts").read("test", 0)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found: Questions = open_dataset("org/facts")
    assert found.name == f"org/facts@{commit}"
    assert found.read("test", 0) == MasteryData(tiny_dataset).bucket("test", 0)
    with pytest.raises(MasteryDataError, match=r"has no test/bucket_1\.parquet"):
        found.read("test", 1)
    with pytest.raises(MasteryDataError, match="HF_HUB_OFFLINE is set"):
        open_dataset("org/never-seen")
