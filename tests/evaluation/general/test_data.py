"""Reading a task's data from a folder: layouts, and one line for everything that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from sftknow.errors import GeneralTaskError, HubError
from sftknow.evaluation.general.data import load_split
from sftknow.evaluation.general.tasks import GeneralTask, find_task
from tests.evaluation.general.stand_in import gsm8k_rows, write_stand_in, xsum_rows
from tests.hub_server import Fault, HubServer

XSUM, GSM8K = find_task("xsum"), find_task("gsm8k")


def write_parquet(file: Path, rows: list[dict[str, str]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file)


def write_lines(file: Path, rows: list[dict[str, str]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")


def test_json_lines_and_the_hubs_parquet(tmp_path: Path) -> None:
    folder = write_stand_in(tmp_path / "data", train=16, test=6)
    assert load_split(GSM8K, folder / "gsm8k", "train").to_list() == gsm8k_rows(16)
    found = load_split(XSUM, folder / "xsum", "test").to_list()
    assert found == [{"document": r["document"], "summary": r["summary"]} for r in xsum_rows(6, start=100)]


@pytest.mark.parametrize("names", [("test.parquet",), ("test/a.parquet", "test/b.parquet"), ("main/test-0.parquet",)])
def test_other_layouts(tmp_path: Path, names: tuple[str, ...]) -> None:
    for place, name in enumerate(names):
        write_parquet(tmp_path / name, gsm8k_rows(2, start=2 * place))
    write_parquet(tmp_path / "testing.parquet", gsm8k_rows(9))
    assert load_split(GSM8K, tmp_path, "test").to_list() == gsm8k_rows(2 * len(names))


def test_of_two_configurations_the_tasks_own(tmp_path: Path) -> None:
    write_parquet(tmp_path / "socratic" / "test-00000-of-00001.parquet", gsm8k_rows(5, start=7))
    write_parquet(tmp_path / "main" / "test-00000-of-00001.parquet", gsm8k_rows(3))
    assert len(load_split(GSM8K, tmp_path, "test")) == 3


def refused(folder: Path, split: str = "test", task: str = "gsm8k") -> str:
    with pytest.raises(GeneralTaskError) as caught:
        load_split(find_task(task), folder, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_used(tmp_path: Path) -> None:
    rows = gsm8k_rows(3)
    assert "there is no folder" in refused(tmp_path / "nowhere")
    assert "no file of the split test; it needs test.parquet" in refused(tmp_path)
    write_parquet(tmp_path / "a" / "test.parquet", [{"question": "?", "solution": "#### 1"}])
    assert "test.parquet lacks the column answer; it has question, solution" in refused(tmp_path / "a")
    write_lines(tmp_path / "b" / "test.jsonl", [rows[0], {"question": "?"}])
    assert "test.jsonl, line 2 lacks the column answer" in refused(tmp_path / "b")
    write_lines(tmp_path / "c" / "test.jsonl", [])
    assert "the split test of" in refused(tmp_path / "c")
    pq.write_table(pa.table({"question": pa.array([], pa.string()), "answer": pa.array([], pa.string())}),
                   tmp_path / "c" / "train.parquet")  # fmt: skip
    assert "is empty" in refused(tmp_path / "c", "train")
    write_lines(tmp_path / "d" / "test.jsonl", [*rows, {"question": " ", "answer": "#### 4"}])
    assert "row 4: question is no text (' ')" in refused(tmp_path / "d")
    write_lines(tmp_path / "e" / "test.jsonl", [rows[0], {"question": "How many?", "answer": "four"}])
    assert "row 2: the answer has no '#### number'" in refused(tmp_path / "e")
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "test.jsonl").write_text('{"question": "a", "answer": "#### 1"}\n{broken\n')
    assert "line 2 is damaged" in refused(tmp_path / "f")
    (tmp_path / "f" / "test.jsonl").write_text("[1]\n")
    assert "line 1 is no JSON object" in refused(tmp_path / "f")
    (tmp_path / "f" / "test.jsonl").write_bytes(b'{"question": "caf\xe9", "answer": "#### 1"}\n')
    assert "is not UTF-8" in refused(tmp_path / "f")
    (tmp_path / "f" / "train.parquet").write_bytes(b"PAR1 no")
    assert "cannot be read as Parquet" in refused(tmp_path / "f", "train")


def test_unknown_task() -> None:
    with pytest.raises(GeneralTaskError, match="no general-ability task called xsums; there are xsum, gsm8k"):
        find_task("xsums")


@pytest.mark.parametrize(
    ("task", "files", "rows"),
    [
        (GSM8K, "main/test-00000-of-00001.parquet", gsm8k_rows(3)),
        (XSUM, "default/test/0000.parquet", xsum_rows(3)),
    ],
    ids=["gsm8k", "xsum"],
)
def test_the_hub_and_later_its_cache(
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: GeneralTask,
    files: str,
    rows: list[dict[str, str]],
) -> None:
    write_parquet(tmp_path / "rows.parquet", rows)
    other = files.replace("test", "train")
    commit = hub.put("dataset", task.hub, {name: (tmp_path / "rows.parquet").read_bytes() for name in (files, other)})
    if task.hub_revision:
        hub.repos["dataset", task.hub].branches[task.hub_revision] = commit
    hub.faults.append(Fault("error", "GET", "/api/", status=503))
    expected = [{column: row[column] for column in task.columns} for row in rows]
    assert load_split(task, None, "test").to_list() == expected
    assert hub.count("GET", "/resolve/.*train") == 0, "only the split that was asked for"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert load_split(task, None, "test").to_list() == expected
    assert not hub.requests


def test_no_network_says_to_pass_a_folder() -> None:
    for task in (XSUM, GSM8K):
        with pytest.raises(HubError, match=f"cannot be had from the Hub .*pass --data {task.name}=FOLDER") as caught:
            load_split(task, None, "test")
        assert "\n" not in str(caught.value)
        assert caught.value.repo_id == task.hub
