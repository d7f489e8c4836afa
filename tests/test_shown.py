"""What results show of themselves in Python."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sftknow.shown import Shown


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
