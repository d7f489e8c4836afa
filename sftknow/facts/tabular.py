"""Facts from tables: JSONL, CSV and Parquet files with one fact a row.

Columns (others are ignored):

- ``subject``, ``object``: texts, never empty.
- ``relation`` or ``topic``: the name of a topic, such as ``P36``.
- ``aliases`` (may be absent): a list of texts, one text with ``|`` between the names, or a list written out as text
  (``["a", "b"]``, as a table of lists becomes in CSV).
- ``question`` (may be absent or empty): else the topic's own question about the subject.
- ``split`` (may be absent): ``train``, ``dev``, ``test`` or ``testood``.
- ``id`` or ``fact_id`` (may be absent): else topic, split and the row's place in the source: ``P36/train/12``.
- ``exposures``, ``templates_seen``, ``wrong_share``, ``question_exposures`` (all or none): what the lab knows.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sftknow.answers import Synonyms, normalize
from sftknow.errors import FactsError, first_line
from sftknow.facts.prompts import question_for
from sftknow.facts.topics import Topic
from sftknow.records import SPLITS, Fact, Split

SUFFIXES = (".jsonl", ".csv", ".parquet")
_SPLIT_NAMES: dict[str, Split] = {**{s: s for s in SPLITS}, "validation": "dev", "valid": "dev", "val": "dev"}
_EXPOSURE = ("exposures", "templates_seen", "wrong_share", "question_exposures")
_COLUMNS = {
    "subject", "object", "relation", "topic", "aliases", "question", "split", "id", "fact_id", *_EXPOSURE
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """What a model is known to have seen of one fact in pretraining; only a lab can say."""

    exposures: int
    """Statements of the fact, right and wrong ones together."""
    templates_seen: tuple[int, ...]
    """Indices of the statement templates among them, from 0."""
    wrong_share: float
    """Share of the statements that named another object."""
    question_exposures: int
    """Times the fact was seen as a question with its answer."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table and where it stands."""

    file: Path
    number: int
    """As a spreadsheet or an editor counts: a line of JSONL, a record of CSV with its header as row 1, a Parquet row
    from 1."""
    cells: Mapping[str, Any]
    hint: Split | None = None
    """The split that the file's name tells, where it tells one."""

    def error(self, what: str) -> FactsError:
        return FactsError(f"{self.file}, row {self.number}: {what}")


@dataclass(frozen=True, kw_only=True)
class SourceFacts:
    """What a source gives."""

    facts: list[Fact] = field(default_factory=list)
    removed: dict[str, int] = field(default_factory=dict)
    """Rows left out, by reason."""
    exposures: dict[str, Exposure] = field(default_factory=dict)
    """By fact id, where the source knows them."""
    own_aliases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By fact id, the names that the source itself accepts, where it has any."""
    unused: dict[str, None] = field(default_factory=dict)
    """Names of columns that no fact is made of, in the order they were met."""
    notes: tuple[str, ...] = ()
    """What a reader should know of the source."""
    official: bool | None = None
    """Whether this is the official EntityQuestions release; None for anything not laid out like it."""


def split_in_name(path: Path) -> Split | None:
    """The split that a relative path such as ``data/train-00000-of-00001.parquet`` or ``dev/part.csv`` speaks of."""
    for part in (path.stem, *reversed(path.parent.parts)):
        word = part.replace("_", "-").replace(".", "-").split("-")[0].lower()
        if word in _SPLIT_NAMES:
            return _SPLIT_NAMES[word]
    return None


def read_tables(
    files: Iterable[tuple[Path, Split | None]], *, topics: Mapping[str, Topic], synonyms: Synonyms
) -> SourceFacts:
    """The facts of some files.

    The split of a fact is the first of these that there is: its ``split`` cell, taken at its word; the split in the
    file's name; else a fixed cut by a hash of relation and subject, 80 % train, 10 % dev, 10 % test. In the last two
    cases the test facts of an out-of-domain topic are ``testood``, and its train and dev rows are removed and counted,
    since nothing may be trained or chosen on them.

    Args:
        files: each with the split that its name tells, or None.
        topics: every relation must be one of them.
        synonyms: names that are accepted beside the table's own aliases.

    Raises:
        FactsError: names the file, the row and what is wrong there.
    """
    found = SourceFacts()
    places: dict[str, tuple[Path, int]] = {}
    number = 0
    for file, hint in files:
        for row in _rows(file, hint):
            number += 1
            found.unused.update(dict.fromkeys(column for column in row.cells if column not in _COLUMNS))
            topic = _topic(row, topics)
            subject = _text(row, "subject")
            split = _split(row, topic, subject)
            if topic.domain == "out-of-domain" and split in ("train", "dev") and "split" not in row.cells:
                reason = f"{split}: topic is out-of-domain"
                found.removed[reason] = found.removed.get(reason, 0) + 1
                continue
            own = _aliases(row)
            fact = _fact(row, number, topic, subject, split, own, synonyms)
            if fact.id in places:
                first, at = places[fact.id]
                raise row.error(f"the id {fact.id!r} was already used in {first.name}, row {at}")
            places[fact.id] = (file, row.number)
            found.facts.append(fact)
            if own:
                found.own_aliases[fact.id] = tuple(own)
            if any(row.cells.get(column) is not None for column in _EXPOSURE):
                found.exposures[fact.id] = _exposure(row, topic)
    return found


def _topic(row: Row, topics: Mapping[str, Topic]) -> Topic:
    name = _text(row, "topic" if "topic" in row.cells and "relation" not in row.cells else "relation")
    if name not in topics:
        raise row.error(f"no topic is named {name!r}; add its templates to a topics file of your own")
    return topics[name]


def _split(row: Row, topic: Topic, subject: str) -> Split:
    if "split" in row.cells:
        name = _text(row, "split")
        if name not in _SPLIT_NAMES:
            raise row.error(f"the split is {name!r}, not one of {', '.join(SPLITS)}")
        return _SPLIT_NAMES[name]
    split = row.hint or _hashed_split(topic.relation, subject, topic.domain)
    return "testood" if split == "test" and topic.domain == "out-of-domain" else split


def _hashed_split(relation: str, subject: str, domain: str) -> Split:
    """A cut that a fact keeps whatever stands beside it. Out-of-domain topics are for testing only."""
    if domain == "out-of-domain":
        return "test"
    tenth = int.from_bytes(hashlib.sha256(f"{relation}\0{normalize(subject)}".encode()).digest()[:8]) % 10
    return "test" if tenth == 0 else "dev" if tenth == 1 else "train"


def _fact(row: Row, number: int, topic: Topic, subject: str, split: Split, own: list[str], synonyms: Synonyms) -> Fact:
    object_ = _text(row, "object")
    identity = next((column for column in ("id", "fact_id") if column in row.cells), None)
    question = row.cells.get("question")
    return Fact(
        id=_id(row, identity) if identity else f"{topic.relation}/{split}/{number}",
        topic=topic.relation,
        subject=subject,
        object=object_,
        aliases=synonyms.merged(object_, own),
        question=question_for(topic, subject) if question in (None, "") else _text(row, "question"),
        split=split,
    )


def _id(row: Row, column: str) -> str:
    value = row.cells[column]
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(row, column)


def _text(row: Row, column: str) -> str:
    if column not in row.cells:
        raise row.error(f"there is no {column!r}, only {', '.join(map(repr, row.cells)) or 'nothing'}")
    value = row.cells[column]
    if value is None:
        raise row.error(f"the {column} is empty")
    if not isinstance(value, str):
        raise row.error(f"the {column} must be text, not {value!r}; put it in quotes")
    if not normalize(value):
        raise row.error(f"the {column} is empty")
    return _whole(row, column, value).strip()


def _whole(row: Row, column: str, value: str) -> str:
    """The text, unless it holds what no tokenizer and no file can take: half a character (a lone surrogate), or NUL."""
    if "\0" in value:
        raise row.error(f"the {column} holds a NUL character: {value!a}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise row.error(f"the {column} holds half a character at place {error.start + 1}: {value!a}") from None
    return value


def _aliases(row: Row) -> list[str]:
    value = row.cells.get("aliases")
    if value is None or value == "":
        return []
    names = _names(value) if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise row.error(f"the aliases must be a list of texts, or one text with | between them, not {value!r}")
    if not all(normalize(name) for name in names):
        raise row.error(f"an alias is empty in {value!r}")
    return [_whole(row, "aliases", name).strip() for name in names]


def _names(text: str) -> Any:
    """The names in a text: one that spells out a list is that list, else they stand between bars."""
    bare = text.strip()
    if bare.startswith("[") and bare.endswith("]"):
        for parse in (json.loads, ast.literal_eval):
            try:
                return parse(bare)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    return text.split("|")


def _exposure(row: Row, topic: Topic) -> Exposure:
    missing = [column for column in _EXPOSURE if row.cells.get(column) is None]
    if missing:
        raise row.error(f"of {', '.join(_EXPOSURE)} there must be all or none; {', '.join(missing)} is missing")
    try:
        exposure = Exposure(
            exposures=int(row.cells["exposures"]),
            templates_seen=tuple(int(index) for index in row.cells["templates_seen"]),
            wrong_share=float(row.cells["wrong_share"]),
            question_exposures=int(row.cells["question_exposures"]),
        )
    except (TypeError, ValueError) as error:
        raise row.error(f"the columns {', '.join(_EXPOSURE)} do not hold numbers: {error}") from None
    if any(not 0 <= index < len(topic.templates) for index in exposure.templates_seen):
        raise row.error(f"templates_seen names a template that {topic.relation} does not have")
    return exposure


def _rows(file: Path, hint: Split | None) -> Iterator[Row]:
    readers = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    for number, cells in readers[file.suffix.lower()](file):
        yield Row(file=file, number=number, cells=cells, hint=hint)


def _decoded(file: Path) -> str:
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise FactsError(f"{file} cannot be read: {error.strerror}") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = raw.count(b"\n", 0, error.start) + 1
        raise FactsError(f"{file}, row {row}: byte {error.start} is not UTF-8; save the file as UTF-8") from None


def _jsonl(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    # Not splitlines(): JSON texts may hold U+2028 and the like, which do not end a line of JSONL.
    for number, line in enumerate(_decoded(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except json.JSONDecodeError as error:
            raise FactsError(f"{file}, row {number}: not JSON: {error.msg} at column {error.colno}") from None
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, a list of thousands of lists
            raise FactsError(f"{file}, row {number}: not JSON that can be read: {first_line(error)}") from None
        if not isinstance(cells, dict):
            raise FactsError(f"{file}, row {number}: must be an object with subject, relation and object")
        yield number, cells


def _csv(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    records = csv.reader(io.StringIO(_decoded(file), newline=""), strict=True)
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
        if not record:
            continue
        if not header:
            header = [name.strip() for name in record]
            if len(set(header)) < len(header):
                raise FactsError(f"{file}, row {number}: a column's name stands twice in the header: {header}")
            continue
        if len(record) != len(header):
            raise FactsError(
                f"{file}, row {number}: {len(record)} fields under a header of {len(header)}; quote commas"
            )
        yield number, dict(zip(header, record, strict=True))


def _parquet(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        with pq.ParquetFile(file) as table:
            number = 0
            for batch in table.iter_batches():
                for cells in batch.to_pylist():
                    number += 1
                    yield number, cells
    except (OSError, pa.ArrowException) as error:
        raise FactsError(f"{file} is not a Parquet file that can be read: {first_line(error)}") from None
