"""A checkpoint stored as a delta comes back byte for byte."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import save_file

from sftknow.artifacts.files import file_sha256
from sftknow.checkpoints import deltas
from sftknow.checkpoints.deltas import BLOCKS, is_delta, materialize, stored_weights, write_delta
from sftknow.checkpoints.index import DELTA_INDEX, read_index
from sftknow.errors import CheckpointError
from tests.tiny import tiny_llama, tiny_tokenizer


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def saved(folder: Path, tensors: dict[str, np.ndarray], name: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / name)
    return folder


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A base and a model that moved a little from it, as checkpoints with tokenizers and notes of their own."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = tiny_tokenizer()
    base = tiny_llama(tmp_path / "base", tokenizer, dtype="bfloat16")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    torch.manual_seed(0)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            if number % 3:
                parameter += (0.001 * torch.randn_like(parameter.float())).bfloat16()
    model.save_pretrained(tmp_path / "tuned")
    tokenizer.save_pretrained(tmp_path / "tuned")
    (tmp_path / "tuned" / "sftknow.json").write_text('{"sftknow": 1, "kind": "model"}')
    (tmp_path / "tuned" / "deep").mkdir()
    (tmp_path / "tuned" / "deep" / "note.txt").write_text("a note")
    (tmp_path / "tuned" / "empty.txt").write_text("")
    return base, tmp_path / "tuned"


def test_a_checkpoint_comes_back_byte_for_byte(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = pair
    before = contents(tuned)
    size = write_delta(base, tuned, tmp_path / "delta")
    assert contents(tuned) == before, "the checkpoint itself stays"
    assert is_delta(tmp_path / "delta")
    assert not is_delta(tuned)
    with pytest.raises(CheckpointError, match=r"stored small; write the whole checkpoint first: sftknow materialize"):
        read_index(tmp_path / "delta")
    stored = contents(tmp_path / "delta")
    assert "tokenizer.json" not in stored, "the base has the same"
    assert not any(name.endswith(".safetensors") for name in stored)
    assert stored["sftknow.json"] == before["sftknow.json"]
    assert size.full == sum(map(len, before.values()))
    assert size.delta == sum(map(len, stored.values())) < size.full
    materialize(base, tmp_path / "delta", tmp_path / "back")
    assert contents(tmp_path / "back") == before
    assert stored_weights(tmp_path / "delta") == [("model.safetensors", file_sha256(tuned / "model.safetensors"))]


def test_a_checkpoint_is_replaced_by_its_delta(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = pair
    before = contents(tuned)
    write_delta(base, tuned, tuned)
    assert is_delta(tuned)
    with pytest.raises(CheckpointError, match="a delta already"):
        write_delta(base, tuned, tmp_path / "again")
    materialize(base, tuned, tuned)
    assert contents(tuned) == before


BITS = {2: np.uint16, 4: np.uint32, 8: np.uint64, 1: np.uint8}


@settings(max_examples=60, deadline=None)
@given(data=st.data(), width=st.sampled_from(sorted(BITS)))
def test_any_bits_come_back(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, width: int) -> None:
    folder = tmp_path_factory.mktemp("bits")
    shape = data.draw(st.sampled_from([(), (1,), (0,), (7,), (3, 5)]))
    before, after = (data.draw(arrays(BITS[width], shape)) for _ in range(2))
    base = saved(folder / "base", {"t": before, "same": before})
    tuned = saved(folder / "tuned", {"t": after, "same": before})
    write_delta(base, tuned, folder / "delta")
    materialize(base, folder / "delta", folder / "back")
    assert contents(folder / "back") == contents(tuned)


def test_other_shapes_dtypes_names_and_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deltas, "BLOCK_BYTES", 64)
    random = np.random.default_rng(0)
    same = random.standard_normal((40, 7)).astype(np.float32)
    base = saved(tmp_path / "base", {"a": same, "b": same[:5], "c": same.astype(np.float16)})
    moved = same.copy()
    moved[17, 3] += 1
    tuned = saved(tmp_path / "tuned", {"a": moved, "b": same}, "model-00001-of-00002.safetensors")
    saved(tuned, {"c": same, "d": same, "flag": np.array([True, False])}, "model-00002-of-00002.safetensors")
    size = write_delta(base, tuned, tmp_path / "delta")
    index = json.loads((tmp_path / "delta" / DELTA_INDEX).read_text())
    first, second = index["files"].values()
    assert (first["own"], sorted(second["own"])) == (["b"], ["c", "d", "flag"])
    assert sum(1 for _, length in first["blocks"] if length) < len(first["blocks"]), "unchanged blocks take no space"
    assert size.delta > 0
    materialize(base, tmp_path / "delta", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tuned)


def test_another_base_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = pair
    write_delta(base, tuned, tmp_path / "delta")
    other = tiny_llama(tmp_path / "other", tiny_tokenizer(), seed=5, dtype="bfloat16")
    with pytest.raises(CheckpointError, match="was not made from the base"):
        materialize(other, tmp_path / "delta", tmp_path / "back")
    wider = tiny_llama(tmp_path / "wider", tiny_tokenizer(), width=64, dtype="bfloat16")
    with pytest.raises(CheckpointError, match="was not made from the base"):
        materialize(wider, tmp_path / "delta", tmp_path / "back")
    worded = shutil.copytree(base, tmp_path / "worded")
    (worded / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="was not made from the base"):
        materialize(worded, tmp_path / "delta", tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_delta_is_never_taken_for_whole(pair: tuple[Path, Path], tmp_path: Path, damage: str) -> None:
    base, tuned = pair
    write_delta(base, tuned, tmp_path / "delta")
    blocks = tmp_path / "delta" / BLOCKS
    content = bytearray(blocks.read_bytes())
    if damage == "cut":
        del content[-10:]
    else:
        content[len(content) // 2] ^= 1
    blocks.write_bytes(content)
    with pytest.raises(CheckpointError):
        materialize(base, tmp_path / "delta", tmp_path / "back")
    assert os.listdir(tmp_path / "delta")
    assert not (tmp_path / "back").exists()


def test_what_is_no_delta_or_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no delta"):
        materialize(tmp_path / "empty", tmp_path / "empty", tmp_path / "back")
    with pytest.raises(CheckpointError, match="no safetensors weights"):
        write_delta(tmp_path / "empty", tmp_path / "empty", tmp_path / "back")
    (tmp_path / "empty" / DELTA_INDEX).write_text('{"format": 99}')
    with pytest.raises(CheckpointError, match="another version"):
        materialize(tmp_path / "empty", tmp_path / "empty", tmp_path / "back")
