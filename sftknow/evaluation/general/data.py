"""The data of a general-ability task: a local folder laid out by split, or the Hub.

A folder holds, for each split, ``test.parquet`` or ``test.jsonl``, or several files: ``test/*.parquet``,
``test-00000-of-00002.parquet``. A snapshot of the Hub's repository is such a folder as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from sftknow.errors import GeneralTaskError, HubError
from sftknow.evaluation.general.tasks import GeneralTask
from sftknow.models.hub_files import open_repo
from sftknow.untrusted import parse_json

_ENDINGS = (".parquet", ".jsonl")


def load_split(task: GeneralTask, folder: Path | None, split: str) -> datasets.Dataset:
    """One split of a task's data, its text columns only, every row checked.

    Args:
        task: whose data.
        folder: where they lie; None for the Hub.
        split: ``train`` or ``test``.

    Raises:
        GeneralTaskError: no folder, no file of the split, a file that cannot be read, a column that is missing, an
            empty split, or a row without text; the message names file and row.
        HubError: the Hub refused or could not be reached.
    """
    names, place = _on_the_hub(task, split) if folder is None else _in_folder(task, folder, split)
    if not names:
        where = f"{task.hub} on the Hub" if folder is None else str(folder)
        raise GeneralTaskError(
            f"{task.name}: {where} has no file of the split {split}; it needs {split}.parquet, {split}.jsonl or "
            f"{split}/*.parquet with the columns {', '.join(task.columns)}"
        )
    table: dict[str, list[str]] = {column: [] for column in task.columns}
    for name in names:
        file = place / name
        part = _parquet(task, file) if file.suffix == ".parquet" else _json_lines(task, file)
        _check_rows(task, str(file), part)
        for column, values in part.items():
            table[column] += values
    if not table[task.columns[0]]:
        where = f"{task.hub} on the Hub" if folder is None else str(folder)
        raise GeneralTaskError(f"{task.name}: the split {split} of {where} is empty; give data with at least one row")
    return datasets.Dataset.from_dict(table)


def _on_the_hub(task: GeneralTask, split: str) -> tuple[list[str], Path]:
    try:
        repo = open_repo(task.hub, task.hub_revision, "dataset")
        names = _files(task, repo.sizes, split)
        return names, repo.download(names) if names else Path()
    except HubError as error:
        raise HubError(
            f"{task.name}: the data set {task.hub} cannot be had from the Hub ({error}); download it where there is a "
            f"network and pass --data {task.name}=FOLDER",
            repo_id=task.hub,
            reason=error.reason,
        ) from None


def _in_folder(task: GeneralTask, folder: Path, split: str) -> tuple[list[str], Path]:
    if not folder.is_dir():
        raise GeneralTaskError(f"{task.name}: there is no folder {folder}; pass --data {task.name}=FOLDER")
    paths = [path for depth in ("*", "*/*", "*/*/*") for path in folder.glob(depth)]
    return _files(task, [path.relative_to(folder).as_posix() for path in paths], split), folder


def _files(task: GeneralTask, paths: Iterable[str], split: str) -> list[str]:
    """The split's files in order of their names; of a repository those of the task's configuration."""
    known = sorted(PurePosixPath(path) for path in paths)
    for place in dict.fromkeys(map(PurePosixPath, ("", task.hub_config or "", "data"))):
        found = [
            str(path)
            for path in known
            if path.suffix in _ENDINGS
            and (
                path.parent == place / split
                or (path.parent == place and (path.stem == split or path.stem.startswith(f"{split}-")))
            )
        ]
        if found:
            return found
    return []


def _parquet(task: GeneralTask, file: Path) -> dict[str, list[Any]]:
    try:
        columns = pq.read_schema(file).names
        _check_columns(task, str(file), columns)
        table = pq.read_table(file, columns=list(task.columns))
    except (pa.ArrowException, OSError) as error:
        raise GeneralTaskError(f"{task.name}: {file} cannot be read as Parquet ({error})") from None
    return {column: table[column].to_pylist() for column in task.columns}


def _json_lines(task: GeneralTask, file: Path) -> dict[str, list[Any]]:
    table: dict[str, list[Any]] = {column: [] for column in task.columns}
    for number, row in _rows(task, file):
        _check_columns(task, f"{file}, line {number}", list(row))
        for column in task.columns:
            table[column].append(row[column])
    return table


def _rows(task: GeneralTask, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    where = f"{task.name}: {file}, line {number}"
                    row = parse_json(line, where, error=GeneralTaskError, way_out="mend the line", lenient=True)
                    if not isinstance(row, dict):
                        raise GeneralTaskError(f"{where} is no JSON object")
                    yield number, row
    except UnicodeDecodeError:
        raise GeneralTaskError(f"{task.name}: {file} is not UTF-8 after line {number}") from None


def _check_columns(task: GeneralTask, where: str, columns: Sequence[str]) -> None:
    absent = [column for column in task.columns if column not in columns]
    if absent:
        raise GeneralTaskError(
            f"{task.name}: {where} lacks the column {', '.join(absent)}; it has {', '.join(columns) or 'none'}"
        )


def _check_rows(task: GeneralTask, where: str, table: dict[str, list[Any]]) -> None:
    for column, values in table.items():
        for number, value in enumerate(values, start=1):
            if not isinstance(value, str) or not value.strip():
                raise GeneralTaskError(f"{task.name}: {where}, row {number}: {column} is no text ({value!r})")
    for number, row in enumerate(zip(*table.values(), strict=True), start=1):
        fault = task.fault(dict(zip(table, row, strict=True))) if task.fault else None
        if fault:
            raise GeneralTaskError(f"{task.name}: {where}, row {number}: {fault}")
