"""`sftknow materialize`: the whole checkpoint of a model that a run keeps small."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from sftknow.artifacts.manifests import dataset_of_model, write_manifest
from sftknow.cli.main import main
from sftknow.models.identity import weights_sha256
from sftknow.models.loading import load_config, load_model, load_tokenizer
from sftknow.models.resolving import materialize_model, place_base, resolve_base
from sftknow.records import ModelRef
from sftknow.run.stored_cells import store_small, whole
from tests.tiny import tiny_llama, tiny_mastery_data, tiny_tokenizer


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A model of a run, stored small, beside its base and its data."""
    tokenizer = tiny_tokenizer()
    base = tiny_llama(tmp_path / "base", tokenizer)
    cell = tiny_llama(tmp_path / "run" / "models" / "cell", tokenizer, seed=1)
    config = json.loads((cell / "config.json").read_text())
    (cell / "config.json").write_text(json.dumps({**config, "use_cache": False}))  # one of its own
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


def test_every_loader_of_ours_makes_it_whole_on_the_way(stored: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in stored.iterdir())
    model, tokenizer = load_model(stored), load_tokenizer(ModelRef(path=str(stored)))
    assert model.config.model_type == "llama" == load_config(stored).model_type
    assert tokenizer.get_vocab()
    found = resolve_base(str(stored), None, None)
    assert found.sha256 == weights_sha256(stored)
    assert found.name == str(stored)
    whole_one = Path(found.ref.path)
    assert whole_one.name == stored.name
    assert dataset_of_model(whole_one) == (str(tmp_path / "run" / "data"), None)
    assert sorted(path.name for path in stored.iterdir()) == before, "the model itself stays small"
    assert resolve_base(str(stored), None, None).ref.path == str(whole_one), "made once"


def test_every_command_takes_it(stored: Path, tmp_path: Path) -> None:
    """In a process of its own, whose whole copy goes away with it."""
    base, cache = tmp_path / "base", tmp_path / "cache"
    (cache / "whole" / "12345" / "left").mkdir(parents=True)
    script = (
        "import sys\nfrom sftknow.cli.main import main\n"
        f"codes = [main(words.split()) for words in ('changes {base} {stored} --levels 5%', "
        f"'restore {base} {stored} --top 5% --out {tmp_path}/restored', "
        f"'evaluate {stored} --splits test', 'compare {base} {stored} --splits test --examples 0')]\n"
        f"from pathlib import Path\nassert list(Path({str(cache)!r}).rglob('model.safetensors'))\nsys.exit(max(codes))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "SFTKNOW_CACHE": str(cache)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "restored" / "model.safetensors").is_file()
    assert not list((cache / "whole").rglob("*.safetensors"))
    assert not (cache / "whole" / "12345").exists(), "what a killed process left is cleared"


def test_other_programs_are_told_what_to_do(stored: Path) -> None:
    for load in (AutoConfig, AutoModelForCausalLM):
        with pytest.raises(ValueError, match=r"its difference from its base. Write it whole .*sftknow materialize"):
            load.from_pretrained(stored)


def test_lm_eval_is_told_what_to_do(stored: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    with pytest.raises(ValueError, match="sftknow materialize"):
        HFLM(pretrained=str(stored), device="cpu")


def test_a_stored_model_of_an_earlier_version_is_read(stored: Path, tmp_path: Path) -> None:
    own = stored / "delta-config.json"
    assert json.loads(own.read_text())["model_type"] == "llama"
    own.replace(stored / "config.json")
    index = json.loads((stored / "delta.json").read_text())
    (stored / "delta.json").write_text(json.dumps({**index, "format": 1}))
    assert load_config(materialize_model(stored, tmp_path / "out")).model_type == "llama"
    assert not (tmp_path / "out" / "delta-config.json").exists()


def test_a_stored_model_finds_the_base_of_its_run(stored: Path, tmp_path: Path) -> None:
    place_base(resolve_base(str(tmp_path / "base"), None, None), stored.parent / "base", {"path": "../../data"})
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "base")
    assert materialize_model(moved / "models" / "cell", tmp_path / "out").is_dir()


def test_the_base_of_a_run_travels(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = resolve_base(str(tiny_model), None, None)
    place_base(base, tmp_path / "base", {"path": "../data"})
    assert not any(path.is_symlink() for path in (tmp_path / "base").iterdir())
    assert weights_sha256(tmp_path / "base") == base.sha256
    # Large weights are links. Where they lead nowhere, the name in the manifest counts.
    monkeypatch.setattr("sftknow.models.resolving._COPIED", 0)
    place_base(base, tmp_path / "large", {"path": "../data"})
    link = tmp_path / "large" / "model.safetensors"
    assert link.is_symlink()
    assert [path for path in (tmp_path / "large").iterdir() if path.is_symlink()] == [link]
    assert resolve_base(str(tmp_path / "large"), None, None).ref.path == str(tmp_path / "large")
    link.unlink()
    link.symlink_to("/no/such/environment/model.safetensors")
    found = resolve_base(str(tmp_path / "large"), None, None)
    assert (found.ref.path, found.name, found.sha256) == (base.ref.path, str(tiny_model), base.sha256)
    place_base(base, tmp_path / "large", {"path": "../data"})
    assert link.is_file(), "a link of an earlier place is mended"
    monkeypatch.undo()
    place_base(base, tmp_path / "large", {"path": "../data"})
    assert not link.is_symlink(), "a run of an earlier version gets its copy"
