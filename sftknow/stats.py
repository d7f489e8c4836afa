"""The statistics that the rooms share: paired tests of two models, intervals, corrections, rank correlation.

Distributions are SciPy's. Of a paired comparison only counts are needed: one bucket gives four, of which two matter:
``gained`` (questions that only the second model got right) and ``lost`` (that only the first did). The difference of
the two accuracies is (gained − lost) ÷ count. The headline is the plain mean over buckets, so the paired tests also
take one count a bucket and weigh the buckets alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt
from scipy.stats import betabinom, binom, binomtest, norm, spearmanr, t as student

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

EXACT_OUTCOMES = 2**20
"""The test of the mean over buckets is exact up to so many outcomes, asymptotic above."""
_ROUNDING = 1e-12
NORMAL_95 = float(norm.ppf(0.975))
"""Standard errors from the middle of a 95 % interval to its end."""


@overload
def bucket_of(hits: int, tries: int) -> int: ...
@overload
def bucket_of(hits: Ints, tries: Ints) -> Ints: ...
def bucket_of(hits: int | Ints, tries: int | Ints) -> int | Ints:
    """The mastery bucket of R = hits / tries: 0 for R = 0, i for R in ((i - 1)/4, i/4] (paper, 3.1), on integers.

    Args:
        hits: of one fact, or of many in an array of any shape.
        tries: of the same shape.

    Raises:
        ValueError: not 0 ≤ hits ≤ tries, or no tries at all.
    """
    if np.any((tries <= 0) | (hits < 0) | (hits > tries)):
        raise ValueError(f"{hits} hits in {tries} tries")
    return -(-4 * hits // tries)


@dataclass(frozen=True, kw_only=True)
class PairedCounts:
    """One bucket's questions, by what the two models made of them."""

    count: int
    """Questions, at least one."""
    gained: int
    """Right with the second model only."""
    lost: int
    """Right with the first model only."""

    @property
    def difference(self) -> float:
        """Accuracy of the second model less that of the first, between −1 and 1."""
        return (self.gained - self.lost) / self.count


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p-value of McNemar's test (1947): the binomial test of ``gained`` out of ``gained + lost`` at ½.

    No approximation by chi-square is ever made. 1 where no question changed.
    """
    return float(binomtest(min(gained, lost), gained + lost).pvalue) if gained or lost else 1.0


def stratified_mcnemar(buckets: Sequence[PairedCounts]) -> float:
    """Two-sided p-value of McNemar's test for the plain mean over buckets.

    Under the null hypothesis every changed question was as likely lost as gained, in every bucket. The statistic is the
    mean over buckets of (gained − lost) ÷ count; the p-value is the probability of one as far from 0. It is summed over
    all outcomes where these are at most `EXACT_OUTCOMES`, and taken from the normal distribution of the same
    variance above (then many questions changed). Where one bucket alone changed it is McNemar's
    test itself.

    Args:
        buckets: one entry a bucket.

    Raises:
        ValueError: there is no bucket.
    """
    if not buckets:
        raise ValueError("no bucket to test")
    buckets = [bucket for bucket in buckets if bucket.gained or bucket.lost]  # the others add nothing either way
    if len(buckets) <= 1:
        return mcnemar(buckets[0].gained, buckets[0].lost) if buckets else 1.0
    observed = abs(sum(bucket.difference for bucket in buckets))
    changed = [bucket.gained + bucket.lost for bucket in buckets]
    if math.prod(number + 1 for number in changed) > EXACT_OUTCOMES:
        variance = math.fsum(number / bucket.count**2 for number, bucket in zip(changed, buckets, strict=True))
        return math.erfc(observed / math.sqrt(2 * variance))
    values, weights = np.zeros(1), np.ones(1)
    for number, bucket in zip(changed, buckets, strict=True):
        outcomes = (2 * np.arange(number + 1) - number) / bucket.count
        values = np.add.outer(values, outcomes).ravel()
        weights = np.multiply.outer(weights, binom.pmf(np.arange(number + 1), number, 0.5)).ravel()
    return min(1.0, float(weights[np.abs(values) >= observed - _ROUNDING].sum()))


def bootstrap_differences(buckets: Sequence[PairedCounts], *, resamples: int, seed: int) -> Floats:
    """Differences of the two accuracies in resampled buckets: drawn with replacement within each bucket.

    Drawing ``count`` questions with replacement and counting those gained and lost is a multinomial draw, so that is
    what is drawn: the same distribution as drawing questions one by one, without the questions.

    Args:
        buckets: one entry a bucket; each has a random stream of its own, whatever the others hold.
        resamples: number of resampled data sets.
        seed: of the random streams.

    Returns:
        (buckets, resamples) float64, second model less first. Their mean over the first axis is the stratified
        bootstrap of the plain mean over buckets.
    """
    drawn = np.empty((len(buckets), resamples))
    for place, bucket in enumerate(buckets):
        same = bucket.count - bucket.gained - bucket.lost
        shares = np.array([bucket.gained, bucket.lost, same]) / bucket.count
        random = np.random.default_rng([seed, place])
        gained, lost, _ = random.multinomial(bucket.count, shares, size=resamples).T
        drawn[place] = (gained - lost) / bucket.count
    return drawn


def percentile_interval(drawn: Floats, level: float = 0.95) -> tuple[float, float]:
    """The central interval of bootstrap draws (Efron and Tibshirani, 1993, chapter 13).

    Of no width where no question changed: the bootstrap knows only what it was shown.
    """
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm, 1979), in the given order.

    A hypothesis whose adjusted value is at most α can be rejected with the probability of any false rejection at most
    α, whatever the dependence between the tests.
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * np.asarray(p_values, dtype=np.float64)[order]))
    return [float(p) for p in adjusted]


def student_p(value: float, stderr: float, freedom: float) -> float:
    """Two-sided p-value of a difference by Student's t; 1 where it is nothing or its standard error is not known."""
    if not value or not math.isfinite(stderr):
        return 1.0
    return 0.0 if stderr == 0 else float(2 * student.sf(abs(value) / stderr, max(1.0, freedom)))


def student_reach(probability: float, freedom: float) -> float:
    """Standard errors from the middle of a central interval of that probability to its end, by Student's t."""
    return float(student.ppf((1 + probability) / 2, max(1.0, freedom)))


def wilson(hits: float, tries: int, z: float = NORMAL_95) -> tuple[float, float]:
    """Wilson's score interval of a rate (Wilson 1927), 95 % unless told.

    Returns:
        (low, high), within [0, 1]; exactly 0 at no hits and exactly 1 at hits throughout.

    Raises:
        ValueError: not 0 ≤ hits ≤ tries, or no tries at all.
    """
    if tries <= 0 or not 0 <= hits <= tries:
        raise ValueError(f"{hits} hits in {tries} tries")
    rate = hits / tries
    centre = rate + z * z / (2 * tries)
    reach = z * math.sqrt(rate * (1 - rate) / tries + z * z / (4 * tries * tries))
    scale = 1 + z * z / tries
    return (
        0.0 if hits == 0 else max(0.0, (centre - reach) / scale),
        1.0 if hits == tries else min(1.0, (centre + reach) / scale),
    )


def beta_binomial(count: int, a: float, b: float) -> Floats:
    """Probabilities of 0 … ``count`` hits in so many tries of a rate that is Beta(a, b), shape [count + 1]."""
    chances: Floats = betabinom.pmf(np.arange(count + 1), count, a, b)
    return chances


@dataclass(frozen=True, kw_only=True)
class RankCorrelation:
    """Spearman's coefficient with an approximate 95 % interval (None below five points)."""

    rho: float
    low: float | None
    high: float | None
    count: int


def spearman(x: Sequence[float] | Floats, y: Sequence[float] | Floats) -> RankCorrelation | None:
    """Spearman's rank correlation; None with under three points or where one side never varies.

    The interval is Fisher's z with the variance 1.06 / (n − 3) (Fieller, Hartley and Pearson, 1957) and Student's t
    with n − 2 degrees of freedom. It takes the points as independent.
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.size < 3 or np.all(a == a[0]) or np.all(b == b[0]):
        return None
    rho = float(np.clip(spearmanr(a, b).statistic, -1.0, 1.0))
    low = high = None
    if a.size >= 5 and abs(rho) <= 1 - 1e-12:
        half = student_reach(0.95, a.size - 2) * math.sqrt(1.06 / (a.size - 3))
        low, high = math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half)
    return RankCorrelation(rho=rho, low=low, high=high, count=int(a.size))
