"""Facts from tables: JSONL, JSON, CSV, TSV and Parquet files with one fact a row.

Columns, in any case and order (others are ignored and named; another table's layout: `sftknow.facts.layouts`):

- ``subject``, ``object``: texts, numbers or dates, never empty.
- ``relation`` or ``topic``: the name of a topic, such as ``P36``, or the relation's own name (``capital``) or address.
- ``aliases`` (may be absent): a list of texts, one text with ``|`` between the names, or a list written out as text
  (``["a", "b"]``, ``['a' 'b']``, as a table of lists becomes in CSV).
- ``question`` (may be absent or empty): else the topic's own question about the subject.
- ``split`` (may be absent or empty): ``train``, ``dev``, ``test`` or ``testood``.
- ``id`` or ``fact_id`` (may be absent or empty): else topic, split and the row's place in the source: ``P36/train/12``.
- ``exposures``, ``templates_seen``, ``wrong_share``, ``question_exposures`` (all or none): what the lab knows.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sftknow.answers import Synonyms, normalize
from sftknow.errors import FactsError
from sftknow.facts.cells import NOTHING, CellError, as_text, is_missing, is_wikidata_id, names_of
from sftknow.facts.dialects import READERS, read_rows
from sftknow.facts.layouts import EXPOSURE, Layout, Translation, is_header, layout_of
from sftknow.facts.prompts import question_for
from sftknow.facts.topics import Topic, find_topic
from sftknow.records import SPLITS, Fact, Split

SUFFIXES = tuple(READERS)
_SPLIT_NAMES: dict[str, Split] = {**{s: s for s in SPLITS}, "validation": "dev", "valid": "dev", "val": "dev"}
_SPLIT_CELLS: dict[str, Split] = {
    **_SPLIT_NAMES,
    "training": "train",
    "development": "dev",
    "testing": "test",
    "test_ood": "testood",
}


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
    """See `sftknow.facts.dialects`."""
    cells: Mapping[str, Any]
    """Under our names."""
    hint: Split | None = None
    """The split that the file's name tells, where it tells one."""
    layout: Layout | None = None
    """None for our own."""

    def error(self, what: str) -> FactsError:
        return FactsError(f"{self.file}, row {self.number}: {what}")

    def given(self, *columns: str) -> str | None:
        """The first of these columns whose cell says something."""
        return next((column for column in columns if not is_missing(self.cells.get(column))), None)


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
    files: Iterable[tuple[Path, Split | None]],
    *,
    topics: Mapping[str, Topic],
    synonyms: Synonyms,
    layout: Layout | None = None,
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
        layout: which column is what; None for our own names, or those of a data set in `LAYOUTS`.

    Raises:
        FactsError: names the file, the row and what is wrong there.
    """
    found = SourceFacts()
    places: dict[str, tuple[Path, int]] = {}
    said: dict[str, int] = {}
    """What was assumed, and of how many rows."""
    ids = _WikidataIds()
    number = 0
    for file, hint in files:
        for row in _rows(file, hint, layout, found.unused, said):
            number += 1
            topic = _topic(row, topics, said)
            if topic is None:
                reason = f"no topic for {row.cells.get('relation')}"
                found.removed[reason] = found.removed.get(reason, 0) + 1
                continue
            subject = _text(row, "subject")
            split = _split(row, topic, subject, said)
            if topic.domain == "out-of-domain" and split in ("train", "dev") and row.given("split") is None:
                reason = f"{split}: topic is out-of-domain"
                found.removed[reason] = found.removed.get(reason, 0) + 1
                continue
            own, object_ = _answers(row, said)
            ids.look(row, subject, object_)
            fact = _fact(row, number, topic, subject, object_, split, own, synonyms)
            if fact.id in places:
                first, at = places[fact.id]
                raise row.error(f"the id {fact.id!r} was already used in {first.name}, row {at}")
            places[fact.id] = (file, row.number)
            found.facts.append(fact)
            if own:
                found.own_aliases[fact.id] = tuple(own)
            if any(row.cells.get(column) is not None for column in EXPOSURE):
                found.exposures[fact.id] = _exposure(row, topic)
    notes = (
        f"{what} ({count:,} row{'s'[: count > 1]})" if count else what for what, count in (said | ids.notes()).items()
    )
    return replace(found, notes=tuple(notes))


class _WikidataIds:
    """Counts subjects and objects that are Wikidata ids: a column of them holds no names; one may be a name."""

    def __init__(self) -> None:
        self._all = 0
        self._first: dict[str, tuple[Row, str]] = {}
        self._found: dict[str, int] = {}

    def look(self, row: Row, subject: str, object_: str) -> None:
        self._all += 1
        for column, text in (("subject", subject), ("object", object_)):
            if is_wikidata_id(text):
                self._first.setdefault(column, (row, text))
                self._found[column] = self._found.get(column, 0) + 1

    def notes(self) -> dict[str, int]:
        """What has to be said.

        Raises:
            FactsError: most of a column are ids.
        """
        for column, (row, text) in self._first.items():
            if 2 * self._found[column] > self._all:
                raise row.error(
                    f"the {column} {text!r} is a Wikidata id and no name, as in {self._found[column]:,} of "
                    f"{self._all:,} rows; a model cannot complete it: put the item's label there"
                )
        return {
            f"{column}s like {text!r} (row {row.number}) look like Wikidata ids and are taken for names": self._found[
                column
            ]
            for column, (row, text) in self._first.items()
        }


def _topic(row: Row, topics: Mapping[str, Topic], said: dict[str, int]) -> Topic | None:
    """The row's topic; None where a known data set has more relations than there are topics."""
    if row.layout is not None and row.layout.topic and row.given("relation", "topic") is None:
        if row.layout.topic in topics:
            return topics[row.layout.topic]
        raise row.error("questions without a relation need statements of their own; give --topics questions")
    name = _text(row, row.given("relation", "topic") or ("topic" if "topic" in row.cells else "relation"))
    topic = find_topic(name, topics)
    if topic is not None:
        if topic.relation != name:
            said.setdefault(f"the relation {name!r} is {topic.relation}", 0)
        return topic
    if row.layout is not None and row.layout.known:
        return None
    raise row.error(f"no topic is named {name!r}; add its templates to a topics file of your own")


def _split(row: Row, topic: Topic, subject: str, said: dict[str, int]) -> Split:
    if row.given("split"):
        name = _text(row, "split")
        known = _SPLIT_CELLS.get(name.lower().replace("-", "_"))
        if known is None:
            raise row.error(f"the split is {name!r}, not one of {', '.join(SPLITS)}")
        return known
    if "split" in row.cells:
        _count(said, "an empty split is that of the file's name" if row.hint else f"an empty split is {CUT}")
    split = row.hint or _hashed_split(topic.relation, subject, topic.domain)
    return "testood" if split == "test" and topic.domain == "out-of-domain" else split


CUT = "a cut by a hash of relation and subject: 80 % train, 10 % dev, 10 % test"


def _count(said: dict[str, int], what: str) -> None:
    said[what] = said.get(what, 0) + 1


def _hashed_split(relation: str, subject: str, domain: str) -> Split:
    """A cut that a fact keeps whatever stands beside it. Out-of-domain topics are for testing only."""
    if domain == "out-of-domain":
        return "test"
    tenth = int.from_bytes(hashlib.sha256(f"{relation}\0{normalize(subject)}".encode()).digest()[:8]) % 10
    return "test" if tenth == 0 else "dev" if tenth == 1 else "train"


def _answers(row: Row, said: dict[str, int]) -> tuple[list[str], str]:
    """The row's own aliases, and its object."""
    try:
        own = [_whole(row, "aliases", name).strip() for name in names_of(row.cells.get("aliases"))]
        if row.layout is not None and row.layout.known and not isinstance(row.cells.get("object"), str):
            first, *others = names_of(row.cells.get("object")) or [""]
            row = replace(row, cells={**row.cells, "object": first})
            own = [*own, *(_whole(row, "object", name).strip() for name in others)]
    except CellError as error:
        raise row.error(str(error)) from None
    written = row.cells.get("aliases")
    if isinstance(written, str) and written.strip() in NOTHING:
        _count(said, f"aliases {written.strip()!r} are taken for none")
    elif isinstance(written, str) and own == [written.strip()] and "," in written:
        what = f"aliases with commas, such as {written.strip()!r}, are taken for one name (names stand between bars)"
        if not any(line.startswith("aliases with commas") for line in said):
            said[what] = 0
    object_ = _text(row, "object")
    if row.file.suffix.lower() in (".csv", ".tsv") and _WHOLE_FLOAT.fullmatch(object_):
        _count(said, "objects such as '1984.0', as pandas writes whole numbers beside gaps, are taken as '1984'")
        object_ = object_.partition(".")[0]
    return own, object_


def _fact(
    row: Row, number: int, topic: Topic, subject: str, object_: str, split: Split, own: list[str], synonyms: Synonyms
) -> Fact:
    identity = row.given("id", "fact_id")
    return Fact(
        id=_text(row, identity) if identity else f"{topic.relation}/{split}/{number}",
        topic=topic.relation,
        subject=subject,
        object=object_,
        aliases=synonyms.merged(object_, own),
        question=_text(row, "question") if row.given("question") else question_for(topic, subject),
        split=split,
    )


_WHOLE_FLOAT = re.compile(r"-?\d+\.0")
_NUMBERS_TOO = ("subject", "object", "id", "fact_id")


def _text(row: Row, column: str) -> str:
    if column not in row.cells:
        raise row.error(f"there is no {column!r}, only {', '.join(map(repr, row.cells)) or 'nothing'}")
    value = as_text(row.cells[column]) if column in _NUMBERS_TOO else row.cells[column]
    if not isinstance(value, str):
        if is_missing(value):
            raise row.error(f"the {column} is empty")
        raise row.error(f"the {column} must be text, not {value!r}; put it in quotes")
    if not normalize(value):
        raise row.error(f"the {column} is empty")
    if value.strip() in NOTHING and row.file.suffix.lower() in (".csv", ".tsv"):
        raise row.error(
            f"the {column} is {value.strip()!r}, as a missing value is written out; leave the row out, or give the "
            "facts as JSONL, where a text is taken at its word"
        )
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


def _exposure(row: Row, topic: Topic) -> Exposure:
    missing = [column for column in EXPOSURE if row.cells.get(column) is None]
    if missing:
        raise row.error(f"of {', '.join(EXPOSURE)} there must be all or none; {', '.join(missing)} is missing")
    try:
        exposure = Exposure(
            exposures=int(row.cells["exposures"]),
            templates_seen=tuple(int(index) for index in row.cells["templates_seen"]),
            wrong_share=float(row.cells["wrong_share"]),
            question_exposures=int(row.cells["question_exposures"]),
        )
    except (TypeError, ValueError) as error:
        raise row.error(f"the columns {', '.join(EXPOSURE)} do not hold numbers: {error}") from None
    if any(not 0 <= index < len(topic.templates) for index in exposure.templates_seen):
        raise row.error(f"templates_seen names a template that {topic.relation} does not have")
    return exposure


def _rows(
    file: Path, hint: Split | None, layout: Layout | None, unused: dict[str, None], said: dict[str, int]
) -> Iterator[Row]:
    """The rows of one file under our names."""

    def say(what: str) -> None:
        said.setdefault(what, 0)

    translations: dict[tuple[str, ...], tuple[Translation, Layout | None]] = {}
    for number, cells in read_rows(file, lambda names: is_header(names, layout), say):
        names = tuple(cells)
        if names not in translations:
            found = layout_of(names, layout)
            try:
                translations[names] = (Translation(names, found), found)
            except FactsError as error:
                raise FactsError(f"{file}, row {number}: {error}") from None
            if found is not None:
                say(f"{file.name} is read as {found}")
                if found.known and hint:
                    say(
                        f"its only part, {hint}, is cut anew: 80 % train, 10 % dev, 10 % test by a hash of the question"
                    )
            unused.update(dict.fromkeys(translations[names][0].unused))
        translation, found = translations[names]
        known = found is not None and found.known
        yield Row(file=file, number=number, cells=translation.cells(cells), hint=None if known else hint, layout=found)
