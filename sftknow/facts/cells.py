"""What stands in a cell: texts, numbers, lists of names however they were written out, and what means "nothing"."""

from __future__ import annotations

import ast
import datetime
import decimal
import json
import math
import re
from collections.abc import Sequence
from typing import Any

from sftknow.answers import normalize

NOTHING = frozenset({"nan", "NaN", "None", "null", "NULL", "<NA>", "NaT", "N/A", "#N/A", "n/a"})
"""How pandas, NumPy, databases and spreadsheets write a missing value out."""
_LITERAL = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_WORD = re.compile(r"-?\d+(?:\.\d+)?|[A-Za-z<>/#]+")
_WRAPPED = re.compile(r"(?:array\(|Index\(|\()?(?P<list>[\[({].*[\])}])(?:,\s*dtype=[^)]*\))?\)?", re.DOTALL)
_WIKIDATA = re.compile(r"(?:<?https?://(?:www\.)?wikidata\.org/(?:entity|wiki)/|wd:)?Q[1-9]\d*>?")


class CellError(Exception):
    """A cell that cannot be read, without its place."""


def is_missing(cell: Any) -> bool:
    """Whether a cell of an optional column says nothing."""
    if isinstance(cell, str):
        return not normalize(cell) or cell.strip() in NOTHING
    return cell is None or (isinstance(cell, float) and math.isnan(cell)) or cell == []


def is_wikidata_id(text: str) -> bool:
    """Whether a text is an item's id or address, such as ``Q142``, and no name."""
    return _WIKIDATA.fullmatch(text.strip()) is not None


def as_text(cell: Any) -> Any:
    """A number or a date as text, as an answer would have it; every other cell as it is."""
    if isinstance(cell, bool):
        return cell
    if isinstance(cell, float | decimal.Decimal):
        number = decimal.Decimal(str(cell))
        if number.is_finite() and abs(number) < 2**53:
            return str(int(number)) if number == int(number) else format(number, "f")
    if isinstance(cell, datetime.datetime):
        return cell.date().isoformat() if cell.time() == datetime.time() else cell.isoformat(" ")
    return str(cell) if isinstance(cell, int | datetime.date) else cell


def names_of(cell: Any) -> list[str]:
    """The names in a cell of aliases, without those that mean "nothing".

    A list is taken as it is. A text is one of these: a list written out by JSON, Python or NumPy
    (``["a", "b"]``, ``['a' 'b']``), or names between bars (``a|b``).

    Raises:
        CellError: it is something else, a name is empty, or how many names it holds cannot be told.
    """
    if is_missing(cell):
        return []
    names = _written(cell) if isinstance(cell, str) else as_text(cell)
    names = [names] if isinstance(names, str) else names
    if isinstance(names, Sequence) and not isinstance(names, str | bytes):
        names = [as_text(name) for name in names]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CellError(f"the aliases must be a list of texts, or one text with | between them, not {cell!r}")
    if not all(normalize(name) for name in names):
        raise CellError(f"an alias is empty in {cell!r}")
    return [name for name in names if name.strip() not in NOTHING]


def _written(text: str) -> Any:
    bare = text.strip()
    try:
        return json.loads(bare) if bare.startswith("[") else _literals(bare)
    except (ValueError, RecursionError):
        return _literals(bare)


def _literals(bare: str) -> Any:
    """The quoted names of a list as Python and NumPy print it, else the names between bars."""
    wrapped = _WRAPPED.fullmatch(bare)
    inner = wrapped["list"][1:-1] if wrapped else ""
    left = _LITERAL.sub(" ", inner) if wrapped else ""
    quoted = left != inner
    if wrapped and not inner.strip():
        return []
    if wrapped and (quoted or bare.startswith("[")) and "|" not in left:
        if "..." in left:
            raise CellError(f"the aliases {bare!r} were shortened when they were printed; write all of them")
        words = left.replace(",", " ").split()
        if quoted and ":" not in left and all(word in NOTHING or _WORD.fullmatch(word) for word in words):
            try:
                return [str(ast.literal_eval(one)) for one in _LITERAL.findall(inner)] + _numbers(words)
            except (ValueError, SyntaxError, MemoryError):
                pass
        if not quoted and words and all(re.fullmatch(r"-?\d+(\.\d+)?", word) for word in words):
            return words
        if words and all(word in NOTHING for word in words):
            return []
        if quoted or "," in left:
            raise CellError(
                f"the aliases {bare!r} look like a list but are not one that can be read; "
                'write ["one", "two"] or one|two'
            )
    if ";" in bare and "|" not in bare:
        raise CellError(f"the aliases {bare!r} may be one name or several; put | between names, or write a list")
    return text_names(bare)


def _numbers(words: Sequence[str]) -> list[str]:
    odd = [word for word in words if word not in NOTHING and not re.fullmatch(r"-?\d+(\.\d+)?", word)]
    if odd:
        raise ValueError(odd)
    return [word for word in words if word not in NOTHING]


def text_names(bare: str) -> list[str]:
    """The names that stand between bars."""
    return bare.split("|")
