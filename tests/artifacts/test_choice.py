"""One rule chooses levels and models: by containment, by exact match, or by both with the form of answers kept."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from sftknow.artifacts.choice import FORM_MARGIN, ChooseBy, Measured, choose, choose_level

RUN_ON = {
    "0%": Measured(acc=0.290, exact_match=0.435, ended=0.99),
    "5%": Measured(acc=0.300, exact_match=0.440, ended=0.99),
    "40%": Measured(acc=0.366, exact_match=0.143, ended=0.60),
}
"""Restoring 40 % makes a model run on: it names more and answers less."""


@pytest.mark.parametrize(("by", "level"), [("acc", "40%"), ("exact", "5%"), ("both", "5%")])
def test_a_level_that_makes_a_model_run_on_is_not_chosen(by: ChooseBy, level: str) -> None:
    assert choose_level(RUN_ON, by) == level


@pytest.mark.parametrize("measure", ["exact_match", "ended"])
def test_each_measure_of_form_may_fall_by_the_margin_and_no_further(measure: str) -> None:
    def at(drop: float) -> Measured:
        return Measured(acc=0.6, **{"exact_match": 0.5, "ended": 0.9, measure: 0.5 - drop})

    plain = Measured(acc=0.5, **{"exact_match": 0.5, "ended": 0.9, measure: 0.5})
    assert at(FORM_MARGIN).broken(plain) == ()
    assert at(FORM_MARGIN + 0.001).broken(plain) == (measure,)
    assert choose_level({"0%": plain, "20%": at(FORM_MARGIN)}) == "20%"
    assert choose_level({"0%": plain, "20%": at(FORM_MARGIN + 0.001)}) == "0%"


def test_what_was_not_measured_breaks_nothing() -> None:
    assert Measured(acc=0.4).broken(Measured(acc=0.3, exact_match=0.3, ended=1.0)) == ()
    assert choose_level({"0%": Measured(acc=0.3), "5%": Measured(acc=0.4)}) == "5%"


shares = st.sampled_from([0.1, 0.2, 0.21, 0.3])
scores = st.builds(Measured, acc=shares, exact_match=shares, ended=shares)


@given(st.lists(scores, min_size=4, max_size=4), st.permutations(("0%", "5%", "20%", "60%")))
def test_what_is_chosen_keeps_its_form_and_nothing_that_does_is_better(
    values: list[Measured], order: list[str]
) -> None:
    found = dict(zip(("0%", "5%", "20%", "60%"), values, strict=True))
    chosen = choose_level({level: found[level] for level in order})
    plain = found["0%"]
    assert not found[chosen].broken(plain)
    kept = {level: m for level, m in found.items() if not m.broken(plain)}
    best = max(m.acc for m in kept.values())
    assert chosen == next(level for level, m in kept.items() if m.acc == best), "the smallest of equals"


def test_where_all_models_break_the_form_the_most_exact_is_taken() -> None:
    base = Measured(acc=0.3, exact_match=0.4)
    models = {"a": Measured(acc=0.6, exact_match=0.1), "b": Measured(acc=0.4, exact_match=0.2)}
    assert choose(models, base) == "b"
    assert choose(models, base, "acc") == "a"
