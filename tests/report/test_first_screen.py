"""The first screen: one sentence that answers, one figure, what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sftknow.report.answer import subject
from sftknow.report.collect import collect


def test_the_first_screen(page: Path, run: Path) -> None:
    results = json.loads((page.parent / "results.json").read_text())
    content = page.read_text()
    assert content.index(f"<h1>{results['answer'][:40]}") < content.index('id="answer"') < content.index('id="advice"')
    shown = subject(collect(run))
    assert shown is not None
    assert list(shown.stages) == ["base", "fine-tuned", "20% restored"]
    rows = results["figures"]["figure-f-answer"]["rows"]
    assert len(rows) == 3 * 6
    assert all(low <= value <= high for _, _, value, low, high, _ in rows)
    score = shown.tuned.score("test", 4)
    assert score is not None
    assert next(r for r in rows if r[:2] == [4, "fine-tuned"])[2] == pytest.approx(100 * score.value)
    titles = [t["title"] for kind in ("tables", "figures") for t in results[kind].values()]
    numbers = [title.partition(" · ")[0] for title in titles if " · " in title]
    assert len(set(numbers)) == len(numbers), "each table and figure is named once"
