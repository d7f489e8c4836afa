from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from sftknow.errors import CheckpointError
from sftknow.parameters.selection import (
    cut_bin,
    parse_level,
    parse_levels,
    random_keys,
    selected_elements,
)
from tests.parameters.checkpoint_pairs import split_mix


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


def test_floor() -> None:
    assert selected_elements(1000, parse_level("29%")) == 290
    assert selected_elements(1000, parse_level("57.3%")) == 573
    assert selected_elements(7, parse_level("1/8")) == 0
    assert selected_elements(10**30, parse_level("1/3")) == (10**30 - 1) // 3


def test_random_keys_are_split_mix() -> None:
    for seed in (0, 1, -1, 2**64 + 5):
        assert random_keys(seed, 10**12, 20).tolist() == [split_mix(seed, 10**12 + i) for i in range(20)]


def test_cut_bin() -> None:
    counts = np.array([3, 0, 2, 5])
    assert [cut_bin(counts, k) for k in (1, 5, 6, 7, 8, 10)] == [(3, 1), (3, 5), (2, 1), (2, 2), (0, 1), (0, 3)]
