"""Registries: what others add is found by name, by import and by entry point."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sftknow.errors import FactsError, SftknowError
from sftknow.registry import Registry


@pytest.fixture
def registry() -> Registry[Callable[[], str]]:
    found: Registry[Callable[[], str]] = Registry("greeting", FactsError)
    found.register("hello")(lambda: "hello")
    return found


def test_a_registered_function_is_found(registry: Registry[Callable[[], str]]) -> None:
    @registry.register("bye")
    def bye() -> str:
        return "bye"

    assert registry.get("bye") is bye
    assert list(registry) == ["hello", "bye"]
    assert "bye" in registry
    registry.remove("bye")
    assert "bye" not in registry


def test_an_unknown_name_lists_the_known_ones(registry: Registry[Callable[[], str]]) -> None:
    with pytest.raises(FactsError, match="no greeting called hallo; there are hello"):
        registry.get("hallo")


def test_a_taken_name_is_refused_but_a_second_import_is_not(registry: Registry[Callable[[], str]]) -> None:
    entry = registry.get("hello")
    assert registry.register("hello")(entry) is entry
    with pytest.raises(FactsError, match="called hello already"):
        registry.register("hello")(lambda: "other")


def plug_in(folder: Path, module: str, text: str) -> None:
    """An installed package with one module that it names as a plug-in."""
    (folder / f"{module}.py").write_text(text)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[sftknow.plugins]\nmine = {module}\n")


def test_an_installed_package_adds_its_own(
    registry: Registry[Callable[[], str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plug_in(tmp_path, "greetings_of_mine", "def moin():\n    return 'moin'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "moin" not in registry
    assert "greetings_of_mine" in sys.modules
    monkeypatch.delitem(sys.modules, "greetings_of_mine")


def test_a_plug_in_that_cannot_be_imported_is_named(
    registry: Registry[Callable[[], str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plug_in(tmp_path, "broken_plug_in", "raise ValueError('no')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SftknowError, match=r"mine \(broken_plug_in\) cannot be imported \(ValueError: no\)"):
        registry.get("anything")
