from __future__ import annotations

import numpy as np

from sftknow.artifacts.levels import parse_level
from sftknow.parameters.selection import cut_bin, random_keys, selected_elements
from tests.parameters.checkpoint_pairs import split_mix


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
