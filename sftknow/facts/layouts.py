"""Which column of a table is what: our own names, the layouts of known data sets, or a mapping that a person gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sftknow.errors import FactsError

EXPOSURE = ("exposures", "templates_seen", "wrong_share", "question_exposures")
COLUMNS = ("subject", "object", "relation", "topic", "aliases", "question", "split", "id", "fact_id", *EXPOSURE)
QUESTIONS = "QUESTION"
"""The topic of facts that are questions with answers and no relation; its statements: ``--topics questions``."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the parts of a fact stand in a table."""

    name: str
    columns: Mapping[str, str]
    """By our name the table's: a column, or ``column.key`` for one key of a column of objects."""
    known: bool = False
    """A public data set's: rows of relations without a topic are left out and counted, its only part is cut anew, and
    an object may be a list, whose first item is the object and whose others are aliases."""
    topic: str | None = None
    """The topic of every row, where the table has no relation."""

    def __str__(self) -> str:
        given = ", ".join(f"{ours}={theirs}" for ours, theirs in self.columns.items())
        return f"{self.name} ({given})" if self.name else given


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(
            name="popqa",
            columns={
                "subject": "subj",
                "relation": "prop",
                "object": "obj",
                "aliases": "possible_answers",
                "question": "question",
                "id": "id",
            },
            known=True,
        ),
        Layout(
            name="triviaqa",
            columns={
                "subject": "question",
                "question": "question",
                "object": "answer.value",
                "aliases": "answer.aliases",
                "id": "question_id",
            },
            known=True,
            topic=QUESTIONS,
        ),
        Layout(
            name="questions",
            columns={"subject": "question", "question": "question", "object": "answer"},
            known=True,
            topic=QUESTIONS,
        ),
    )
}
"""Data sets that a person may name. PopQA: Mallen et al., 2023; TriviaQA: Joshi et al., 2017, as released and as on the
Hub; ``questions``: a question and an answer, or a list of answers, as in NQ-open."""


def folded(name: str) -> str:
    """A column's name without case, and without what separates its words."""
    plain = "".join(f" {c}" if c.isupper() and i and name[i - 1].islower() else c for i, c in enumerate(str(name)))
    return "_".join(plain.lower().replace("-", " ").replace("_", " ").split())


def parse_columns(text: str) -> Layout:
    """The layout of ``popqa`` or of ``subject=city,object=mayor``, where what is not named keeps its own name.

    Raises:
        FactsError: it is neither.
    """
    if text.strip().lower() in LAYOUTS:
        return LAYOUTS[text.strip().lower()]
    columns: dict[str, str] = {}
    for part in text.split(","):
        ours, equals, theirs = (piece.strip() for piece in part.partition("="))
        if not equals or ours not in COLUMNS or not theirs or ours in columns:
            raise FactsError(
                f"--columns {text!r}: {part.strip()!r} is neither {', '.join(LAYOUTS)} nor NAME=COLUMN, each once, "
                f"with a NAME of {', '.join(name for name in COLUMNS if name not in EXPOSURE)}"
            )
        columns[ours] = theirs
    return Layout(name="", columns=columns)


def layout_of(names: Iterable[str], given: Layout | None) -> Layout | None:
    """How columns of these names are to be read: as given, by our own names (None), or as a known data set's.

    Only a table without a subject or an object of ours is taken for another's.
    """
    if given is not None:
        return given
    there = {folded(name) for name in names}
    if {"subject", "object"} <= there or there & {"subject", "object", "relation", "topic"}:
        return None
    for layout in LAYOUTS.values():
        if all(folded(column.partition(".")[0]) in there for column in layout.columns.values()):
            return layout
    return None


def is_header(names: list[str], given: Layout | None) -> bool:
    """Whether columns of these names hold facts."""
    layout = layout_of(names, given)
    there = {folded(name) for name in names}
    wanted = layout.columns if layout else {}
    needed = [folded(wanted.get(name, name).partition(".")[0]) for name in ("subject", "object")]
    return all(name in there for name in needed)


class Translation:
    """Cells under our names, from cells under a table's own; what no fact is made of keeps its name.

    Args:
        names: the table's columns.
        layout: None for our own names, in any case.

    Raises:
        FactsError: two columns differ in nothing but case, or one that the layout names is not there.
    """

    def __init__(self, names: Iterable[str], layout: Layout | None) -> None:
        by_folded: dict[str, str] = {}
        for name in names:
            if folded(name) in by_folded and (folded(name) in COLUMNS or layout):
                raise FactsError(f"the columns {by_folded[folded(name)]!r} and {name!r} have one name; rename one")
            by_folded.setdefault(folded(name), name)
        mapped = layout.columns if layout else {}
        self._keys: dict[str, tuple[str, str]] = {}
        """Ours by (column, key or nothing)."""
        for ours, theirs in mapped.items():
            column, _, key = theirs.partition(".")
            exact = theirs if theirs in by_folded.values() else by_folded.get(folded(theirs))
            found = exact or by_folded.get(folded(column))
            if found is None and not (layout and layout.known and ours in ("id", "aliases", "question")):
                raise FactsError(f"there is no column {column!r}, only {', '.join(map(repr, by_folded.values()))}")
            if found is not None:
                self._keys[ours] = (found, "" if exact else key)
        taken = {column for column, _ in self._keys.values()}
        for fold, name in by_folded.items():
            if fold in COLUMNS and fold not in self._keys and name not in taken and not (layout and layout.known):
                self._keys[fold] = (name, "")
        used = {column for column, _ in self._keys.values()}
        self.unused = tuple(name for name in by_folded.values() if name not in used)

    def cells(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """One row under our names."""
        found: dict[str, Any] = {}
        for ours, (column, key) in self._keys.items():
            if column in row:
                cell = row[column]
                if key:
                    inner = cell.items() if isinstance(cell, Mapping) else ()
                    cell = next((value for name, value in inner if folded(name) == folded(key)), None)
                found[ours] = cell
        return found
