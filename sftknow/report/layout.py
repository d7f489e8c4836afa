"""What a report is made of: tables, figures and sections as plain values, and their forms as CSV, Markdown and JSON."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, TypeVar

from sftknow.report.words import Difference, together, tone

Value = float | int | str | None
Row = tuple[Value, ...]

L = TypeVar("L")


def finite(value: Value) -> Value:
    """The value, or None where it is a number that JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _csv(header: Sequence[str], rows: Sequence[Sequence[Value]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue()


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One place of a table: what is shown and the number behind it."""

    text: str
    """Never blank."""
    value: Value = None
    """The unrounded number in the column's unit, for CSV and JSON; None where the text says it all."""
    extra: Mapping[str, float] = field(default_factory=dict)
    """Further numbers, such as ``spread``; each becomes a column of its own in the CSV."""
    note: str = ""
    """Shown small behind the text, such as a signed difference."""
    tone: str = ""
    """``up``, ``down`` with ``-weak``, ``-mid``, ``-strong``, or empty: a background colour, never the only sign;
    ``control``: in grey, what another number is compared with."""
    difference: Difference | None = None
    """What `tabulate` judges together with the others of the table; the colour and the p-value follow from it."""
    strong: bool = False
    """The highest of its column, or what a table is about."""
    paper: str = ""
    """The paper's value, shown small below; with the difference from it where the model is the paper's."""

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ValueError("an entry of a table must not be blank")

    @property
    def whole(self) -> str:
        """Text, note and the paper's value in one."""
        return " ".join(part for part in (self.text, self.note, self.paper) if part)


@dataclass(frozen=True)
class Column:
    """A column's heading."""

    title: str
    group: str = ""
    """Heading above several columns."""
    unit: str = ""

    @property
    def whole(self) -> str:
        """Group, title and unit in one line."""
        name = f"{self.group}: {self.title}" if self.group else self.title
        return f"{name} ({self.unit})" if self.unit else name


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table. Every row has one entry for each column."""

    kind: ClassVar[str] = "tables"
    id: str
    """Name of its files."""
    title: str
    """With its number where the paper has this table."""
    note: str
    """How to read it."""
    columns: tuple[Column, ...]
    rows: tuple[tuple[Entry, ...], ...]
    folded: bool = False
    """Shown closed, to be opened by a click."""
    stacked: bool = False
    """Notes stand below their numbers, because the columns are many."""
    words: bool = False
    """Holds words rather than numbers: aligned to the left."""

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"table {self.id}: a row does not fit the columns")

    @property
    def pattern(self) -> bool:
        """Whether numbers of the paper stand in it that are not of this run's own model."""
        return any(entry.paper.startswith("pattern") for row in self.rows for entry in row)

    @property
    def text_columns(self) -> tuple[bool, ...]:
        """For each column whether it holds words and no number at all."""
        return tuple(
            self.words or place == 0 or all(row[place].value is None for row in self.rows)
            for place in range(len(self.columns))
        )

    @property
    def header_groups(self) -> list[tuple[str, int]]:
        """(group heading, number of columns) in order; empty where no column has a group."""
        if not any(c.group for c in self.columns):
            return []
        spans: list[tuple[str, int]] = []
        for column in self.columns:
            if spans and spans[-1][0] == column.group:
                spans[-1] = (column.group, spans[-1][1] + 1)
            else:
                spans.append((column.group, 1))
        return spans

    @property
    def files(self) -> dict[str, bytes]:
        """Its files by name: CSV and Markdown."""
        return {f"{self.id}.csv": self.csv().encode(), f"{self.id}.md": self.markdown().encode()}

    def csv(self) -> str:
        """Unrounded numbers, one heading line; what stands in `Entry.extra` gets columns of its own."""
        extras = [sorted({key for row in self.rows for key in row[i].extra}) for i in range(len(self.columns))]
        header = [
            name
            for column, keys in zip(self.columns, extras, strict=True)
            for name in (column.whole, *(f"{column.whole}, {key}" for key in keys))
        ]
        rows = []
        for row in self.rows:
            line: list[Value] = []
            for entry, keys in zip(row, extras, strict=True):
                line.append(entry.text if entry.value is None else entry.value)
                line += [entry.extra.get(key, "not measured") for key in keys]
            rows.append(line)
        return _csv(header, rows)

    def markdown(self) -> str:
        """As shown on the page, for pasting into a README or an issue."""

        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"

        body = [line([f"**{e.whole}**" if e.strong else e.whole for e in row]) for row in self.rows]
        align = [":--" if text else "--:" for text in self.text_columns]
        head = [line([c.whole for c in self.columns]), "| " + " | ".join(align) + " |"]
        return "\n".join([f"**{self.title}**", "", *head, *body, "", self.note, ""])

    def json(self) -> dict[str, Any]:
        """Title, columns and rows; an entry is its text with the numbers behind it."""
        return {
            "title": self.title,
            "note": self.note,
            "columns": [c.whole for c in self.columns],
            "rows": [
                [{"text": e.whole, "value": finite(e.value), **{k: finite(v) for k, v in e.extra.items()}} for e in row]
                for row in self.rows
            ],
        }


@dataclass(frozen=True)
class Field(Generic[L]):
    """A declared column: its heading, and what it shows of the thing that a line is about."""

    title: str
    show: Callable[[L], Entry | str | int | None]
    """An entry; text, a count, or None for what is not there."""
    group: str = ""
    unit: str = ""
    absent: str = "not run"
    """Stands where there is nothing."""

    def entry(self, line: L) -> Entry:
        """The column's place in a line."""
        shown = self.show(line)
        if isinstance(shown, Entry):
            return shown
        if isinstance(shown, int):
            return Entry(text=f"{shown:,}", value=shown)
        return Entry(text=shown or ("none" if shown is not None else self.absent))


def tabulate(lines: Iterable[L], *fields: Field[L], **about: Any) -> Table | None:
    """A table with a row for each line and a column for each field; None where there is no line.

    Args:
        lines: what the rows are about.
        fields: the declared columns.
        about: the further fields of `Table`.
    """
    rows = judged([tuple(f.entry(line) for f in fields) for line in lines])
    columns = tuple(Column(f.title, f.group, f.unit) for f in fields)
    return Table(columns=columns, rows=rows, **about) if rows else None


def judged(rows: Sequence[tuple[Entry, ...]]) -> tuple[tuple[Entry, ...], ...]:
    """The rows of a table with every difference in them judged together."""
    found = iter(together([e.difference for row in rows for e in row if e.difference is not None]))

    def entry(e: Entry) -> Entry:
        if e.difference is None:
            return e
        d = next(found)
        return replace(e, difference=d, tone=tone(d), extra={**e.extra, "p, Holm": d.part()["p"]})

    return tuple(tuple(entry(e) for e in row) for row in rows)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One drawing: a file of its own."""

    id: str
    title: str
    alt: str
    """What is to be seen, in words, for those who cannot see it."""
    svg: str
    """The drawing as it goes into the file."""
    png: bytes


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One or more panels with one caption and the data they show."""

    kind: ClassVar[str] = "figures"
    id: str
    title: str
    note: str
    panels: tuple[Panel, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]

    @property
    def files(self) -> dict[str, bytes]:
        """Its files by name: the data as CSV, and each panel as SVG and PNG."""
        found = {f"{self.id}.csv": self.csv().encode()}
        for panel in self.panels:
            found |= {f"{panel.id}.svg": panel.svg.encode(), f"{panel.id}.png": panel.png}
        return found

    def csv(self) -> str:
        """The points of a self."""
        return _csv(self.columns, self.rows)

    def json(self) -> dict[str, Any]:
        """Title, columns and rows of the data."""
        return {
            "title": self.title,
            "note": self.note,
            "alt": {panel.id: panel.alt for panel in self.panels},
            "columns": list(self.columns),
            "rows": [[finite(value) for value in row] for row in self.rows],
        }


def figure(panels: Sequence[Panel], *, rows: Iterable[tuple[Value, ...]], **about: Any) -> Figure | None:
    """A figure of these panels, with the further fields of `Figure`; None where there is no panel."""
    return Figure(panels=tuple(panels), rows=tuple(rows), **about) if panels else None


Block = Table | Figure


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page."""

    id: str
    title: str
    intro: str
    blocks: tuple[Block, ...] = ()
    points: tuple[str, ...] = ()
    """Sentences shown as a list."""
    open: bool = False
    """Shown unfolded."""
