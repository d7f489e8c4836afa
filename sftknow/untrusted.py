"""JSON that somebody else may have written, read with limits: what it holds is checked before anything is done by it.

Two steps. `parse_json` and `load_json` bound size, nesting and numbers, and refuse text that no path or terminal can
carry. `shaped` then makes what the caller expects of it, records among them, or says in one line what is not as it
should be:

    plan = shaped(load_json(file), RestorePlan, file)
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints, is_typeddict

from sftknow.errors import RunError, SftknowError

MAX_BYTES = 100_000_000
"""Longest JSON text, in bytes; the safetensors library has the same limit for a header."""
MAX_DEPTH = 64
"""Deepest nesting of lists and objects."""
MAX_DIGITS = 40
"""Longest whole number. Tokenizers write 1e30 as one."""

T = TypeVar("T")
_NAMES: dict[Any, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


class _BadJSONError(ValueError):
    """What is wrong with a JSON text or value."""


def load_json(
    path: Path,
    *,
    error: type[SftknowError] = RunError,
    way_out: str = "copy or download it again",
    lenient: bool = False,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """`parse_json` of a file. Raises ``error`` where the file is missing or unreadable, too."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise error(f"{path} is missing") from None
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror}") from None
    return parse_json(content, path, error=error, way_out=way_out, lenient=lenient, pairs=pairs)


def parse_json(
    content: bytes | str,
    source: object,
    *,
    error: type[SftknowError] = RunError,
    way_out: str = "copy or download it again",
    lenient: bool = False,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """A JSON text as dict, list, str, int, float, bool and None.

    Args:
        content: UTF-8, with or without a byte order mark.
        source: where it comes from, for the message.
        error: what is raised.
        way_out: what the message ends with.
        lenient: NaN, infinities and a key that stands there twice are taken as Python takes them: in ``config.json``
            they are usual.
        pairs: makes each object of its keys and values, in place of a dict.

    Raises:
        SftknowError: ``error``: it is no JSON, longer than `MAX_BYTES`, nested deeper than `MAX_DEPTH`, has a number
            beyond `MAX_DIGITS` or the range of float64, a NUL, or half a surrogate pair.
    """
    try:
        if len(content) > MAX_BYTES:
            raise _BadJSONError(f"it is longer than {MAX_BYTES // 10**6} MB")
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        finite: dict[str, Any] = {} if lenient else {"parse_float": _number, "parse_constant": _no_number}
        pairs = pairs or (dict if lenient else _once)
        value = json.loads(text, parse_int=_whole_number, object_pairs_hook=pairs, **finite)
        _check_values(value)
    except RecursionError:
        raise error(f"{source} is damaged (nested deeper than {MAX_DEPTH}); {way_out}") from None
    except ValueError as problem:
        raise error(f"{source} is damaged ({problem}); {way_out}") from None
    return value


def shaped(
    value: Any,
    kind: type[T] | Any,
    source: object,
    *,
    error: type[SftknowError] = RunError,
    way_out: str = "copy or download it again",
) -> T:
    """A value of `parse_json` as what a type says.

    Args:
        value: of `parse_json`.
        kind: a dataclass (made of an object that has its fields and no others), a TypedDict (other keys are let
            through), ``tuple[X, ...]``, ``list[X]``, ``Mapping[str, X]``, ``Literal``, a union, Path, a scalar or Any.
            A whole number does for a float, and stays one.
        source: where it comes from, for the message.
        error: what is raised.
        way_out: what the message ends with.

    Raises:
        SftknowError: ``error``, which names the place within the value and what should be there.
    """
    try:
        return cast(T, _shaped(value, kind, ""))
    except _BadJSONError as problem:
        raise error(f"{source}: {problem}; {way_out}") from None


def refuse_outside(
    names: Iterable[str],
    source: object,
    *,
    error: type[SftknowError] = RunError,
    way_out: str = "copy or download it again",
) -> None:
    """Refuse names that lead out of the folder that they are taken to lie in: absolute ones, and those with ``..``.

    Raises:
        SftknowError: ``error``, which names the first of them.
    """
    for name in names:
        path = PurePosixPath(name)
        if not path.parts or path.is_absolute() or ".." in path.parts:
            raise error(f"{source}: {_brief(name)} is no path within its folder; {way_out}")


_TURNING = (0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_OBEYED = (*range(9), *range(11, 32), *range(127, 160), *_TURNING)
_ESCAPES = {code: chr(code).encode("unicode_escape").decode() for code in _OBEYED}


def printable(text: str, limit: int | None = None) -> str:
    """A text that a terminal shows and does not obey: control characters are escaped, and those that turn text around.

    Tabs and ends of lines stay.

    Args:
        text: from somewhere else.
        limit: longest text; what is longer ends in dots.
    """
    return (text if limit is None or len(text) <= limit else f"{text[: limit - 3]}...").translate(_ESCAPES)


_MARKDOWN = {"<": "&lt;", ">": "&gt;", **{sign: f"\\{sign}" for sign in "[]|`\\"}}


def markdown_text(text: str, more: str = "") -> str:
    """A text that somebody else wrote as Markdown shows it to the letter: no HTML, link, code or cell of a table.

    Args:
        text: may have several lines, which stay.
        more: further signs to quote, such as ``*_``, which would show their backslashes between backticks.
    """
    table = {ord(sign): quoted for sign, quoted in _MARKDOWN.items()}
    return text.translate(table | {ord(sign): f"\\{sign}" for sign in more})


def markdown_line(text: str, more: str = "") -> str:
    """The same on one line, whatever breaks the text has."""
    return " ".join(markdown_text(text, more).split())


def _shaped(value: Any, kind: Any, place: str) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is Annotated:
        return _shaped(value, inner[0], place)
    if origin is Literal and any(value == one and type(value) is type(one) for one in inner):
        return value
    if origin in (Union, types.UnionType):
        return _one_of(value, inner, place)
    if origin in (list, tuple) and isinstance(value, list):
        of_each = inner[:1] * len(value) if origin is list or inner[1:] == (...,) else inner
        if len(of_each) == len(value):
            parts = zip(value, of_each, strict=True)
            return origin(_shaped(part, each, f"{place}[{i}]") for i, (part, each) in enumerate(parts))
    elif origin in (dict, Mapping) and isinstance(value, dict):
        return {key: _shaped(part, inner[1], _joined(place, key)) for key, part in value.items()}
    elif is_typeddict(kind) and isinstance(value, dict):
        known = _hints(kind)
        return value | {key: _shaped(value[key], known[key], _joined(place, key)) for key in known if key in value}
    elif dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _record(value, kind, place)
    elif kind is Path and isinstance(value, str):
        return Path(value)
    elif (kind is float and type(value) is int) or (kind in (str, int, float, bool) and type(value) is kind):
        return value
    elif kind in (None, type(None)) and value is None:
        return None
    raise _BadJSONError(f"{place or 'the content'} should be {_name(kind)}, not {_brief(value)}")


def _record(value: dict[str, Any], kind: Any, place: str) -> Any:
    known = {field.name: field for field in dataclasses.fields(kind) if field.init}
    needed = [
        name for name, f in known.items() if f.default is dataclasses.MISSING is f.default_factory and name not in value
    ]
    strange = [key for key in value if key not in known]
    if needed or strange:
        what = f"lacks {needed[0]}" if needed else f"has an unknown entry {_brief(strange[0])}"
        raise _BadJSONError(f"{place or 'the content'} {what}")
    hints = _hints(kind)
    return kind(**{key: _shaped(part, hints[key], _joined(place, key)) for key, part in value.items()})


def _one_of(value: Any, kinds: tuple[Any, ...], place: str) -> Any:
    problem = None
    for kind in kinds:
        try:
            return _shaped(value, kind, place)
        except _BadJSONError as error:
            problem = problem if problem and kind in (None, type(None)) else error
    raise problem or _BadJSONError(place)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _name(kind: Any) -> str:
    """A type in words."""
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if (get_origin(kind) or kind) in (list, tuple):
        return "a list" if get_args(kind)[1:] in ((), (...,)) else f"a list of {len(get_args(kind))}"
    return _NAMES.get(kind, "a path" if kind is Path else "null" if kind in (None, type(None)) else "an object")


def _brief(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _joined(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _whole_number(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise _BadJSONError(f"a number of {len(text)} digits")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def _no_number(text: str) -> float:
    raise _BadJSONError(f"the number {text[:20]} is not finite")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _BadJSONError(f"{_brief(twice)} stands there twice")
    return found


def _check_values(value: Any) -> None:
    """Bound the nesting and look at every text."""
    level, depth = [value], 0
    while level:
        depth += 1
        below: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                below += [*each, *each.values()]
            elif isinstance(each, list):
                below += each
            elif isinstance(each, str):
                _check_text(each)
        level = below
        if depth > MAX_DEPTH + 1:
            raise _BadJSONError(f"nested deeper than {MAX_DEPTH}")


def _check_text(text: str) -> None:
    if "\0" in text:
        raise _BadJSONError(f"a NUL in {_brief(text)}")
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise _BadJSONError(f"half a surrogate pair in {_brief(text)}")
