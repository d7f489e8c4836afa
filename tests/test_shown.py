"""What results show of themselves in Python."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

import pytest

from sftknow.shown import Shown, wrapped
from sftknow.untrusted import printable


@dataclass(frozen=True, kw_only=True)
class Names(Shown):
    names: tuple[str, ...]
    said: str = ""

    def headline(self) -> str:
        return self.said

    def rows(self) -> list[dict[str, Any]]:
        return [{"name": name, "length": len(name)} for name in self.names]


def test_a_table_for_pandas_and_json_of_everything() -> None:
    result = Names(names=("Ada", "Grace"), said="two names")
    assert result.to_pandas().to_dict("list") == {"name": ["Ada", "Grace"], "length": [3, 5]}
    assert json.loads(result.to_json()) == {"names": ["Ada", "Grace"], "said": "two names"}


def test_json_goes_through_a_terminal_as_it_is() -> None:
    """What a model says may hold anything; escaped by what guards the terminal it would be no JSON any more."""
    strange = "a\x85b\u202ec\x7f\x1b[2Jé漢😀\ud800"
    found = Names(names=(strange,)).to_json()
    assert printable(found) == found
    assert json.loads(found)["names"] == [strange]
    assert "é漢😀" in found


def test_a_notebook_shows_the_sentence_and_the_first_rows_and_runs_no_text_of_others() -> None:
    view = Names(names=("<script>alert(1)</script>",), said="a <b> name")._repr_html_()
    assert "<script>" not in view
    assert "a &lt;b&gt; name" in view
    assert "&lt;script&gt;" in view
    assert "to_pandas()" not in view
    many = Names(names=tuple(f"n{i}" for i in range(30)))._repr_html_()
    assert "30 rows; to_pandas() has all" in many
    assert "n19" in many
    assert "n20" not in many
    assert "<b>" not in many


def test_a_result_without_rows_shows_an_empty_table() -> None:
    assert Names(names=()).to_pandas().empty
    assert "<table" in Names(names=())._repr_html_()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_prose_is_wrapped_to_the_terminal_and_tables_and_files_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    prose = "• Restoring ten per cent of the model adds five points in-domain, and two out of it."
    table = f"level      {'accuracy':>40}"
    command = "  sftknow restore base tuned --top 5% --out restored-model"
    shown = wrapped(f"{prose}\n{table}\n{command}", Terminal()).split("\n")
    assert shown[-2:] == [table, command]
    assert len(shown) > 4
    assert all(len(line) < 40 for line in shown[:-2])
    assert all(line.startswith("  ") for line in shown[1:-2])
    assert " ".join(line.strip() for line in shown[:-2]) == prose
    assert wrapped(prose, io.StringIO()) == prose
    numbers = wrapped("gains 21.3 % ± 4.0 points " * 40, Terminal()).split("\n")
    assert not any(line.startswith(("%", "±")) or line.endswith("±") for line in numbers)
    assert " ".join(numbers) == ("gains 21.3 % ± 4.0 points " * 40).strip()
