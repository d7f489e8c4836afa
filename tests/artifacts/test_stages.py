"""Whole or not at all: files, folders, stages, and one process at a time."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sftknow.artifacts.files import atomic_file, atomic_folder, digest, file_sha256, read_json, write_json, write_text
from sftknow.artifacts.stages import RunDirectory, Stage
from sftknow.errors import RunError
from sftknow.records import Fact, ModelRef


class Interrupted(BaseException):
    """What stops a block midway, as Ctrl-C does."""


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def stage_of(run: Path, **inputs: object) -> Stage:
    """The stage ``grade`` of that run directory."""
    return RunDirectory(run).stage("grade", inputs)


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], capture_output=True, text=True, timeout=240
    )


# Files


def test_a_file_appears_when_its_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "down" / "x.txt"
    with atomic_file(target) as partial:
        partial.write_text("new")
        assert partial.parent == target.parent, "a rename is atomic only within a file system"
        assert not target.exists()
    assert target.read_text() == "new"
    assert names(target.parent) == ["x.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Interrupted])
def test_an_exception_midway_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "x.txt"
    target.write_text("old")
    with pytest.raises(error), atomic_file(target) as partial:  # noqa: PT012
        partial.write_text("half of the n")
        raise error
    assert target.read_text() == "old"
    assert names(tmp_path) == ["x.txt"]


def test_a_file_that_was_never_written_does_not_replace_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("old")
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "x.txt"):
        pass
    assert (tmp_path / "x.txt").read_text() == "old"


# Folders


def test_a_folder_appears_when_its_block_ends_and_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "model"
    for content in ("first", "second"):
        with atomic_folder(target) as partial:
            assert names(partial) == []
            (partial / "sub").mkdir()
            (partial / "sub" / content).write_text(content)
    assert names(target) == ["sub", "sub/second"]
    assert names(tmp_path / "runs") == ["model", "model/sub", "model/sub/second"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Interrupted])
def test_an_exception_midway_leaves_the_old_folder(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(error), atomic_folder(target) as partial:  # noqa: PT012
        (partial / "new").write_text("half")
        raise error
    assert names(tmp_path) == ["model", "model/old"]


def test_a_killed_process_leaves_the_old_folder_and_the_next_call_clears_up(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("old")
    code = """
        import os, sys
        from pathlib import Path
        from sftknow.artifacts.files import atomic_folder
        with atomic_folder(Path(sys.argv[1])) as partial:
            (partial / "half").write_text("half")
            os.kill(os.getpid(), 9)
    """
    assert run_python(code, target).returncode == -9
    assert names(target) == ["old"]
    with atomic_folder(target) as partial:
        assert names(partial) == []
        (partial / "new").write_text("new")
    assert names(tmp_path) == ["model", "model/new"]


def test_a_kill_while_the_old_folder_is_deleted_leaves_nothing_half_deleted_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Deleting gigabytes takes a while. A half-deleted model that still has its sftknow.json would look whole.
    target = tmp_path / "model"
    target.mkdir()
    for name in ("sftknow.json", "weights"):
        (target / name).write_text("old")

    def cut_off(folder: Path, *_: object, **__: object) -> None:
        (Path(folder) / "weights").unlink(missing_ok=True)
        raise Interrupted

    with pytest.raises(Interrupted), atomic_folder(target) as partial:  # noqa: PT012
        for name in ("sftknow.json", "weights"):
            (partial / name).write_text("new")
        monkeypatch.setattr("sftknow.artifacts.keyed_folder.shutil.rmtree", cut_off)
    monkeypatch.undo()
    assert [(target / name).read_text() for name in ("sftknow.json", "weights")] == ["new", "new"]
    with atomic_folder(target) as partial:
        (partial / "newer").write_text("newer")
    assert names(tmp_path) == ["model", "model/newer"], "what was left behind is cleared"


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    target = tmp_path / "model"
    (tmp_path / ".model.old").mkdir()
    (tmp_path / ".model.old" / "old").write_text("old")
    (tmp_path / ".model.partial").mkdir()
    with pytest.raises(Interrupted), atomic_folder(target):
        raise Interrupted
    assert names(tmp_path) == ["model", "model/old"]


# JSON


def test_json_round_trip_of_records(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    ref = ModelRef(path="org/name", revision="main")
    write_json(path, {"ref": ref, "folder": tmp_path, "pair": (1, 2.5), "name": "Côte d’Or", "none": None})
    assert read_json(path) == {
        "ref": {"path": "org/name", "revision": "main", "dtype": None},
        "folder": str(tmp_path),
        "pair": [1, 2.5],
        "name": "Côte d’Or",
        "none": None,
    }
    assert "Côte d’Or" in path.read_text(encoding="utf-8"), "people read these files"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_without_a_number_is_refused_and_the_old_file_stays(tmp_path: Path, value: float) -> None:
    write_json(tmp_path / "x.json", {"value": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"value": value})
    assert read_json(tmp_path / "x.json") == {"value": 1}


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe\x00", b"not json"])
def test_damaged_json_is_named_with_the_way_out(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(RunError) as caught:
        read_json(path)
    assert str(path) in str(caught.value)
    assert "is damaged" in str(caught.value)
    assert "delete it and start again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"x\.json is missing"):
        read_json(tmp_path / "x.json")


def test_write_text_is_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "“é”\n")
    assert (tmp_path / "x").read_bytes() == "“é”\n".encode()


# Hashes


def test_digest_depends_on_content_and_not_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": (1, 2), "a": 1})
    assert (
        len({digest(v) for v in ({"a": 1}, {"a": 1.5}, {"a": "1"}, {"a": [1]}, {"b": 1}, {"a": None}, [1, 2], [2, 1])})
        == 8
    )


def test_digest_of_a_record_is_that_of_its_fields() -> None:
    one = Fact(id="a", topic="P36", subject="S", object="O", question="Q?", split="test")
    assert digest(one) == digest(Fact(id="a", topic="P36", subject="S", object="O", question="Q?", split="test"))
    assert digest(one) != digest(Fact(id="a", topic="P36", subject="S", object="O", question="Q?", split="dev"))


def test_digest_is_the_same_in_every_process() -> None:
    value = {"z": [1, "é"], "a": {"x": 0.1}}
    code = "from sftknow.artifacts.stages import digest; print(digest({'a': {'x': 0.1}, 'z': [1, 'é']}))"
    assert run_python(code).stdout.strip() == digest(value)


def test_file_sha256_is_that_of_coreutils(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert file_sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# Stages


def test_a_stage_is_complete_when_it_was_finished_and_only_then(tmp_path: Path) -> None:
    stage = stage_of(tmp_path, seed=1)
    assert not stage.complete
    with pytest.raises(RunError, match="is not complete"):
        _ = stage.outputs
    stage.start()
    assert not stage.complete
    stage.finish({"facts": 3})
    assert stage.complete
    assert stage_of(tmp_path, seed=1).outputs == {"facts": 3}
    assert read_json(tmp_path / "stages" / "grade.json")["inputs"] == {"seed": 1}


def test_the_same_key_continues_where_it_was(tmp_path: Path) -> None:
    stage = stage_of(tmp_path, seed=1)
    stage.start()
    (stage.folder / "shard").write_text("done")
    again = stage_of(tmp_path, seed=1)
    again.start()
    assert (again.folder / "shard").read_text() == "done"


def test_another_key_finds_an_empty_folder(tmp_path: Path) -> None:
    first = stage_of(tmp_path, seed=1)
    first.start()
    (first.folder / "shard").write_text("done")
    first.finish()
    other = stage_of(tmp_path, seed=2)
    assert not other.complete
    other.start()
    assert names(other.folder) == []
    assert not first.complete


def test_a_folder_of_unknown_origin_is_cleared(tmp_path: Path) -> None:
    (tmp_path / "grade").mkdir()
    (tmp_path / "grade" / "whose").write_text("?")
    stage_of(tmp_path).start()
    assert names(tmp_path / "grade") == []


def test_a_complete_stage_that_is_started_again_is_not_complete(tmp_path: Path) -> None:
    stage = stage_of(tmp_path)
    stage.start()
    stage.finish()
    stage.start()
    assert not stage.complete


def test_clearing_that_is_cut_off_does_not_leave_a_stage_that_looks_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = stage_of(tmp_path, seed=1)
    first.start()
    (first.folder / "result").write_text("result")
    first.finish()

    def cut_off(folder: Path, *_: object, **__: object) -> None:
        (Path(folder) / "result").unlink()
        raise Interrupted

    monkeypatch.setattr("sftknow.artifacts.keyed_folder.shutil.rmtree", cut_off)
    with pytest.raises(Interrupted):
        stage_of(tmp_path, seed=2).start()
    monkeypatch.undo()
    assert not first.complete, "its result is gone"


def test_a_damaged_stage_file_is_named(tmp_path: Path) -> None:
    stage = stage_of(tmp_path)
    stage.start()
    stage.finish()
    (tmp_path / "stages" / "grade.json").write_text("{")
    with pytest.raises(RunError, match=r"grade\.json is damaged"):
        _ = stage.complete


def test_a_stage_whose_folder_is_gone_is_not_complete(tmp_path: Path) -> None:
    stage = stage_of(tmp_path)
    stage.start()
    stage.finish()
    stage.folder.rmdir()
    assert not stage.complete


def test_a_stages_folder_may_be_put_in_place_whole(tmp_path: Path) -> None:
    stage = stage_of(tmp_path)
    stage.start()
    with atomic_folder(stage.folder) as partial:
        (partial / "weights").write_text("w")
    stage.finish()
    assert stage.complete
    assert names(stage.folder) == ["weights"]


def test_stages_within_one_folder_do_not_touch_each_other(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    one, two = run.stage("models/one", {"seed": 1}), run.stage("models/two", {"seed": 1})
    for stage in (one, two):
        stage.start()
        (stage.folder / "x").write_text("x")
        stage.finish()
    run.stage("models/one", {"seed": 2}).start()
    assert not one.complete
    assert two.complete
    assert names(two.folder) == ["x"]


def test_finish_records_the_time_taken(tmp_path: Path) -> None:
    stage = stage_of(tmp_path)
    stage.start()
    stage.finish()
    assert json.loads((tmp_path / "stages" / "grade.json").read_text())["seconds"] >= 0


# Run directories


def test_a_run_directory_gives_stages_by_name(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "runs" / "one") as run:
        stage = run.stage("models/b2-n240-s0", {"bucket": 2})
        assert stage.folder == tmp_path / "runs" / "one" / "models" / "b2-n240-s0"
        stage.start()
        stage.finish()
    with RunDirectory(tmp_path / "runs" / "one") as run:
        assert run.stage("models/b2-n240-s0", {"bucket": 2}).complete
        assert not run.stage("models/b2-n240-s0", {"bucket": 3}).complete


LOCK = """
    import sys
    from pathlib import Path
    from sftknow.errors import RunError
    from sftknow.artifacts.stages import RunDirectory
    try:
        with RunDirectory(Path(sys.argv[1])):
            print("mine")
    except RunError as error:
        print(error)
"""


def test_a_second_process_is_refused_until_the_first_is_done(tmp_path: Path) -> None:
    with RunDirectory(tmp_path):
        refused = run_python(LOCK, tmp_path).stdout
        with pytest.raises(RunError, match="another process"), RunDirectory(tmp_path):
            pass
    assert f"another process is working in {tmp_path}" in refused
    assert "give another --out" in refused
    assert run_python(LOCK, tmp_path).stdout == "mine\n"


def test_an_error_inside_and_a_kill_free_the_lock(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inside"), RunDirectory(tmp_path):
        raise ValueError("inside")
    assert run_python(LOCK.replace('print("mine")', "import os; os.kill(os.getpid(), 9)"), tmp_path).returncode == -9
    with RunDirectory(tmp_path):
        pass


def test_a_file_in_the_place_of_a_run_directory_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(RunError, match="is a file; give another --out"), RunDirectory(tmp_path / "run"):
        pass


def test_importing_storage_loads_no_torch() -> None:
    code = "import sys, sftknow.artifacts.stages, sftknow.artifacts.manifests; print('torch' in sys.modules)"
    assert run_python(code).stdout == "False\n"
