"""One identity of weights: by content, whatever was touched, copied or stored small; kept where that is safe."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from sftknow.artifacts.files import digest
from sftknow.errors import ModelError
from sftknow.models import identity
from sftknow.models.identity import identity_by_time, known_sha256, weights_sha256
from sftknow.models.resolving import resolve_base
from sftknow.run.stored_cells import store_small
from tests.tiny import tiny_llama, tiny_tokenizer


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint whose hash is worth keeping, and a cache of its own."""
    monkeypatch.setenv("SFTKNOW_CACHE", str(tmp_path / "cache"))
    return write_large(tmp_path / "large", 2**24 + 1)


def write_large(folder: Path, size: int) -> Path:
    """Weights written yesterday, most of them a hole of the file."""
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(b"weights")
        file.truncate(size)
    yesterday = time.time() - 86_400
    os.utime(folder / "model.safetensors", (yesterday, yesterday))
    return folder


def notes(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").rglob("*.json"))


def test_a_touch_or_a_copy_makes_no_other_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFTKNOW_CACHE", str(tmp_path / "cache"))
    folder = write_large(tmp_path / "large", 2**30 + 1)
    before = weights_sha256(folder)
    (folder / "model.safetensors").touch()
    assert weights_sha256(folder) == before
    assert weights_sha256(write_large(tmp_path / "copy", 2**30 + 1)) == before
    assert identity_by_time(folder) != before, "by which earlier versions knew it"


def test_a_file_is_hashed_once(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    monkeypatch.setattr(identity, "file_sha256", lambda path: hashed.append(path) or "0" * 64)
    file = large / "model.safetensors"
    assert weights_sha256(large) == weights_sha256(large) == digest([[file.name, "0" * 64]])
    assert hashed == [file]
    assert len(notes(tmp_path)) == 1
    os.utime(file, ns=(1, 10**9))
    known_sha256(file)
    assert len(hashed) == 2, "another time"
    (tmp_path / "other").write_bytes(file.read_bytes())
    os.utime(tmp_path / "other", ns=(1, 10**9))
    (tmp_path / "other").replace(file)
    known_sha256(file)
    assert len(hashed) == 3, "another file in its place"
    for count, damage in enumerate(("{", "[]", "{}", '{"sha256": ""}'), start=4):
        notes(tmp_path)[0].write_text(damage)
        assert known_sha256(file) == known_sha256(file) == "0" * 64
        assert len(hashed) == count


def test_what_was_just_written_is_not_noted(large: Path, tmp_path: Path) -> None:
    (large / "model.safetensors").touch()
    known_sha256(large / "model.safetensors")
    assert notes(tmp_path) == [], "a further write might not change its time"


def test_without_a_cache_it_is_only_slower(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("SFTKNOW_CACHE", str(tmp_path / "file"))
    assert weights_sha256(large) == weights_sha256(large)


def test_stored_small_or_whole_it_is_the_same_model(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    base = resolve_base(str(tiny_llama(tmp_path / "base", tokenizer)), None, None)
    tuned = tiny_llama(tmp_path / "tuned", tokenizer, seed=1)
    before = weights_sha256(tuned)
    assert before != base.sha256
    store_small(base, tuned)
    assert not list(tuned.glob("*.safetensors"))
    assert weights_sha256(tuned) == before
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="has no safetensors weights"):
        weights_sha256(tmp_path / "empty")
