"""The pure functions against SciPy and against cases worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import rel_entr, softmax

from sftknow.divergence.kl import (
    bootstrap_interval,
    common_rows,
    full_divergence,
    log_softmax,
    mass,
    rank,
    relative_entropy,
    top_ids,
    top_k_divergence,
)

INF = math.inf

logits_pairs = st.tuples(st.integers(1, 4), st.integers(1, 15)).flatmap(
    lambda shape: st.tuples(
        *(arrays(np.float32, shape, elements=st.floats(-30, 30, width=32)) for _ in range(2)),
    )
)


def by_hand(tuned: np.ndarray, base: np.ndarray, k: int) -> np.ndarray:
    """The paper's definition, row by row, with SciPy: a stable sort settles ties by lowest id."""
    out = []
    for t, b in zip(tuned.astype(np.float64), base.astype(np.float64), strict=True):
        ids = np.argsort(-t, kind="stable")[:k]
        out.append(rel_entr(softmax(t[ids]), softmax(b[ids])).sum())
    return np.array(out)


@given(logits_pairs, st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_top_k_divergence_is_scipys(pair: tuple[np.ndarray, np.ndarray], k: int) -> None:
    tuned, base = pair
    found = top_k_divergence(torch.tensor(tuned), torch.tensor(base), k)
    np.testing.assert_allclose(found.kl_n.numpy(), by_hand(tuned, base, k), rtol=1e-9, atol=1e-12)
    assert found.kl_n.dtype == torch.float64
    assert (found.kl_n >= 0).all()
    expected_ids = np.argsort(-tuned.astype(np.float64), axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(found.ids_nk.numpy(), expected_ids)


@given(logits_pairs)
@settings(max_examples=60, deadline=None)
def test_full_divergence_is_scipys(pair: tuple[np.ndarray, np.ndarray]) -> None:
    p, q = (softmax(x.astype(np.float64), axis=1) for x in pair)
    forward, backward = full_divergence(torch.tensor(pair[0]), torch.tensor(pair[1]))
    np.testing.assert_allclose(forward.numpy(), rel_entr(p, q).sum(1), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(backward.numpy(), rel_entr(q, p).sum(1), rtol=1e-9, atol=1e-12)


def test_a_case_worked_by_hand() -> None:
    # Over ids 1 and 2: fine-tuned (3/4, 1/4), base (1/2, 1/2). Id 0 is a dummy word that the base likes.
    tuned = torch.tensor([[0.0, math.log(3.0) + 5, 5.0]], dtype=torch.float64)
    base = torch.tensor([[9.0, 2.0, 2.0]], dtype=torch.float64)
    found = top_k_divergence(tuned, base, k=2)
    assert found.kl_n.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-15)
    assert found.ids_nk.tolist() == [[1, 2]]
    assert found.tuned_nk[0].tolist() == pytest.approx([0.75, 0.25])
    assert found.base_nk[0].tolist() == pytest.approx([0.5, 0.5])
    # The direction matters: the reverse of the same two is another number.
    assert found.kl_n.item() != pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(2.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_identical_logits_give_exactly_zero(dtype: torch.dtype) -> None:
    logits = (torch.randn(5, 300, generator=torch.Generator().manual_seed(0)) * 8).to(dtype)
    assert top_k_divergence(logits, logits).kl_n.tolist() == [0.0] * 5
    assert [x.tolist() for x in full_divergence(logits, logits)] == [[0.0] * 5] * 2


def test_arithmetic_is_float64_also_for_bf16_logits() -> None:
    generator = torch.Generator().manual_seed(1)
    tuned, base = ((torch.randn(8, 50, generator=generator) * 4).bfloat16() for _ in range(2))
    expected = by_hand(tuned.double().numpy(), base.double().numpy(), 10)
    np.testing.assert_allclose(top_k_divergence(tuned, base).kl_n.numpy(), expected, rtol=1e-12)


def test_a_constant_added_to_all_logits_changes_nothing() -> None:
    tuned, base = torch.randn(3, 40, dtype=torch.float64), torch.randn(3, 40, dtype=torch.float64)
    shifted = top_k_divergence(tuned + 100, base - 300).kl_n
    torch.testing.assert_close(shifted, top_k_divergence(tuned, base).kl_n, rtol=1e-10, atol=1e-12)


def test_far_apart_logits_underflow_to_no_infinity() -> None:
    # exp(-2000) is 0 in float64; the divergence is finite all the same, and about 2000.
    tuned, base = torch.tensor([[0.0, -2000.0]]), torch.tensor([[-2000.0, 0.0]])
    assert top_k_divergence(tuned, base, 2).kl_n.item() == pytest.approx(2000.0)


@pytest.mark.parametrize(
    ("tuned", "base", "expected"),
    [
        ([0.0, 0.0, -INF], [0.0, 0.0, 3.0], 0.0),  # the fine-tuned model rules a token out, over k = 2 nobody sees it
        ([0.0, 0.0], [0.0, -INF], INF),  # the base rules out what the fine-tuned model predicts
        ([INF, 0.0], [0.0, 0.0], math.log(2.0)),  # certainty against a coin
        ([INF, INF], [1.0, 1.0], 0.0),  # two certainties share
        ([0.0, 0.0], [INF, 0.0], INF),
        ([1.0, 1.0], [-INF, -INF], INF),  # the base gives the ids no probability at all
        ([0.0, -INF], [0.0, -INF], 0.0),
    ],
)
def test_infinite_logits_are_limits(tuned: list[float], base: list[float], expected: float) -> None:
    assert top_k_divergence(torch.tensor([tuned]), torch.tensor([base]), 2).kl_n.item() == pytest.approx(expected)


def test_an_underflowing_probability_against_none_is_infinite() -> None:
    tuned, base = torch.tensor([[0.0, -2000.0]]), torch.tensor([[0.0, -INF]])
    assert relative_entropy(log_softmax(tuned), log_softmax(base)).item() == INF


def test_nan_is_refused() -> None:
    bad, good = torch.tensor([[0.0, math.nan, 1.0]]), torch.zeros(1, 3)
    for call in (lambda: top_k_divergence(bad, good), lambda: full_divergence(good, bad), lambda: top_ids(bad, 1)):
        with pytest.raises(ValueError, match="NaN"):
            call()


def test_ties_go_to_the_lowest_id() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 3.0, 2.0, 2.0], [0.0] * 6])
    assert top_ids(logits, 4).tolist() == [[1, 3, 2, 4], [0, 1, 2, 3]]
    assert top_ids(torch.tensor([[-INF, 0.0, -INF]]), 2).tolist() == [[1, 0]]


def test_ties_matter_to_the_result() -> None:
    # Ids 1 and 2 tie for the second place; the base tells them apart, so the choice shows.
    tuned, base = torch.tensor([[5.0, 1.0, 1.0]]), torch.tensor([[5.0, 1.0, -4.0]])
    assert top_k_divergence(tuned, base, 2).kl_n.item() == 0.0


def test_k_beyond_the_vocabulary_takes_all_of_it() -> None:
    tuned, base = torch.randn(2, 4), torch.randn(2, 4)
    torch.testing.assert_close(top_k_divergence(tuned, base, 10).kl_n, full_divergence(tuned, base)[0])
    with pytest.raises(ValueError, match="k is 0"):
        top_k_divergence(tuned, base, 0)


def test_differently_padded_vocabularies_compare_the_common_rows() -> None:
    tuned, base = torch.randn(2, 30), torch.randn(2, 30)
    # A padded row with the largest logit of all must not get into the top ten.
    padded = torch.cat([tuned, torch.full((2, 5), 50.0)], -1)
    assert torch.equal(top_k_divergence(padded, base).kl_n, top_k_divergence(tuned, base).kl_n)
    assert torch.equal(full_divergence(base, padded)[1], full_divergence(base, tuned)[1])
    assert [x.shape[-1] for x in common_rows(padded, base)] == [30, 30]


def test_mass_and_rank() -> None:
    log_p = log_softmax(torch.tensor([[0.1, 0.4, 0.4, 0.1]]).log())
    assert mass(log_p, torch.tensor([[1, 3]])).item() == pytest.approx(0.5)
    assert mass(log_p, torch.empty(1, 0, dtype=torch.long)).item() == 0.0
    assert [rank(log_p, torch.tensor([i])).item() for i in range(4)] == [3, 1, 2, 4]


def test_bootstrap_interval_is_that_of_scipy() -> None:
    from scipy.stats import bootstrap

    values = np.random.default_rng(0).exponential(size=200)
    low, high = bootstrap_interval(values, resamples=4000, seed=1)
    other = bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=2).confidence_interval
    assert (low, high) == pytest.approx((other.low, other.high), rel=0.02)
    assert low < values.mean() < high
    assert bootstrap_interval(values, resamples=50, seed=1) == bootstrap_interval(values, resamples=50, seed=1)
    assert bootstrap_interval(values, resamples=50, seed=1) != bootstrap_interval(values, resamples=50, seed=2)


def test_bootstrap_of_one_value_and_of_none() -> None:
    assert bootstrap_interval(np.array([0.3]), resamples=10) == (0.3, 0.3)
    with pytest.raises(ValueError, match="0 values"):
        bootstrap_interval(np.array([]))
