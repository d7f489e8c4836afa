"""The record of an arena: written, read back, and strict about what is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sftknow.artifacts.arena import Entry, arena_file, read_arena, read_entries, write_entries
from sftknow.artifacts.files import read_json, write_json
from sftknow.errors import RunError

PLAIN = Entry(
    cell="mixed-n240-s0",
    strategy="plain",
    options={},
    bucket=None,
    size=240,
    seed=0,
    after="nothing",
    level=None,
    chosen=True,
    scores={"learned": (200, 240), "kept/statements/4": (80, 90), "dev": (3, 10)},
    kl=0.25,
    changed=0.9,
    distance=3.5,
    seconds=12.5,
    peak_bytes=10**9,
    relative_seconds=1.0,
    relative_peak=1.0,
)
BASE = replace(PLAIN, cell="base", strategy="base", size=0, seconds=0.0, kl=0.0, relative_seconds=None)


def test_entries_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    after = replace(PLAIN, after="relative", level="20%", chosen=False)
    write_entries(arena_file(tmp_path, "mixed-n240-s0"), [PLAIN, after])
    write_entries(arena_file(tmp_path, "base"), [BASE])
    assert read_arena(tmp_path) == {"base": (BASE,), "mixed-n240-s0": (PLAIN, after)}
    assert list(read_arena(tmp_path)) == ["base", "mixed-n240-s0"]
    assert read_arena(tmp_path / "none") == {}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda row: row.pop("kl"), "kl"),
        (lambda row: row.update(extra=1), "extra"),
        (lambda row: row["scores"].update(dev=[3]), "not enough values"),
        (lambda row: row["scores"].update(dev=[11, 10]), "11 right of 10"),
    ],
)
def test_what_is_no_entry_is_refused_by_name(tmp_path: Path, change, named: str) -> None:
    file = arena_file(tmp_path, "mixed-n240-s0")
    write_entries(file, [PLAIN])
    content = read_json(file)
    change(content["entries"][0])
    write_json(file, content)
    with pytest.raises(RunError, match=rf"mixed-n240-s0\.json holds no entries of an arena \(.*{named}"):
        read_entries(file)


def test_a_score_that_cannot_be_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="11 right of 10"):
        write_entries(arena_file(tmp_path, "x"), [replace(PLAIN, scores={"dev": (11, 10)})])
    assert read_arena(tmp_path) == {}
