import numpy as np
from hypothesis import HealthCheck, given, settings, strategies as st

from sftknow.grading.prefixes import shared_prefix


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(1, 6).flatmap(lambda n: st.lists(st.lists(st.integers(0, 2), min_size=n, max_size=n), min_size=1)))
def test_the_cut_is_right_and_as_good_as_any(prompts):
    ids = np.array(sorted(prompts))
    split = shared_prefix(ids)
    rows, tokens = ids.shape
    assert 0 <= split.length < tokens
    if split.length:
        starts = ids[split.first_rows, : split.length]
        assert np.array_equal(starts[split.group], ids[:, : split.length])
        assert len(np.unique(starts, axis=0)) == len(starts)
    cost = len(split.first_rows) * split.length + rows * (tokens - split.length)
    best = min(len(np.unique(ids[:, :k], axis=0)) * k + rows * (tokens - k) for k in range(tokens))
    assert cost == best if split.length else best >= 0.9 * rows * tokens
