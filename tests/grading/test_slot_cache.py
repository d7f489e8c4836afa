import numpy as np
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from transformers.cache_utils import DynamicCache

from sftknow.grading.slot_cache import SlotCache


def states(rows, tokens, seed):
    return torch.randn(rows, 2, tokens, 4, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_rows_that_split_leave_and_move_hold_what_a_dynamic_cache_holds(data):
    cache, plain = SlotCache(slots=12, columns=9), DynamicCache()
    rows = data.draw(st.integers(1, 5))
    cache.look(0, rows, 0)
    for layer in range(2):
        prompt = states(rows, 3, layer)
        cache.cache.update(prompt, -prompt, layer)
        plain.update(prompt, -prompt, layer)
    for length in range(3, 8):
        cache.look(0, rows, length)
        parents = np.array(sorted(data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=12))))
        slots = cache.reassign(parents)
        assert sorted(slots) == list(range(len(parents)))
        order = np.empty_like(slots)
        order[slots] = np.arange(len(slots))
        plain.reorder_cache(torch.from_numpy(parents[order]))
        rows = len(parents)
        cache.look(0, rows, length)
        for layer in range(2):
            new = states(rows, 1, 10 * length + layer)
            mine, other = cache.cache.update(new, -new, layer), plain.update(new, -new, layer)
            assert torch.equal(mine[0], other[0])
            assert torch.equal(mine[1], other[1])


def test_rows_that_stay_are_not_copied():
    cache = SlotCache(slots=4, columns=4)
    cache.look(0, 3, 0)
    cache.cache.update(states(3, 2, 0), states(3, 2, 1), 0)
    copied = []
    cache.cache.layers[0].copy_slots = lambda source, target: copied.append((source.tolist(), target.tolist()))
    cache.look(0, 3, 2)
    assert cache.reassign(np.array([0, 1, 2])).tolist() == [0, 1, 2]
    assert copied == []
    assert cache.reassign(np.array([0, 2, 2])).tolist() == [0, 2, 1]
    assert copied == [([2], [1])]
