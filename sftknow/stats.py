"""Two models on the same questions: tests and intervals of a paired difference. Pure functions on counts.

One bucket gives four counts, of which two matter: ``gained`` (questions that only the second model got right) and
``lost`` (that only the first did). The difference of the two accuracies is (gained − lost) ÷ count. The headline is
the plain mean over buckets, so everything here also takes one count a bucket and weighs the buckets alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

EXACT_OUTCOMES = 2**20
"""The test of the mean over buckets is exact up to so many outcomes, asymptotic above."""
_ROUNDING = 1e-12


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

    Computed on integers, so exact for large counts too; no approximation by chi-square is ever made. 1 where no
    question changed.
    """
    changed = gained + lost
    tail, term = 0, 1
    for successes in range(min(gained, lost) + 1):
        tail += term
        term = term * (changed - successes) // (successes + 1)
    return min(1.0, float(Fraction(2 * tail, 2**changed)))


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
        weights = np.multiply.outer(weights, _binomial(number)).ravel()
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


def _binomial(number: int) -> Floats:
    """(number + 1,) probabilities of 0 … number heads in as many tosses."""
    heads = np.arange(1, number + 1)
    ways = np.concatenate([[0.0], np.cumsum(np.log((number - heads + 1) / heads))])
    probabilities: Floats = np.exp(ways - number * math.log(2))
    return probabilities
