"""The table of docs/models.md is what comes out; see tests/matrix.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests import matrix
from tests.matrix import COMMANDS, FAMILIES, FAULT, PAGE, faults, outcome, page, read_page, rows_of


def test_the_page_has_every_model_and_command() -> None:
    shown = read_page(PAGE.read_text(encoding="utf-8"))
    assert list(shown) == list(FAMILIES)
    assert all(list(row) == list(COMMANDS) for row in shown.values())
    assert page(shown) == PAGE.read_text(encoding="utf-8")


def test_three_models_come_out_as_the_page_says(tmp_path: Path) -> None:
    names = ("Mixtral", "GPT-2", "GLM-4-MoE, MTP layer in the base")
    shown = read_page(PAGE.read_text(encoding="utf-8"))
    assert rows_of(names, tmp_path) == {name: shown[name] for name in names}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_models_come_out_as_the_page_says(tmp_path: Path) -> None:
    rows = rows_of(tuple(FAMILIES), tmp_path)
    assert not faults(rows)
    assert page(rows) == PAGE.read_text(encoding="utf-8")


def test_what_neither_passes_nor_refuses_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def said(code: int, text: str) -> str:
        def ends(argv: list[str]) -> int:
            print(text, file=sys.stderr)
            return code if code >= 0 else {}["packed"]

        monkeypatch.setattr(matrix, "main", ends)
        return outcome(["changes"])

    assert said(0, "a warning") == matrix.YES
    assert said(2, "a warning\nsftknow: /tmp/x/base has no layers") == "base has no layers"
    wrong = [said(2, "no reason"), said(1, "sftknow: no exit code of a refusal"), said(-1, "")]
    assert all(each.startswith(FAULT) for each in wrong)
    assert "packed" in wrong[2]
    assert len(faults({"Llama": dict(zip(COMMANDS, [*wrong, "yes", "no layers"], strict=False))})) == 3
