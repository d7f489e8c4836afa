"""How facts for an experiment are chosen; looking at them takes a model and is tried by hand."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from sftknow.records import Fact, Split
from tests.real_facts import chosen, looked


def facts(split: Split, count: int) -> list[Fact]:
    return [
        Fact(id=f"P1/{split}/{i}", topic="P1", subject=f"s{i}", object="o", aliases=(), question="q", split=split)
        for i in range(count)
    ]


def test_as_many_of_every_number_of_hits_as_the_rarest_allow() -> None:
    there = [*facts("train", 100), *facts("dev", 20)]
    hits = {fact.id: (0 if i % 10 else 1 + i // 10 % 2) for i, fact in enumerate(there[:90])}
    found = list(chosen(there, hits, {"train": 30, "dev": 5}, seed=0))
    assert Counter(hits[fact.id] for fact in found) == {0: 21, 1: 5, 2: 4}
    assert {fact.split for fact in found} == {"train"}  # nobody looked at the others
    assert found == list(chosen(there[::-1], hits, {"train": 30, "dev": 5}, seed=0))


def test_a_line_that_a_kill_cut_off_is_looked_at_again(tmp_path: Path) -> None:
    file = tmp_path / "look.jsonl"
    assert looked(file) == {}
    file.write_text(json.dumps({"id": "a", "hits": 2}) + "\n" + '{"id": "b", "hi')
    assert looked(file) == {"a": 2}
