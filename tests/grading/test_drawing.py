import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from sftknow.errors import ModelError
from sftknow.grading.drawing import draw_tokens


def exact(logits, temperature):
    scaled = logits.double() / temperature
    return torch.softmax(scaled, -1)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 10_000),
    vocabulary=st.sampled_from([1, 2, 63, 64, 65, 129, 1000]),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 3.0]),
)
def test_tokens_invert_the_cumulative_distribution(seed, vocabulary, temperature):
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(5, vocabulary, generator=generator)
    rows = torch.randint(5, (40,), generator=generator)
    uniforms = torch.rand(40, generator=generator, dtype=torch.float64)
    uniforms[:2] = torch.tensor([0.0, np.nextafter(1.0, 0.0)])
    tokens = draw_tokens(logits, rows, uniforms, temperature=temperature)
    ends = exact(logits, temperature).cumsum(-1)[rows]
    for token, end, uniform in zip(tokens.tolist(), ends, uniforms.tolist(), strict=True):
        assert 0 <= token < vocabulary
        below = float(end[token - 1]) if token else 0.0
        assert below - 1e-6 <= uniform <= float(end[token]) + 1e-6


def test_a_fine_grid_of_uniforms_gives_each_token_its_probability():
    logits = torch.linspace(-3, 3, 200)[torch.randperm(200, generator=torch.Generator().manual_seed(1))][None]
    count = 100_000
    grid = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    tokens = draw_tokens(logits, torch.zeros(count, dtype=torch.long), grid, temperature=0.7)
    counts = torch.bincount(tokens, minlength=200).double()
    assert float((counts - count * exact(logits, 0.7)[0]).abs().max()) < 1.5


def test_tokens_without_probability_are_never_drawn():
    logits = torch.full((1, 130), float("-inf"))
    logits[0, [3, 128]] = 0.0
    grid = torch.linspace(0, 1 - 1e-16, 999, dtype=torch.float64).clamp(max=np.nextafter(1.0, 0.0))
    tokens = draw_tokens(logits, torch.zeros(999, dtype=torch.long), grid, temperature=1.0)
    assert set(tokens.tolist()) == {3, 128}


def test_rare_tokens_of_a_large_vocabulary_keep_their_share():
    # In float32 a running sum near 1 swallows steps of 1e-9; together the rare tokens hold 2e-4 here.
    logits = torch.full((1, 128_256), float(np.log(1.6e-9)))
    logits[0, 0] = 0.0
    rare = float(exact(logits, 1.0)[0, 1:].sum())
    grid = 1 - rare * (torch.arange(1, 2001, dtype=torch.float64) - 0.5) / 2000
    tokens = draw_tokens(logits, torch.zeros(2000, dtype=torch.long), grid, temperature=1.0)
    assert int((tokens > 0).sum()) >= 1999
    assert len(set(tokens.tolist())) > 1990


def test_logits_are_left_as_they_were():
    logits = torch.randn(2, 70)
    before = logits.clone()
    draw_tokens(logits, torch.tensor([0]), torch.tensor([0.5], dtype=torch.float64), temperature=0.7)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(value):
    logits = torch.zeros(2, 70)
    logits[1, 5] = value
    with pytest.raises(ModelError, match="not finite"):
        draw_tokens(logits, torch.tensor([0]), torch.tensor([0.5], dtype=torch.float64), temperature=0.7)
