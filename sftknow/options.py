"""Options: frozen records whose fields say by themselves what they may hold.

Each room has one class of them. A recipe's section is that class, and the command line makes its options from the same
fields, so that a default, a range and an explanation stand in one place:

    @dataclass(frozen=True, kw_only=True)
    class Sampling(Options):
        samples: Count = 10
        \"\"\"Continuations for each statement; what `sftknow … --help` says, too.\"\"\"

Loading this module loads the standard library only: pydantic comes with the first instance.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, cast, get_type_hints

from sftknow.errors import OptionError, did_you_mean

if TYPE_CHECKING:
    from pydantic import TypeAdapter


@dataclass(frozen=True)
class Limits:
    """A constraint: the range of a number (``ge`` stands for ≥), or the least length of a text or tuple."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    min_length: int | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic import Field

        given: dict[str, Any] = {name: value for name, value in vars(self).items() if value is not None}
        return handler(Annotated[source, Field(**given)])


Count = Annotated[int, Limits(ge=1)]
"""A whole number of at least 1."""
Positive = Annotated[float, Limits(gt=0)]
NotNegative = Annotated[float, Limits(ge=0)]
Share = Annotated[float, Limits(ge=0, lt=1)]
Dtype = Literal["float32", "bfloat16", "float16"]

Bucket = Annotated[int, Limits(ge=0, le=4)]
"""A mastery bucket (paper, 3.1)."""


@dataclass(frozen=True)
class Pattern:
    """A constraint: the whole text matches an expression."""

    expression: str
    wish: str
    """What it should be, for people."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core import PydanticCustomError, core_schema

        def matched(text: str) -> str:
            if not re.fullmatch(self.expression, text):
                raise PydanticCustomError("pattern", "{wish}", {"wish": self.wish})
            return text

        return core_schema.no_info_after_validator_function(matched, handler(source))


@dataclass(frozen=True)
class _Bytes:
    """A number of bytes may be written as a text such as 2GB."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core import core_schema

        from sftknow.checkpoints.layout import parse_size

        return core_schema.no_info_before_validator_function(
            lambda value: parse_size(value) if isinstance(value, str) else value, handler(source)
        )


Bytes = Annotated[Count, _Bytes()]
"""A number of bytes, also as a text such as ``2GB``."""
Level = Annotated[str, Pattern(r"\d+(\.\d+)?%|\d+/\d+|\d+\.\d+", "a share such as '5%', '1/20' or '0.05'")]

F = TypeVar("F", bound=Callable[..., Any])


def _cached(function: F) -> F:
    """`functools.cache` with the function's own type: mypy takes classes of frozen records for unhashable."""
    return cast(F, cache(function))


NOT_IN_RECIPES: Mapping[str, Any] = {"in_recipes": False}
"""Metadata of a field that Python and single commands set, and recipe files do not."""


def shown_as(value: str) -> Mapping[str, Any]:
    """Metadata of a field whose value the help of a command shows by that word, such as ``FILE``."""
    return {"shown_as": value}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of all option classes: every field is checked against its type and range, nothing is converted silently.

    Raises:
        OptionError: a value that its field does not allow, or values that do not go together.
    """

    leading: ClassVar[tuple[str, ...]] = ()
    """Keys that a recipe names before the others, where a class extends another and wants its own among them."""

    def __post_init__(self) -> None:
        for name in _adapters(type(self), strict=True):
            object.__setattr__(self, name, check_value(type(self), name, getattr(self, name)))
        self.check()

    def check(self) -> None:
        """Raise OptionError for values that do not go together; each field by itself is checked before."""

    def settings(self) -> dict[str, Any]:
        """What a recipe says of them: {key: value}, sections within as mappings too."""
        values = {name: getattr(self, name) for name in recipe_keys(type(self))}
        return {name: value.settings() if isinstance(value, Options) else value for name, value in values.items()}


K = TypeVar("K", bound=Options)


def from_settings(kind: type[K], content: Any, keys: Sequence[str] = ()) -> K:
    """The inverse of `Options.settings`, with the defaults for what is not there; lists, as YAML has them, are tuples.

    Args:
        kind: the class.
        content: {key: value}.
        keys: the sections that lead here, for messages.

    Raises:
        OptionError: an unknown key, or a value that does not fit; it names the keys that lead there.
    """
    known = recipe_keys(kind)
    if not isinstance(content, dict):
        raise OptionError(f"{{key}} should be a section with keys such as {next(iter(known))}, not {content!r}", keys)
    values = {}
    for key, value in content.items():
        if key not in known:
            near = did_you_mean(str(key), known) or _in_a_section(known, str(key))
            raise OptionError(f"unknown key {{key}}; known here: {', '.join(known)}{near}", (*keys, str(key)))
        section = known[key]
        values[key] = from_settings(section, value, (*keys, key)) if section else _tuples(value)
    try:
        return kind(**values)
    except OptionError as error:
        raise OptionError(error.complaint, (*keys, *error.keys)) from None


def check_value(kind: type[Options], name: str, value: Any, *, strict: bool = True) -> Any:
    """One field's value, as the class keeps it.

    Args:
        kind: the class.
        name: of the field.
        value: as Python or YAML gave it; with ``strict=False`` texts are read as numbers where the field wants those.
        strict: whether nothing but a whole number is also a float is converted.

    Raises:
        OptionError: the field does not allow it.
    """
    from pydantic import ValidationError

    try:
        return _adapters(kind, strict=strict)[name].validate_python(value)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        keys = _path(problems[0])
        # A field that may be one of several things complains once for each of them.
        wishes = dict.fromkeys(_wish(each["msg"]) for each in problems if _path(each)[: len(keys)] == keys)
        words = re.findall(r"'([^']+)'", " ".join(wishes)) if problems[0]["type"] in _OF_NAMES else ()
        given = problems[0]["input"]
        near = did_you_mean(given, words) if isinstance(given, str) else ""
        raise OptionError(f"{{key}} should be {' or '.join(wishes)}, not {given!r}{near}", (name, *keys)) from None


_OF_NAMES = ("literal_error", "registered")
"""Pydantic's types of a problem whose wish lists the words that are allowed."""


def _in_a_section(known: Mapping[str, type[Options] | None], key: str) -> str:
    """Where a key belongs that was written outside of its section; empty where no section has it."""
    homes = [f"{name}.{key}" for name, section in known.items() if section and key in recipe_keys(section)]
    return f"; did you mean {' or '.join(homes)}?" if homes else ""


@_cached
def recipe_keys(kind: type[Options]) -> dict[str, type[Options] | None]:
    """The keys of a class in a recipe, each with the class of its section, or None where it is no section."""
    hints = get_type_hints(kind)
    written = [field.name for field in fields(kind) if field.metadata.get("in_recipes", True)]
    return {
        name: hints[name] if _is_section(hints[name]) else None for name in dict.fromkeys((*kind.leading, *written))
    }


@_cached
def explanations(kind: type[Options]) -> dict[str, str]:
    """What each field is: its docstring's first paragraph on one line, classes that it extends included."""
    return {name: paragraphs[0] for name, paragraphs in _docstrings(kind).items()}


@_cached
def silences(kind: type[Options]) -> dict[str, str]:
    """Where the paper is silent: the second paragraph of a field's docstring, what is chosen in its place and why."""
    return {name: paragraphs[1] for name, paragraphs in _docstrings(kind).items() if len(paragraphs) > 1}


@_cached
def _docstrings(kind: type[Options]) -> dict[str, list[str]]:
    """The paragraphs of the docstring under each field."""
    found: dict[str, list[str]] = {}
    for each in reversed(kind.__mro__[: kind.__mro__.index(Options)]):
        try:
            source = inspect.getsource(each)
        except OSError:  # installed without its sources
            continue
        for line, below in pairwise(ast.parse(source).body[0].body):  # type: ignore[attr-defined]
            match line, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text)]
    return found


@_cached
def _adapters(kind: type[Options], *, strict: bool) -> Mapping[str, TypeAdapter[Any]]:
    """What checks each field; a section within checks itself."""
    from pydantic import ConfigDict, TypeAdapter

    config = ConfigDict(strict=strict, allow_inf_nan=False)
    hints = get_type_hints(kind, include_extras=True)
    kinds = {field.name: hints[field.name] for field in fields(kind) if not _is_section(hints[field.name])}
    return {name: TypeAdapter(hint, config=config) for name, hint in kinds.items()}


def _is_section(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Options)


def _tuples(value: Any) -> Any:
    """YAML has lists where frozen records have tuples."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _path(problem: Any) -> tuple[str, ...]:
    """Key and list index of a problem, without pydantic's names for the members of a union."""
    parts = [str(part) for part in problem["loc"] if isinstance(part, int) or re.fullmatch(r"[A-Za-z_]\w*", part)]
    return tuple(part for part in parts if part not in ("str", "int", "float", "bool"))


def _wish(message: str) -> str:
    """What pydantic would have liked, as it follows "should be"."""
    wish = message.partition(", unable to")[0].replace("Input should be a valid tuple", "a list")
    return wish.replace("String should match", "a text that matches").replace("Input should be ", "")
