"""Weight files that are made as they are read, equal to those that were stored."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from safetensors.numpy import save_file

from sftknow.checkpoints import deltas
from sftknow.checkpoints.deltas import write_delta
from sftknow.checkpoints.stored_file import StoredFile, stored_files
from sftknow.errors import CheckpointError


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Base, fine-tuned checkpoint, and its delta, in blocks of 64 bytes."""
    folder = tmp_path_factory.mktemp("stored")
    base, tuned, delta = (folder / name for name in ("base", "tuned", "delta"))
    rng = np.random.default_rng(0)
    values = {"a": rng.normal(size=(7, 9)).astype("<f4"), "b": rng.normal(size=300).astype("<f2"), "c": np.arange(5)}
    moved = {**values, "a": values["a"] + np.float32(1e-3), "new": rng.normal(size=33).astype("<f4")}
    for place, tensors in ((base, values), (tuned, moved)):
        place.mkdir()
        save_file({**tensors, "empty": np.zeros((0, 4), "<f4")}, place / "model.safetensors")
        (place / "tokenizer.json").write_text("{}")
    (tuned / "config.json").write_text('{"a": 1}')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deltas, "BLOCK_BYTES", 64)
        write_delta(base, tuned, delta)
    return base, tuned, delta


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deltas, "BLOCK_BYTES", 64)


def opened(stored: tuple[Path, Path, Path]) -> StoredFile:
    base, _, delta = stored
    file = stored_files(base, delta)["model.safetensors"]
    assert isinstance(file, StoredFile)
    return file


def test_every_file_of_the_checkpoint_is_there(stored: tuple[Path, Path, Path]) -> None:
    base, tuned, delta = stored
    files = stored_files(base, delta)
    assert sorted(files) == sorted(path.name for path in tuned.iterdir())
    for name, file in files.items():
        content = file.read_bytes() if isinstance(file, Path) else file.read()
        assert content == (tuned / name).read_bytes()
    assert opened(stored).verify() == opened(stored).sha256


@settings(max_examples=60, deadline=None)
@given(
    moves=st.lists(
        st.tuples(
            st.sampled_from((os.SEEK_SET, os.SEEK_CUR, os.SEEK_END)), st.integers(-2500, 2500), st.integers(-1, 700)
        )
    )
)
def test_it_reads_as_any_file(stored: tuple[Path, Path, Path], moves: list[tuple[int, int, int]]) -> None:
    file, like = opened(stored), io.BytesIO((stored[1] / "model.safetensors").read_bytes())
    for whence, offset, count in moves:
        if whence != os.SEEK_SET or offset >= 0:
            assert file.seek(offset, whence) == like.seek(offset, whence) == file.tell()
        assert file.read(count) == like.read(count)


def test_another_base_or_damage_is_told(stored: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, _, delta = stored
    shutil.copytree(base, tmp_path / "base")
    other = bytearray((base / "model.safetensors").read_bytes())
    other[-3] ^= 1
    (tmp_path / "base" / "model.safetensors").write_bytes(other)
    with pytest.raises(CheckpointError, match="was not made from the base"):
        opened((tmp_path / "base", stored[1], delta)).verify()
    shutil.copytree(delta, tmp_path / "delta")
    for content in (b"", bytes(len((delta / "delta.bin").read_bytes()))):
        (tmp_path / "delta" / "delta.bin").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"ends too early|is damaged"):
            opened((base, stored[1], tmp_path / "delta")).verify()
    (tmp_path / "base" / "tokenizer.json").write_text("[]")
    with pytest.raises(CheckpointError, match="was not made from the base"):
        stored_files(tmp_path / "base", delta)
