"""Levels: exact shares, names fit for paths, the rule that chooses one."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, strategies as st

from sftknow.artifacts.levels import (
    best_level,
    by_share,
    level_name,
    level_of_folder,
    level_share,
    parse_level,
    parse_levels,
)
from sftknow.errors import CheckpointError


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("20%", Fraction(1, 5)),
        ("0.5%", Fraction(1, 200)),
        (" 12.5 % ", Fraction(1, 8)),
        ("1/8", Fraction(1, 8)),
        ("1/3%", Fraction(1, 300)),
        ("0.29", Fraction(29, 100)),
        ("0%", Fraction(0)),
        ("100%", Fraction(1)),
        ("1/1", Fraction(1)),
    ],
)
def test_levels_are_exact(text: str, share: Fraction) -> None:
    assert parse_level(text) == share


@pytest.mark.parametrize(
    "text", ["20", "1", "0", "", "%", "-1%", "101%", "2/1", "1/0", "nan", "1e-2", "5 percent", "½"]
)
def test_levels_that_are_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match="level"):
        parse_level(text)


def test_lists_of_levels() -> None:
    assert parse_levels(["5%", "1/20"]) == [("5%", Fraction(1, 20)), ("1/20", Fraction(1, 20))]
    with pytest.raises(CheckpointError, match="5% was asked for twice"):
        parse_levels(["5%", "1%", "5%"])
    with pytest.raises(CheckpointError, match="at least one"):
        parse_levels([])


def test_level_names_are_fit_for_paths() -> None:
    assert [level_name(level) for level in ("5%", "0.5%", "1/8")] == ["5pct", "0.5pct", "1of8"]


@pytest.mark.parametrize(
    ("folder", "level", "share"),
    [
        ("5pct", "5%", Fraction(1, 20)),
        ("0.5pct", "0.5%", Fraction(1, 200)),
        ("1of8", "1/8", Fraction(1, 8)),
        ("0pct", "0%", Fraction(0)),
        ("odd", "odd", Fraction(2)),
    ],
)
def test_levels(folder: str, level: str, share: Fraction) -> None:
    assert level_of_folder(folder) == level
    assert level_share(level) == share


def test_levels_are_sorted_by_share() -> None:
    assert by_share(["60%", "1/8", "odd", "0%", "0.2"]) == ["0%", "1/8", "0.2", "60%", "odd"]


def test_of_equal_levels_the_smallest_is_chosen_however_they_are_listed() -> None:
    assert best_level({"60%": 0.5, "20%": 0.5, "5%": 0.4}) == "20%"
    assert best_level({"20%": 0.5, "60%": 0.5, "0%": 0.5}) == "0%"
    assert best_level({"20%": 0.5, "60%": 0.6}) == "60%"


LEVELS = ("0%", "1%", "1/8", "20%", "60%")


@given(
    st.permutations(LEVELS),
    st.lists(st.sampled_from([0.1, 0.2, 0.3]), min_size=5, max_size=5),
)
def test_the_order_of_levels_has_no_bearing_on_the_choice(order: list[str], values: list[float]) -> None:
    accuracy = dict(zip(LEVELS, values, strict=True))
    chosen = best_level({level: accuracy[level] for level in order})
    equals = [level for level in accuracy if accuracy[level] == max(values)]
    assert chosen == min(equals, key=level_share)
