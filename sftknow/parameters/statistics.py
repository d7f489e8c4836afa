"""Exact sums and histograms of r, counted by bit patterns, so that no result depends on blocks, shards or threads.

A non-negative float32 is an integer multiple of 2^-149. Elements are counted by the upper 16 bits of r and the lower
16 bits are added up: count and sum give the exact sum of each bin as an integer, and a concentration is one division of
exact integers, rounded once. Memory: 1 MB a histogram, whatever the number of elements.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from sftknow.parameters.selection import BINS

_INFINITE_BIN = 0x7F80
_LOWEST_DECADE, _HIGHEST_DECADE = -37, 38


@dataclass(frozen=True)
class ExactSum:
    """A sum of float32 values ≥ 0."""

    units: int = 0
    """The sum of the finite values, in units of 2^-149."""
    infinite: int = 0
    """How many values were +inf."""

    def __add__(self, other: ExactSum) -> ExactSum:
        return ExactSum(self.units + other.units, self.infinite + other.infinite)

    def __sub__(self, other: ExactSum) -> ExactSum:
        return ExactSum(self.units - other.units, self.infinite - other.infinite)


def bin_sum(upper: int, count: int, lower: int) -> ExactSum:
    """The sum of ``count`` values whose upper 16 bits are ``upper`` and whose lower halves add up to ``lower``."""
    if upper >= _INFINITE_BIN:
        return ExactSum(0, count)
    exponent, fraction = upper >> 7, upper & 0x7F
    leading = 1 << 23 if exponent else 0
    return ExactSum((count * (leading | fraction << 16) + lower) << max(exponent - 1, 0), 0)


def share_of(part: ExactSum, whole: ExactSum) -> float:
    """part ÷ whole, correctly rounded. NaN where the whole is 0 or infinite."""
    if whole.infinite or not whole.units:
        return float("nan")
    return float(Fraction(part.units, whole.units))


def histogram_sum(histogram: NDArray[np.int64], first: int = 0, last: int = BINS) -> ExactSum:
    """Exact sum of r over the bins ``first … last − 1``.

    Args:
        histogram: by upper 16 bits of r the elements and the sum of their lower halves, shape (65,536, 2).
    """
    part = np.zeros_like(histogram)
    part[first:last] = histogram[first:last]
    by_exponent = part.reshape(512, 128, 2)  # the 128 bins of one exponent share a unit
    counts, lowers = by_exponent[:, :, 0].sum(axis=1).tolist(), by_exponent[:, :, 1].sum(axis=1).tolist()
    fractions = (by_exponent[:, :, 0] @ np.arange(128)).tolist()  # below 2^63 for 2^56 elements
    units = 0
    for exponent in np.flatnonzero(by_exponent[: _INFINITE_BIN >> 7, :, 0].any(axis=1)).tolist():
        leading = counts[exponent] << 23 if exponent else 0
        units += (leading + (fractions[exponent] << 16) + lowers[exponent]) << max(exponent - 1, 0)
    return ExactSum(units, counts[_INFINITE_BIN >> 7])


class QuarterDecades:
    """How many changed elements have r in [10^(k/4), 10^((k+1)/4)), exactly.

    What lies below 1e-37, r = 0 by rounding included, is one bin from 0, and +inf is one bin by itself.

    Attributes:
        edge_in: by upper 16 bits of r the bits of the edge that cuts through them, all ones where none does.
        above_edge: elements that are not below that edge, by upper 16 bits, shape (65,536,).
    """

    def __init__(self, above_edge: NDArray[np.int64] | None = None) -> None:
        exponents = range(4 * _LOWEST_DECADE, 4 * _HIGHEST_DECADE + 3)
        self._edges = [0.0, *(10.0 ** (k / 4) for k in exponents), float("inf")]
        self._edge_bits = np.array([_bits_at_least(edge) for edge in self._edges], dtype=np.uint32)
        # A bin of upper halves is narrower than a quarter decade, so at most one edge cuts through it.
        self.edge_in = np.full(BINS, 0xFFFF_FFFF, dtype=np.uint32)
        self.edge_in[self._edge_bits >> np.uint32(16)] = self._edge_bits
        self.above_edge = np.zeros(BINS, dtype=np.int64) if above_edge is None else above_edge

    def table(self, counts: NDArray[np.int64]) -> tuple[tuple[float, int], ...]:
        """(lower edge, elements) from the first bin that is not empty to the last.

        Args:
            counts: of the same elements by upper half, shape (65,536,).
        """
        upper = (self._edge_bits >> np.uint32(16)).astype(np.intp)
        above = np.append(np.cumsum(counts[::-1])[::-1], 0)
        at_least = np.append(above[upper + 1] + self.above_edge[upper], 0)
        found = at_least[:-1] - at_least[1:]
        filled = np.flatnonzero(found)
        if not filled.size:
            return ()
        # The bins at 0 and +inf lie apart from the others, so empty bins between must not bridge to them.
        finite = filled[(filled > 0) & (filled < len(found) - 1)]
        shown = set(range(finite[0], finite[-1] + 1)) if finite.size else set()
        return tuple((self._edges[i], int(found[i])) for i in sorted(shown | set(filled.tolist())))


def _bits_at_least(value: float) -> int:
    """Bit pattern of the smallest float32 that is not below ``value``."""
    nearest = np.float32(value)
    if float(nearest) < value:
        nearest = np.nextafter(nearest, np.float32(np.inf))
    return int(nearest.view(np.uint32))
