from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from sftknow.parameters.statistics import ExactSum, QuarterDecades, RHistogram, share_of


def spread(count: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    values = (10.0 ** rng.uniform(-44, 38, count)).astype(np.float32)
    return np.concatenate([values, np.float32([0, 1e-45, 3.4e38, 1, 0.1, 10**-0.5])])


@pytest.mark.parametrize("count", [50, 20_000])  # few and many take different ways
def test_sums_are_exact(count: int) -> None:
    values = spread(count)
    histogram = RHistogram()
    for part in np.array_split(values.view(np.uint32), 3):
        histogram.add(part)
    exact = sum((Fraction(float(value)) for value in values), Fraction())
    assert Fraction(histogram.sum().units, 2**149) == exact
    assert histogram.sum(0, 16_000) + histogram.sum(16_000) == histogram.sum()


def test_infinities_are_counted_apart() -> None:
    histogram = RHistogram()
    histogram.add(np.float32([np.inf, 1, np.inf]).view(np.uint32))
    assert histogram.sum() == ExactSum(2**149, 2)
    assert np.isnan(share_of(ExactSum(1), histogram.sum()))
    assert np.isnan(share_of(ExactSum(), ExactSum()))
    assert share_of(ExactSum(1), ExactSum(3)) == 1 / 3


@pytest.mark.parametrize("count", [50, 20_000])
def test_quarter_decades(count: int) -> None:
    edges = np.array([10.0 ** (k / 4) for k in range(-148, 155)])
    around = [np.nextafter(np.float32(edge), np.float32(side)) for edge in edges for side in (0, np.inf)]
    values = np.concatenate([spread(count), edges.astype(np.float32), np.float32(around), np.float32([np.inf])])
    histogram, decades = RHistogram(), QuarterDecades()
    for part in np.array_split(values.view(np.uint32), 4):
        histogram.add(part)
        decades.add(part)
    table = decades.table(histogram.counts)
    bins = np.append(np.append(0.0, edges), [np.inf])
    expected = np.searchsorted(bins, values.astype(np.float64), side="right") - 1
    assert dict(table) == {float(bins[i]): int((expected == i).sum()) for i in range(len(bins))}


def test_quarter_decades_of_nothing_and_of_the_ends() -> None:
    histogram, decades = RHistogram(), QuarterDecades()
    assert decades.table(histogram.counts) == ()
    bits = np.float32([0, 0, np.inf, 1, 5]).view(np.uint32)
    histogram.add(bits)
    decades.add(bits)
    assert [count for _, count in decades.table(histogram.counts)] == [2, 1, 0, 1, 1]
