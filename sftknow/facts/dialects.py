"""Rows of CSV, TSV, JSON, JSONL and Parquet files, whatever separates the fields and in any Unicode encoding.

A row is a mapping from column to cell, with its number as a spreadsheet or an editor counts: a line of JSONL, an item
of a JSON list from 1, a record of CSV with its header as row 1, a Parquet row from 1. What a file leaves open and a
reader has to assume is told through `say`.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sftknow.errors import FactsError, first_line

Rows = Iterator[tuple[int, Mapping[str, Any]]]
Say = Callable[[str], None]

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


def read_rows(file: Path, is_header: Callable[[list[str]], bool], say: Say) -> Rows:
    """The rows of one file.

    Args:
        file: its suffix, in any case, is one of `READERS`.
        is_header: whether the names of a CSV file's first row, split in one way, are the columns of facts; decides by
            what the fields are separated.
        say: gets what was assumed.

    Raises:
        FactsError: names the file and, where there is one, the row.
    """
    return READERS[file.suffix.lower()](file, is_header, say)


def _decoded(file: Path, say: Say) -> str:
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise FactsError(f"{file} cannot be read: {error.strerror}") from None
    encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), "utf-8")
    if encoding not in ("utf-8", "utf-8-sig"):
        say(f"{file.name} is {encoding.upper()}, as its byte-order mark says")
    elif b"\0" in raw[:2]:
        raise FactsError(f"{file} looks like UTF-16 without a byte-order mark; save the file as UTF-8")
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        row = raw.count(b"\n", 0, error.start) + 1
        name = "UTF-8" if encoding.startswith("utf-8") else encoding.upper()
        raise FactsError(f"{file}, row {row}: byte {error.start} is not {name}; save the file as UTF-8") from None


def _json(file: Path, _: object, say: Say) -> Rows:
    """JSON lines, a JSON list of objects, or an object with such a list or with a column in each field."""
    text = _decoded(file, say)
    start = text.lstrip()[:1]
    if start == "[" or (start == "{" and file.suffix.lower() == ".json"):
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            content = None
            if start == "[":
                number = text.count("\n", 0, getattr(error, "pos", 0)) + 1
                raise FactsError(f"{file}, row {number}: not JSON: {first_line(error)}") from None
        rows = _list_of(content)
        if rows is not None:
            for number, cells in enumerate(rows, start=1):
                yield number, _cells(file, number, cells)
            return
    yield from _lines(file, text)


def _list_of(content: Any) -> list[Any] | None:
    """The rows of a JSON document: itself, its only list, or what pandas' ``to_json`` writes: {column: {row: cell}}."""
    if isinstance(content, list):
        return content
    if not isinstance(content, dict):
        return None
    lists = [value for value in content.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if len(lists) == 1:
        return list(lists[0])
    columns = list(content.values())
    if len(columns) > 1 and all(isinstance(c, dict) and c and c.keys() == columns[0].keys() for c in columns):
        return [{name: column[place] for name, column in content.items()} for place in columns[0]]
    return None


def _lines(file: Path, text: str) -> Rows:
    # Not splitlines(): JSON texts may hold U+2028 and the like, which do not end a line of JSONL.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except json.JSONDecodeError as error:
            raise FactsError(f"{file}, row {number}: not JSON: {error.msg} at column {error.colno}") from None
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, a list of thousands of lists
            raise FactsError(f"{file}, row {number}: not JSON that can be read: {first_line(error)}") from None
        yield number, _cells(file, number, cells)


def _cells(file: Path, number: int, cells: Any) -> Mapping[str, Any]:
    if not isinstance(cells, dict):
        raise FactsError(f"{file}, row {number}: must be an object with a value for each column")
    return cells


def _csv(file: Path, is_header: Callable[[list[str]], bool], say: Say) -> Rows:
    text = _decoded(file, say)
    separator = _separator(text, is_header) or ("\t" if file.suffix.lower() == ".tsv" else ",")
    if separator != ("\t" if file.suffix.lower() == ".tsv" else ","):
        say(f"the fields of {file.name} are separated by {_SEPARATORS[separator]}")
    records = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    number = 0
    header: list[str] = []
    while True:
        number += 1
        try:
            record = next(records, None)
        except csv.Error as error:
            raise FactsError(f"{file}, row {number}: not CSV: {error}") from None
        if record is None:
            return
        if not any(field.strip() for field in record) or (not header and record[0].startswith("sep=")):
            continue  # a blank line, of separators only as a spreadsheet may leave it, or Excel's own first line
        if not header:
            header = [name.strip() for name in record]
            while header and not header[-1]:
                header.pop()
            if len(set(header)) < len(header):
                raise FactsError(f"{file}, row {number}: a column's name stands twice in the header: {header}")
            continue
        while len(record) > len(header) and not record[-1].strip():
            record.pop()
        if len(record) != len(header):
            raise FactsError(
                f"{file}, row {number}: {len(record)} fields under a header of {len(header)}; "
                f"quote {_SEPARATORS[separator]}"
            )
        yield number, dict(zip(header, record, strict=True))


def _separator(text: str, is_header: Callable[[list[str]], bool]) -> str | None:
    """What separates the names of the first line that holds any: what makes a facts file's columns of it, else what
    makes the most columns; None where nothing makes two."""
    lines = (line for line in io.StringIO(text) if line.strip(" \t\r\n,;|") and not line.startswith("sep="))
    first = next(lines, "")
    names = {separator: next(csv.reader([first], delimiter=separator), []) for separator in _SEPARATORS}
    for separator, found in names.items():
        if is_header([name.strip() for name in found]):
            return separator
    most = max(names, key=lambda separator: len(names[separator]))
    return most if len(names[most]) > 1 else None


def _parquet(file: Path, _: object, __: Say) -> Rows:
    try:
        with pq.ParquetFile(file) as table:
            number = 0
            for batch in table.iter_batches():
                for cells in batch.to_pylist():
                    number += 1
                    yield number, cells
    except (OSError, pa.ArrowException) as error:
        raise FactsError(f"{file} is not a Parquet file that can be read: {first_line(error)}") from None


READERS: Mapping[str, Callable[[Path, Callable[[list[str]], bool], Say], Rows]] = {
    ".jsonl": _json, ".ndjson": _json, ".json": _json, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet,
}  # fmt: skip
