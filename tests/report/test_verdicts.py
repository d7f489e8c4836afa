"""The rules behind “holds”, “does not hold” and “cannot be told”, and their intervals."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies as st
from scipy.stats import t as student

from sftknow.report.paper import table
from sftknow.report.verdicts import (
    Effect,
    matters,
    mean_effect,
    more_affected,
    peak,
    related,
    together,
    unnecessary,
    valley,
)


@given(freedom=st.floats(1, 1e5), tests=st.integers(1, 20))
def test_intervals_are_students(freedom: float, tests: int) -> None:
    effects = together([Effect(name="a", value=0.0, stderr=1.0, freedom=freedom)] * tests)
    assert effects[0].high == pytest.approx(student.ppf(1 - 0.025 / tests, freedom))


def test_intervals_hold_together() -> None:
    effects = together([Effect(name=str(i), value=1.0, stderr=0.5, freedom=math.inf) for i in range(5)])
    half = student.ppf(1 - 0.05 / 10, 1e9) * 0.5
    for e in effects:
        assert (e.low, e.high) == (pytest.approx(1 - half, rel=1e-4), pytest.approx(1 + half, rel=1e-4))
    assert together([Effect(name="a", value=1.0, stderr=math.nan)])[0].above is False, "no error, no certainty"


def test_an_interval_reaches_over_what_leaving_out_a_draw_gives() -> None:
    (found,) = together([Effect(name="a", value=1.0, stderr=0.1, without=(-0.2, 1.1))])
    assert (found.low, found.above) == (-0.2, False), "one draw turns its sign"


def effect(low: float, high: float, bucket: int | None = None, seeds: int = 3) -> Effect:
    return Effect(name="a", bucket=bucket, value=(low + high) / 2, stderr=0.01, seeds=seeds, low=low, high=high)


SURE, SURELY_NOT, WIDE, NONE = effect(0.02, 0.05), effect(-0.05, -0.02), effect(-0.05, 0.05), effect(-0.004, 0.004)


def test_phenomenon_1_holds_in_the_papers_own_table() -> None:
    """Table 4a's models, with the spread of Table 2 over five runs; without the mean one bucket decides for all."""
    four = table(4)["test"]
    spread = {bucket: found["test"][5][1] / 100 for bucket, found in table(2)["LLaMA-3-8B"].items()}
    differences = [
        Effect(
            name=f"bucket {bucket}",
            value=(four["1920"][bucket]["0%"] - four["240"][bucket]["0%"]) / 100,
            stderr=spread[bucket] * math.sqrt(2 / 5),
            freedom=8,
            seeds=5,
        )
        for bucket in spread
    ]
    *sure, overall = together([*differences, mean_effect("all", differences)])
    assert overall.value == pytest.approx(-0.03318)
    verdict = peak(sure, overall)
    assert verdict.word == "holds"
    assert verdict.why.endswith("none is surely better; ahead, but not surely: bucket 4.")
    assert peak(together(differences)).word == "cannot be told"
    assert peak([*sure[:4], effect(0.001, 0.02)], overall).word == "does not hold", "surely better with one of them"


def test_a_mean_is_as_sure_as_its_parts_at_worst() -> None:
    parts = [Effect(name="a", value=0.01 * i, stderr=0.02, freedom=5 + i, seeds=4, without=(-1, 2)) for i in range(3)]
    mean = mean_effect("all", parts)
    assert (mean.value, mean.stderr, mean.freedom, mean.seeds) == (pytest.approx(0.01), pytest.approx(0.02), 5, 4)
    assert mean.without == (-1, 2)


@pytest.mark.parametrize(
    ("effects", "word"),
    [
        ([SURELY_NOT, NONE], "holds"),
        ([SURELY_NOT, SURE], "does not hold"),
        ([NONE, NONE], "does not hold"),
        ([SURELY_NOT, WIDE], "cannot be told"),
        ([WIDE], "cannot be told"),
        ([], "cannot be told"),
        ([effect(-0.05, -0.02, seeds=1)], "cannot be told"),
    ],
)
def test_peak(effects: list[Effect], word: str) -> None:
    verdict = peak(effects)
    assert verdict.word == word
    assert verdict.why.endswith(".")


@pytest.mark.parametrize(
    ("effects", "word"),
    [
        ([effect(-0.1, -0.05, 2), WIDE], "holds"),
        ([effect(-0.1, 0.05, 2), SURELY_NOT], "cannot be told"),
        ([effect(-0.1, -0.05, 2), SURE], "does not hold"),
        ([NONE, NONE], "does not hold"),
        ([], "cannot be told"),
        ([effect(-0.1, -0.05, 2, seeds=1)], "cannot be told"),
    ],
)
def test_matters(effects: list[Effect], word: str) -> None:
    assert matters(effects, 1920).word == word
    assert matters(effects, 120).word == "cannot be told", "too little data for a claim about much"


@pytest.mark.parametrize(
    ("legs", "word"),
    [
        ({"b0": (SURELY_NOT, SURE), "b1": (SURELY_NOT, SURE)}, "holds"),
        ({"b0": (SURELY_NOT, SURE), "b1": (WIDE, SURE)}, "cannot be told"),
        ({"b0": (SURE, SURE)}, "does not hold"),
        ({"b0": (SURELY_NOT, SURELY_NOT)}, "does not hold"),
        ({"b0": (NONE, NONE)}, "does not hold"),
        ({}, "cannot be told"),
    ],
)
def test_valley(legs: dict[str, tuple[Effect, Effect]], word: str) -> None:
    assert valley(legs).word == word


@pytest.mark.parametrize(
    ("numbers", "word"),
    [
        ((-0.8, -0.95, -0.3, 20, 2), "holds"),
        ((0.8, 0.3, 0.95, 20, 2), "does not hold"),
        ((-0.3, -0.6, 0.1, 20, 2), "cannot be told"),
        ((-0.99, -1.0, -0.9, 7, 2), "cannot be told"),
        ((-1.0, None, None, 20, 2), "cannot be told"),
        ((-0.8, -0.95, -0.3, 20, 1), "cannot be told"),
    ],
)
def test_related(numbers: tuple[float, float | None, float | None, int, int], word: str) -> None:
    assert related(*numbers).word == word


@pytest.mark.parametrize(
    ("effects", "mean", "word"),
    [
        ([WIDE, WIDE], SURE, "holds"),
        ([SURE, WIDE], WIDE, "cannot be told"),
        ([SURE, SURE, SURELY_NOT], SURE, "does not hold"),
        ([SURE, SURE, effect(-0.05, -0.02, seeds=1)], SURE, "holds"),
        ([NONE, NONE], NONE, "does not hold"),
        ([SURE], effect(0.02, 0.05, seeds=1), "cannot be told"),
        ([], None, "cannot be told"),
    ],
)
def test_unnecessary(effects: list[Effect], mean: Effect | None, word: str) -> None:
    assert unnecessary(effects, mean).word == word


@pytest.mark.parametrize(
    ("by_size", "by_bucket", "word"),
    [
        ([SURE], [SURE], "holds"),
        ([SURE], [], "cannot be told"),
        ([], [SURE], "cannot be told"),
        ([SURE], [WIDE], "cannot be told"),
        ([SURE], [SURELY_NOT], "does not hold"),
        ([], [], "cannot be told"),
        ([effect(0.02, 0.05, seeds=1)], [SURE], "cannot be told"),
    ],
)
def test_more_affected(by_size: list[Effect], by_bucket: list[Effect], word: str) -> None:
    assert more_affected(by_size, by_bucket).word == word
