"""What a folder says it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from sftknow.artifacts.files import read_json
from sftknow.artifacts.manifests import FORMAT, MANIFEST, dataset_of_model, read_manifest, write_manifest
from sftknow.errors import RunError


def test_round_trip(tmp_path: Path) -> None:
    write_manifest(tmp_path, "model", {"base": {"path": "org/base", "revision": None}, "sft": {"seed": 1}})
    manifest = read_manifest(tmp_path, "model")
    assert manifest == {
        "sftknow": FORMAT,
        "kind": "model",
        "base": {"path": "org/base", "revision": None},
        "sft": {"seed": 1},
    }


def test_content_cannot_change_what_the_folder_is(tmp_path: Path) -> None:
    # Such as a manifest that was read and is passed on with a change.
    write_manifest(tmp_path, "model", {"kind": "mastery-dataset", "sftknow": 99, "x": 1})
    assert read_manifest(tmp_path, "model") == {"sftknow": FORMAT, "kind": "model", "x": 1}
    assert list(read_json(tmp_path / MANIFEST)) == ["sftknow", "kind", "x"]


def test_a_folder_without_a_manifest_has_none(tmp_path: Path) -> None:
    assert read_manifest(tmp_path, "model") is None
    assert read_manifest(tmp_path / "nowhere", "model") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"sftknow": 1', "is damaged"),
        ("[]", "is not a manifest of sftknow"),
        ('{"kind": "model"}', "is not a manifest of sftknow"),
        (f'{{"sftknow": {FORMAT + 1}, "kind": "model"}}', "written by a newer sftknow; install that version"),
        ('{"sftknow": 1, "kind": "mastery-dataset"}', "holds a mastery-dataset, not a model"),
        ('{"sftknow": 1}', "holds a None, not a model"),
    ],
)
def test_what_is_no_such_manifest_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(RunError, match=message) as caught:
        read_manifest(tmp_path, "model")
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_names_its_data_set_by_a_path_from_itself(tmp_path: Path) -> None:
    model = tmp_path / "run" / "models" / "b2-n240-s0"
    model.mkdir(parents=True)
    write_manifest(model, "model", {"mastery_dataset": {"path": "../../mastery/dataset", "fingerprint": "f"}})
    assert dataset_of_model(model) == (str(tmp_path / "run" / "mastery" / "dataset"), None)
    # The run directory is moved as a whole.
    (tmp_path / "run").rename(tmp_path / "moved")
    assert dataset_of_model(tmp_path / "moved" / "models" / "b2-n240-s0") == (
        str(tmp_path / "moved" / "mastery" / "dataset"),
        None,
    )


def test_a_relative_model_folder_gives_an_absolute_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m").mkdir()
    write_manifest(tmp_path / "m", "model", {"mastery_dataset": {"path": "../d"}})
    monkeypatch.chdir(tmp_path)
    assert dataset_of_model(Path("m")) == (str((tmp_path / "d").resolve()), None)


def test_absolute_paths_and_hub_ids_stay(tmp_path: Path) -> None:
    write_manifest(tmp_path, "model", {"mastery_dataset": {"path": "/data/graded"}})
    assert dataset_of_model(tmp_path) == ("/data/graded", None)
    write_manifest(tmp_path, "model", {"mastery_dataset": {"repo": "org/graded", "revision": "abc"}})
    assert dataset_of_model(tmp_path) == ("org/graded", "abc")
    write_manifest(tmp_path, "model", {"mastery_dataset": {"repo": "org/graded"}})
    assert dataset_of_model(tmp_path) == ("org/graded", None)


def test_a_model_without_a_data_set_names_none(tmp_path: Path) -> None:
    assert dataset_of_model(tmp_path) is None
    write_manifest(tmp_path, "model", {"base": "x"})
    assert dataset_of_model(tmp_path) is None


def test_a_data_set_is_no_model(tmp_path: Path) -> None:
    write_manifest(tmp_path, "mastery-dataset", {})
    with pytest.raises(RunError, match="not a model"):
        dataset_of_model(tmp_path)
