from __future__ import annotations

import json
from pathlib import Path

import pytest

from sftknow.artifacts import keyed_folder
from sftknow.artifacts.keyed_folder import MARK, PartialFolder, ready_folder
from sftknow.errors import RunError


def test_appears_whole(tmp_path: Path) -> None:
    partial = PartialFolder(tmp_path / "deep" / "out", "key")
    partial.open()
    (partial.folder / "f").write_text("x")
    assert not (tmp_path / "deep" / "out").exists()
    partial.finish()
    assert [path.name for path in (tmp_path / "deep" / "out").iterdir()] == ["f"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_gone_on_with_by_key(tmp_path: Path) -> None:
    first = PartialFolder(tmp_path / "out", "key")
    first.open()
    (first.folder / "f").write_text("x")
    (first.folder / "sub").mkdir()
    first.close()
    again = PartialFolder(tmp_path / "out", "key")
    again.open()
    assert again.resumed
    assert (again.folder / "f").read_text() == "x"
    again.close()
    other = PartialFolder(tmp_path / "out", "other")
    other.open()
    assert not other.resumed
    assert [path.name for path in other.folder.iterdir()] == [".unfinished.json"]
    other.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_mark_is_no_mark(tmp_path: Path) -> None:
    for damage in ("{", "[]", ""):
        (tmp_path / ".out.partial").mkdir(exist_ok=True)
        (tmp_path / ".out.partial" / ".unfinished.json").write_text(damage)
        (tmp_path / ".out.partial" / "f").write_text("x")
        partial = PartialFolder(tmp_path / "out", "key")
        partial.open()
        assert not partial.resumed
        assert not (partial.folder / "f").exists()
        partial.close()


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    first, second = PartialFolder(tmp_path / "out", "key"), PartialFolder(tmp_path / "out", "key")
    first.open()
    with pytest.raises(RunError, match="another process"):
        second.open()
    first.close()
    second.open()
    second.discard()


def test_replaces_and_brings_back(tmp_path: Path) -> None:
    """A kill between the two renames leaves the old folder aside; the next start puts it back first."""
    (tmp_path / ".out.old").mkdir()
    (tmp_path / ".out.old" / "f").write_text("old")
    partial = PartialFolder(tmp_path / "out", "key")
    partial.open()
    assert (tmp_path / "out" / "f").read_text() == "old"
    (partial.folder / "f").write_text("new")
    partial.finish()
    assert (tmp_path / "out" / "f").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_folders_above_that_were_made_for_it_go_with_it(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for made in (tmp_path / "a" / "b", tmp_path / "there"):
        partials = [PartialFolder(made / name, "key") for name in ("one", "two")]
        for partial in partials:
            partial.open()
        for partial in reversed(partials):
            partial.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_nobody_gets_in_between_the_mark_and_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock lies beside the folder: it holds while the mark is gone and the folder is not in its place yet."""
    partial = PartialFolder(tmp_path / "out", "key")
    partial.open()
    (partial.folder / "f").write_text("x")
    refused = []

    def meanwhile(folder: Path) -> None:
        if folder == partial.folder:
            with pytest.raises(RunError, match="another process is writing") as told:
                PartialFolder(tmp_path / "out", "other").open()
            refused.append(told)

    monkeypatch.setattr(keyed_folder, "fsync_folder", meanwhile)
    partial.finish()
    assert refused
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["f"]


@pytest.mark.parametrize("mark", [None, "marks/work.json"])
def test_work_of_the_same_key_is_kept(tmp_path: Path, mark: str | None) -> None:
    folder, at = tmp_path / "work", tmp_path / mark if mark else None
    assert not ready_folder(folder, "one", mark=at, notes={"why": "test"})
    (folder / "half").write_text("x")
    assert ready_folder(folder, "one", mark=at)
    assert (folder / "half").is_file()
    assert json.loads((at or folder / MARK).read_text()) == {"key": "one", "why": "test"}
    assert not ready_folder(folder, "two", mark=at)
    assert not (folder / "half").exists()


def test_a_finished_folder_stays_while_its_files_are_used_again(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "weights").write_text("x")
    (tmp_path / "out" / "done.json").write_text("{}")
    partial = PartialFolder(tmp_path / "out", "key")
    partial.open(["weights", "nowhere"])
    assert (partial.folder / "weights").samefile(tmp_path / "out" / "weights")
    assert not (partial.folder / "done.json").exists()
    partial.discard()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["done.json", "weights"]


def test_the_old_folder_is_cleared_under_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Afterwards it might be what another process moved aside a moment ago."""
    (tmp_path / "out").mkdir()
    partial = PartialFolder(tmp_path / "out", "key")
    partial.open()
    real, held = keyed_folder.clear, []
    monkeypatch.setattr(keyed_folder, "clear", lambda folder: (held.append(partial._lock.held), real(folder)))
    partial.finish()
    assert held == [True]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
