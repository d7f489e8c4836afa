"""McNemar's test and the bootstrap against SciPy, brute force and the formulas of the textbooks."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import binomtest, norm

from sftknow import stats as paired
from sftknow.stats import (
    PairedCounts,
    bootstrap_differences,
    holm,
    mcnemar,
    percentile_interval,
    stratified_mcnemar,
)


@st.composite
def counts(draw: st.DrawFn, largest: int = 6) -> PairedCounts:
    gained, lost, same = (draw(st.integers(0, largest)) for _ in range(3))
    return PairedCounts(count=max(1, gained + lost + same), gained=gained, lost=lost)


@settings(deadline=None)
@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_binomial_test(gained: int, lost: int) -> None:
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(gained, lost) == mcnemar(lost, gained)


def test_mcnemar_by_hand() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(1, 0) == 1.0
    assert mcnemar(7, 7) == 1.0
    assert mcnemar(5, 0) == 2 / 32
    assert mcnemar(8, 2) == 2 * (1 + 10 + 45) / 1024
    # Far out, where a probability summed in floats would have lost all its digits.
    assert mcnemar(1000, 0) == float(Fraction(2, 2**1000))
    assert mcnemar(6000, 5613) == pytest.approx(binomtest(6000, 11613).pvalue, rel=1e-9)


def by_enumeration(buckets: list[PairedCounts]) -> float:
    """Every changed question tossed as a coin of its own, in fractions."""
    observed = abs(sum(Fraction(b.gained - b.lost, b.count) for b in buckets))
    weights = [Fraction(1, b.count) for b in buckets for _ in range(b.gained + b.lost)]
    as_far = sum(
        abs(sum(sign * weight for sign, weight in zip(signs, weights, strict=True))) >= observed
        for signs in itertools.product((-1, 1), repeat=len(weights))
    )
    return as_far / 2 ** len(weights)


@settings(deadline=None, max_examples=60)
@given(st.lists(counts(2), min_size=1, max_size=4).filter(lambda bs: sum(b.gained + b.lost for b in bs) <= 12))
def test_stratified_test_against_every_outcome(buckets: list[PairedCounts]) -> None:
    assert stratified_mcnemar(buckets) == pytest.approx(by_enumeration(buckets), rel=1e-9)


@settings(deadline=None)
@given(counts(40))
def test_one_bucket_is_mcnemar(bucket: PairedCounts) -> None:
    assert stratified_mcnemar([bucket]) == mcnemar(bucket.gained, bucket.lost)
    untouched = PairedCounts(count=17, gained=0, lost=0)
    assert stratified_mcnemar([untouched, bucket, untouched]) == mcnemar(bucket.gained, bucket.lost)


def test_equal_buckets_are_one_bucket() -> None:
    """With buckets of one size the weights are equal, so pooling the changed questions is the same test."""
    buckets = [PairedCounts(count=50, gained=g, lost=loss) for g, loss in ((9, 4), (3, 3), (12, 5))]
    assert stratified_mcnemar(buckets) == pytest.approx(mcnemar(24, 12), rel=1e-9)


def test_asymptotic_side_meets_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    buckets = [
        PairedCounts(count=c, gained=g, lost=loss) for c, g, loss in ((700, 60, 41), (900, 45, 40), (300, 30, 33))
    ]
    exact = stratified_mcnemar(buckets)
    monkeypatch.setattr(paired, "EXACT_OUTCOMES", 1)
    asymptotic = stratified_mcnemar(buckets)
    assert asymptotic != exact
    assert asymptotic == pytest.approx(exact, abs=0.01)
    # McNemar's chi-square, where there is one bucket's worth of change.
    z = sum(b.difference for b in buckets) / math.sqrt(sum((b.gained + b.lost) / b.count**2 for b in buckets))
    assert asymptotic == pytest.approx(2 * norm.sf(abs(z)), rel=1e-9)


def test_no_change_no_evidence() -> None:
    assert stratified_mcnemar([PairedCounts(count=9, gained=0, lost=0)] * 5) == 1.0
    assert stratified_mcnemar([PairedCounts(count=9, gained=2, lost=2)] * 5) == 1.0
    with pytest.raises(ValueError, match="no bucket"):
        stratified_mcnemar([])


@pytest.mark.parametrize(("count", "gained", "lost"), [(200, 40, 13), (60, 1, 0), (31, 15, 16)])
def test_bootstrap_has_the_plug_in_mean_and_variance(count: int, gained: int, lost: int) -> None:
    bucket = PairedCounts(count=count, gained=gained, lost=lost)
    drawn = bootstrap_differences([bucket], resamples=40_000, seed=1)[0]
    mean = (gained - lost) / count
    variance = ((gained + lost) / count - mean**2) / count
    assert drawn.mean() == pytest.approx(mean, abs=5 * math.sqrt(variance / 40_000))
    # The relative spread of a variance from n near-normal draws is sqrt(2 / n); skewed ones take some more.
    assert drawn.var() == pytest.approx(variance, rel=0.06)


def test_bootstrap_is_drawing_questions_one_by_one() -> None:
    """The whole distribution, against indices drawn with replacement."""
    bucket = PairedCounts(count=12, gained=4, lost=2)
    ours = bootstrap_differences([bucket], resamples=60_000, seed=3)[0]
    values = np.array([1] * 4 + [-1] * 2 + [0] * 6)
    random = np.random.default_rng(4)
    brute = values[random.integers(0, 12, size=(60_000, 12))].mean(axis=1)
    for value in np.arange(-12, 13) / 12:
        one, two = (np.isclose(sample, value).mean() for sample in (ours, brute))
        assert one == pytest.approx(two, abs=4.5 * math.sqrt(2 * max(one, two, 1e-4) / 60_000))


def test_stratified_bootstrap_of_the_mean() -> None:
    buckets = [PairedCounts(count=c, gained=g, lost=loss) for c, g, loss in ((40, 9, 3), (90, 5, 20), (25, 12, 0))]
    drawn = bootstrap_differences(buckets, resamples=40_000, seed=0).mean(axis=0)
    variances = [((b.gained + b.lost) / b.count - b.difference**2) / b.count for b in buckets]
    assert drawn.mean() == pytest.approx(sum(b.difference for b in buckets) / 3, abs=0.002)
    assert drawn.std() == pytest.approx(math.sqrt(sum(variances)) / 3, rel=0.03)
    low, high = percentile_interval(drawn)
    assert low == pytest.approx(drawn.mean() + norm.ppf(0.025) * drawn.std(), abs=0.004)
    assert high == pytest.approx(drawn.mean() + norm.ppf(0.975) * drawn.std(), abs=0.004)


def test_bootstrap_is_seeded_and_buckets_are_independent() -> None:
    one, two = PairedCounts(count=30, gained=7, lost=3), PairedCounts(count=44, gained=1, lost=9)
    first = bootstrap_differences([one, two], resamples=500, seed=5)
    assert np.array_equal(first, bootstrap_differences([one, two], resamples=500, seed=5))
    assert not np.array_equal(first, bootstrap_differences([one, two], resamples=500, seed=6))
    assert np.array_equal(first[0], bootstrap_differences([one, one], resamples=500, seed=5)[0])
    assert abs(np.corrcoef(first)[0, 1]) < 0.2


def test_nothing_changed_has_no_width() -> None:
    drawn = bootstrap_differences([PairedCounts(count=30, gained=0, lost=0)], resamples=100, seed=0)
    assert percentile_interval(drawn[0]) == (0.0, 0.0)
    everything = bootstrap_differences([PairedCounts(count=30, gained=30, lost=0)], resamples=100, seed=0)
    assert percentile_interval(everything[0]) == (1.0, 1.0)


@pytest.mark.slow
def test_interval_covers_what_it_claims() -> None:
    """95 % intervals of the mean over buckets hold the true difference in about 95 % of 2,000 drawn data sets."""
    random = np.random.default_rng(0)
    truth = [(120, 0.20, 0.10), (80, 0.15, 0.15), (300, 0.05, 0.12)]
    held = 0
    for trial in range(2000):
        buckets = []
        for count, gain, loss in truth:
            gained, lost, _ = random.multinomial(count, [gain, loss, 1 - gain - loss])
            buckets.append(PairedCounts(count=count, gained=int(gained), lost=int(lost)))
        drawn = bootstrap_differences(buckets, resamples=1000, seed=trial).mean(axis=0)
        low, high = percentile_interval(drawn)
        held += low <= sum(gain - loss for _, gain, loss in truth) / 3 <= high
    assert held / 2000 == pytest.approx(0.95, abs=0.02)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), max_size=7))
def test_holm_is_the_closed_test_of_bonferronis(p_values: list[float]) -> None:
    """A hypothesis is rejected where Bonferroni's test rejects every set of hypotheses that holds it (Marcus, 1976)."""
    places = range(len(p_values))
    sets = [s for size in range(1, len(p_values) + 1) for s in itertools.combinations(places, size)]
    closed = [max(min(1.0, len(s) * min(p_values[i] for i in s)) for s in sets if place in s) for place in places]
    assert holm(p_values) == pytest.approx(closed)


def test_holm_keeps_the_order_given_and_the_order_of_the_values() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.2, 0.2, 0.0]) == pytest.approx([0.4, 0.4, 0.0])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
