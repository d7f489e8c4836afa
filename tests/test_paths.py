"""Every public function takes a path as text as well as a `Path`, and does the same with it."""

from __future__ import annotations

import dataclasses
import inspect
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

import sftknow
from sftknow.options import Options


def public_functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Functions of the package's public names, methods and constructors of its public classes.

    The constructors of results, which users do not call, are not among them.
    """
    for name in sftknow.__all__:
        public = getattr(sftknow, name)
        if not inspect.isclass(public):
            if callable(public):
                yield name, public
            continue
        for method, found in vars(public).items():
            if method == "__init__" and dataclasses.is_dataclass(public) and not issubclass(public, Options):
                continue
            if method == "__init__" and callable(found):
                yield name, public
            elif not method.startswith("_") and isinstance(found, classmethod):
                yield f"{name}.{method}", getattr(public, method)
            elif not method.startswith("_") and inspect.isfunction(found):
                yield f"{name}.{method}", lambda *a, _f=found, **k: _f(MagicMock(), *a, **k)


def paths_of(function: Callable[..., Any], name: str) -> dict[str, inspect.Parameter]:
    """The parameters whose annotation has a Path in it."""
    real = function
    if "." in name:
        owner, _, method = name.partition(".")
        real = getattr(getattr(sftknow, owner), method)
    elif inspect.isclass(function):
        real = function.__init__  # type: ignore[misc]
    parameters = inspect.signature(real).parameters
    return {p.name: p for p in parameters.values() if re.search(r"\bPath\b", str(p.annotation))}


FUNCTIONS = [(name, function) for name, function in public_functions() if paths_of(function, name)]


def test_there_are_many() -> None:
    assert len(FUNCTIONS) >= 30


@pytest.mark.parametrize(("name", "function"), FUNCTIONS, ids=[name for name, _ in FUNCTIONS])
def test_text_is_taken(name: str, function: Callable[..., Any]) -> None:
    for parameter in paths_of(function, name).values():
        text = str(parameter.annotation)
        assert re.search(r"\bstr \| Path\b|\bPath \| str\b", text), f"{name}({parameter.name}: {text})"


def outcome(function: Callable[..., Any], name: str, kind: type[str] | type[Path], folder: Path) -> str:
    """What a call says whose paths lead nowhere and whose other arguments are made up."""
    paths = paths_of(function, name)
    real = inspect.signature(getattr(sftknow, name) if "." not in name else function)
    known = real.parameters if "." not in name else inspect.signature(_method(name)).parameters
    given: dict[str, Any] = {}
    for parameter in known.values():
        if parameter.name == "self" or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name in paths:
            value = kind(folder / "nothing" / parameter.name)
            mapped = "Mapping[" in str(parameter.annotation)
            given[parameter.name] = {"5%": value} if mapped else value
        elif parameter.default is parameter.empty:
            given[parameter.name] = MagicMock()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            function(**given)
        except Exception as error:
            return re.sub(r"id='\d+'|0x[0-9a-f]+", "", f"{type(error).__name__}: {error}")
    return "done"


def _method(name: str) -> Callable[..., Any]:
    owner, _, method = name.partition(".")
    found: Callable[..., Any] = getattr(getattr(sftknow, owner), method)
    return found


@pytest.mark.parametrize(("name", "function"), FUNCTIONS, ids=[name for name, _ in FUNCTIONS])
def test_text_and_path_do_the_same(
    name: str, function: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFTKNOW_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    by_text, by_path = (
        outcome(function, name, kind, tmp_path / side).replace(f"/{side}/", "/")
        for kind, side in ((str, "a"), (Path, "b"))
    )
    assert by_text == by_path
    assert "'str' object has no attribute" not in by_text
