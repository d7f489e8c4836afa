from __future__ import annotations

from fractions import Fraction

import numpy as np

from sftknow.parameters.selection import BINS
from sftknow.parameters.statistics import ExactSum, QuarterDecades, histogram_sum, share_of


def spread(count: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    values = (10.0 ** rng.uniform(-44, 38, count)).astype(np.float32)
    return np.concatenate([values, np.float32([0, 1e-45, 3.4e38, 1, 0.1, 10**-0.5])])


def counted(values: np.ndarray) -> np.ndarray:
    """By upper half of the bits: elements, sum of lower halves."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.int64)
    histogram = np.zeros((BINS, 2), dtype=np.int64)
    np.add.at(histogram, bits >> 16, np.stack([np.ones_like(bits), bits & 0xFFFF], axis=1))
    return histogram


def decades_of(values: np.ndarray) -> tuple[tuple[float, int], ...]:
    bits = values.astype(np.float32).view(np.uint32)
    decades = QuarterDecades()
    np.add.at(decades.above_edge, bits >> np.uint32(16), (bits >= decades.edge_in[bits >> np.uint32(16)]).astype(int))
    return decades.table(counted(values)[:, 0])


def test_sums_are_exact() -> None:
    values = spread(20_000)
    histogram = counted(values)
    exact = sum((Fraction(float(value)) for value in values), Fraction())
    assert Fraction(histogram_sum(histogram).units, 2**149) == exact
    assert histogram_sum(histogram, 0, 16_001) + histogram_sum(histogram, 16_001) == histogram_sum(histogram)
    large = histogram * 10**6  # seventy billion parameters and more overflow nothing
    assert Fraction(histogram_sum(large).units, 2**149) == exact * 10**6


def test_infinities_are_counted_apart() -> None:
    found = histogram_sum(counted(np.float32([np.inf, 1, np.inf])))
    assert found == ExactSum(2**149, 2)
    assert np.isnan(share_of(ExactSum(1), found))
    assert np.isnan(share_of(ExactSum(), ExactSum()))
    assert share_of(ExactSum(1), ExactSum(3)) == 1 / 3


def test_quarter_decades() -> None:
    edges = np.array([10.0 ** (k / 4) for k in range(-148, 155)])
    around = [np.nextafter(np.float32(edge), np.float32(side)) for edge in edges for side in (0, np.inf)]
    values = np.concatenate([spread(20_000), edges.astype(np.float32), np.float32(around), np.float32([np.inf])])
    bins = np.append(np.append(0.0, edges), [np.inf])
    expected = np.searchsorted(bins, values.astype(np.float64), side="right") - 1
    assert dict(decades_of(values)) == {float(bins[i]): int((expected == i).sum()) for i in range(len(bins))}


def test_quarter_decades_of_nothing_and_of_the_ends() -> None:
    assert decades_of(np.float32([])) == ()
    assert [count for _, count in decades_of(np.float32([0, 0, np.inf, 1, 5]))] == [2, 1, 0, 1, 1]
