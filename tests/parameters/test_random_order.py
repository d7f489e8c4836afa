from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from sftknow.parameters import random_order
from sftknow.parameters.random_order import random_cuts
from sftknow.parameters.selection import random_keys


@pytest.mark.parametrize("part", [700, 1 << 24])
def test_cuts_are_those_of_a_sort(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_order, "_PART", part)
    levels = [("25%", Fraction(1, 4)), ("0%", Fraction(0)), ("1/3", Fraction(1, 3)), ("100%", Fraction(1))]
    for seed in (0, -5, 2**70):
        keys = random_keys(seed, 0, 5_000)
        order = np.lexsort((np.arange(keys.size), -keys.astype(np.int64)))
        for (level, share), cut in zip(levels, random_cuts(keys.size, levels, seed), strict=True):
            chosen = order[: int(keys.size * share)]
            assert (cut.level, cut.selected) == (level, chosen.size)
            if chosen.size:
                last = chosen[-1]
                assert cut.threshold_bits == keys[last]
                assert cut.ties == (keys[chosen] == keys[last]).sum()
                assert cut.tie_end == last + 1


def test_places_of_keys() -> None:
    """More finds than there is room for are counted, so that the caller can make room."""
    keys = random_keys(1, 0, 3_000)
    wanted = np.unique(keys)[:7]
    from sftknow.parameters.random_kernels import find_random
    from sftknow.parameters.selection import mixed_seed

    found = np.empty((2, 2), dtype=np.int64)
    assert find_random(mixed_seed(1), 0, 3_000, wanted, found) == 7
    found = np.empty((7, 2), dtype=np.int64)
    find_random(mixed_seed(1), 0, 3_000, wanted, found)
    assert (keys[found[:, 0]] == wanted[found[:, 1]]).all()
    assert (np.diff(found[:, 0]) > 0).all()


def test_selection_is_uniform_and_differs_by_seed() -> None:
    masks = []
    for seed in range(2):
        (cut,) = random_cuts(40_000, [("25%", Fraction(1, 4))], seed)
        masks.append(random_keys(seed, 0, 40_000) >= cut.threshold_bits)
        assert masks[-1].sum() == cut.selected == 10_000
        assert all(2350 < part.sum() < 2650 for part in np.split(masks[-1], 4))
    assert 2350 < (masks[0] & masks[1]).sum() < 2650  # independent: a sixteenth of all
