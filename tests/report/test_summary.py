"""Words follow the numbers, and hedge where the numbers do."""

from __future__ import annotations

import copy
from typing import Any

from sftknow.report.summary import plain_words
from sftknow.report.words import CHANCE, FEW, SPREAD, Difference, together


def joined(results: Any) -> str:
    return " ".join(plain_words(results))


def test_the_made_up_truth_is_found(results: Any, rich_results: Any) -> None:
    said = joined(results)
    assert "of bucket 2 did best" in said
    assert "more training data did harm with bucket 0" in joined(rich_results)
    assert "whether more training data helps or harms: too few seeds to be sure with bucket 0" in said, (
        "two draws are few"
    )
    assert "Restoring 20% of the model trained on 240 facts of bucket 0 (seed 0) (chosen on dev) helps" in said
    assert results["plain_words"] == plain_words(results) == plain_words(results["findings"])


def test_words_carry_the_numbers_of_the_findings(results: Any) -> None:
    test = results["findings"]["restoration"]["test"]
    assert f"{100 * test['before']:.1f} % → {100 * test['after']:.1f} %" in joined(results)
    best = results["findings"]["best_training"]
    assert f"{100 * best['test']:.1f} % in-domain" in joined(results)


def test_what_is_not_sure_is_hedged(results: Any) -> None:
    changed = copy.deepcopy(results["findings"])
    changed["restoration"]["test"] |= {"sure": False, "doubt": CHANCE}
    changed["best_training"]["test_over_base"] |= {"sure": False, "doubt": CHANCE}
    said = joined(changed)
    assert "makes no difference that this run could tell" in said
    assert "may be chance" in said
    changed["best_training"]["test_over_base"]["doubt"] = FEW
    assert "over the base (too few seeds to say)" in joined(changed)
    assert "helps on the in-domain test" not in said


def test_harm_is_called_harm(results: Any) -> None:
    changed = copy.deepcopy(results["findings"])
    changed["restoration"]["test"] |= {"value": -0.1, "stderr": 0.01, "sure": True}
    assert "harms on the in-domain test" in joined(changed)


def test_nothing_restored_on_dev(results: Any) -> None:
    changed = copy.deepcopy(results["findings"])
    changed["restoration"]["level"] = "0%"
    assert "no restoration of the model trained on 240 facts of bucket 0 (seed 0) beat leaving it" in joined(changed)


def test_correlation_in_three_cases() -> None:
    part = {"least": {"title": "a", "nats": 0.1}, "most": {"title": "b", "nats": 0.2}, "bucket": 4}
    part |= {"reading": "The base is shown this.", "beside": " Shown that: −0.10."}
    for low, high, word in ((-0.9, -0.2, "fewer"), (0.2, 0.9, "more"), (-0.5, 0.4, "cannot be told")):
        correlation = {"rho": (low + high) / 2, "low": low, "high": high, "count": 9, "few_seeds": False}
        said = joined({"divergence": {**part, "rank_correlation": correlation}})
        assert word in said
        assert "b (0.20 nats). The base is shown this." in said
        assert said.endswith("Shown that: −0.10.")
        correlation["few_seeds"] = True
        assert "too few seeds" in joined({"divergence": {**part, "rank_correlation": correlation}})


def test_an_empty_run_says_so() -> None:
    assert plain_words({"findings": {}}) == plain_words({})
    assert "nothing to say" in plain_words({})[0]


def test_why_a_difference_is_not_sure() -> None:
    """Seven errors of two seeds are no chance that more questions could rule out, and no two seeds can rule it in."""
    large = Difference(value=0.169, stderr=0.024, freedom=2, draws=2)
    assert large.among(28).doubt == SPREAD
    assert large.among(28).part()["doubt"] == SPREAD
    assert Difference(value=0.169, stderr=0.024, freedom=40, draws=20).among(28).doubt == ""
    assert Difference(value=0.03, stderr=0.024, freedom=2, draws=2).among(28).doubt == CHANCE
    assert Difference(value=0.169, stderr=0.024, draws=1).doubt == FEW
    few_questions = Difference(value=0.016, stderr=0.007, freedom=7)
    assert few_questions.p > 0.05
    assert few_questions.doubt == CHANCE
    assert [d.doubt for d in together([large, Difference(value=0.5, stderr=0.01, freedom=30, draws=9)])] == ["", ""]
