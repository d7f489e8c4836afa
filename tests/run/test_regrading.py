"""What of a gain is format: facts graded again beside the base's own grading."""

from __future__ import annotations

import numpy as np
import pytest

from sftknow.grading.mastery import grade
from sftknow.records import Fact, GradedFact, SampleTally
from sftknow.run.regrading import summary


def graded(hits: np.ndarray) -> list[GradedFact]:
    """Facts with the hits of 4 tries in each of their statements."""
    rows = []
    for place, row in enumerate(hits):
        name = f"P36/test/{place}"
        fact = Fact(id=name, topic="P36", subject=f"s{place}", object="o", question="q?", split="test")
        tallies = [SampleTally(fact_id=name, template=t, tries=4, hits=int(h)) for t, h in enumerate(row)]
        rows.append(GradedFact(fact=fact, mastery=grade(name, tallies)))
    return rows


def test_the_same_grading_keeps_everything() -> None:
    rows = graded(np.random.default_rng(0).binomial(4, np.linspace(0, 1, 60)[:, None], (60, 6)))
    found = summary("same", rows, rows)
    assert found["kept"] == 1
    assert found["before"] == found["after"] == pytest.approx(np.mean([row.mastery.rate for row in rows]))
    flow = np.array(found["flow"])
    assert flow.sum() == found["facts"] == 60
    assert (flow == np.diag(np.diag(flow))).all()


def test_what_is_lost_is_seen_whatever_the_statements_are() -> None:
    draw = np.random.default_rng(1)
    before = draw.binomial(4, 0.8, (80, 6))
    after = np.where(np.arange(80)[:, None] < 40, 0, before)
    found = summary("half", graded(before), graded(after))
    assert found["kept"] == pytest.approx(0.5, abs=0.1)
    assert found["low"] < found["kept"] < found["high"]
    assert sum(row[0] for row in found["flow"]) == 40, "known before, never completed after"
    assert all(a < b for _, _, b, a in found["by_level"])
