"""`sftknow materialize`: the whole checkpoint of a model that a run keeps small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sftknow.artifacts.manifests import dataset_of_model, write_manifest
from sftknow.cli.main import main
from sftknow.errors import ModelError
from sftknow.models.identity import weights_sha256
from sftknow.models.loading import load_model
from sftknow.models.resolving import resolve_base
from sftknow.records import ModelRef
from sftknow.run.stored_cells import store_small, whole
from tests.tiny import tiny_llama, tiny_mastery_data, tiny_tokenizer


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A model of a run, stored small, beside its base and its data."""
    tokenizer = tiny_tokenizer()
    base = tiny_llama(tmp_path / "base", tokenizer)
    cell = tiny_llama(tmp_path / "run" / "models" / "cell", tokenizer, seed=1)
    data = tiny_mastery_data(tmp_path / "run" / "data")
    named = {"path": "../../data", "fingerprint": "f"}
    write_manifest(cell, "model", {"base": {"path": str(base)}, "mastery_dataset": named})
    assert data.is_dir()
    before = weights_sha256(cell)
    store_small(resolve_base(str(base), None, None), cell)
    assert weights_sha256(cell) == before == weights_sha256_of(tmp_path, cell)
    return cell


def weights_sha256_of(tmp_path: Path, cell: Path) -> str:
    with whole(resolve_base(str(tmp_path / "base"), None, None), cell) as checkpoint:
        found = weights_sha256(checkpoint)
    assert not checkpoint.exists(), "whole weights are taken away again"
    return found


def test_a_stored_model_is_whole_again(stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "elsewhere" / "tuned"
    assert main(["materialize", str(stored), "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    load_model(ModelRef(path=str(out)))
    assert dataset_of_model(out) == (str(tmp_path / "run" / "data"), None), "the way to the data is mended"


@pytest.mark.parametrize("damage", ["whole", "finished", "base", "taken"])
def test_what_cannot_be_made_whole(
    damage: str, stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, arguments = tmp_path / "out", []
    model = stored
    if damage == "whole":
        model, line = tmp_path / "base", "holds no delta"
    elif damage == "finished":
        (stored / "sftknow.json").unlink()
        line = "was not finished"
    elif damage == "base":
        manifest = json.loads((stored / "sftknow.json").read_text())
        write_manifest(stored, "model", {**manifest, "base": {}})
        line = "give it with --base"
    else:
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
        line = "holds something else"
    assert main(["materialize", str(model), "--out", str(out), *arguments]) == 2
    told = capsys.readouterr().err
    assert line in told
    assert told.count("\n") == 1
    if damage == "base":
        assert main(["materialize", str(model), "--out", str(out), "--base", str(tmp_path / "base")]) == 0


def test_loading_a_stored_model_says_what_to_do(stored: Path) -> None:
    with pytest.raises(ModelError, match=r"stored small; write the whole checkpoint first: sftknow materialize"):
        load_model(ModelRef(path=str(stored)))
    with pytest.raises(ModelError, match="sftknow materialize"):
        resolve_base(str(stored), None, None)
