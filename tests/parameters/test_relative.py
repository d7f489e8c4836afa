from __future__ import annotations

import numpy as np
import pytest

from sftknow.errors import CheckpointError
from sftknow.parameters.relative import Measure, relative_change
from sftknow.parameters.strategies import Block
from tests.parameters.checkpoint_pairs import Tensor, plain_r, stored


def change(base: Tensor, tuned: Tensor, compare_in: str = "coarser") -> list[float]:
    """r from stored bits."""
    sides = (base[1], base[0]), (tuned[1], tuned[0])
    found: list[float] = Block(0, base[1].size, 0, Measure(compare_in=compare_in), lambda: sides).change.tolist()
    return found


@pytest.mark.parametrize("arithmetic", ["float32", "bfloat16"])
@pytest.mark.parametrize("epsilon", [1e-8, 0.0, 1e-3])
@pytest.mark.parametrize("scale", [1.0, 1e-7, 1e-9, 1e-38, 1e30])
def test_r_is_what_torch_computes_in_that_dtype(arithmetic: str, epsilon: float, scale: float) -> None:
    rng = np.random.default_rng(1)
    p = (rng.normal(size=20_000) * scale).astype(np.float32)
    p[::97] = 0
    s = (p + rng.normal(size=p.size) * scale * rng.choice([0, 1e-2, 1], p.size)).astype(np.float32)
    measure = Measure(epsilon=epsilon, arithmetic=arithmetic)
    np.testing.assert_array_equal(relative_change(p, s, measure), plain_r(p, s, epsilon, arithmetic))


def test_r_at_zero() -> None:
    p, s = np.float32([0, 0, 1, -2]), np.float32([0, 1e-6, 0, 2])
    np.testing.assert_array_equal(
        relative_change(p, s, Measure()), np.float32([0, np.float32(1e-6) / np.float32(1e-8), 1, 2])
    )
    np.testing.assert_array_equal(relative_change(p, s, Measure(epsilon=0)), np.float32([0, np.inf, 1, 2]))


def test_signed_zeros_are_no_change() -> None:
    assert change(stored([0.0, -0.0, 1.0], "BF16"), stored([-0.0, 0.0, 2.0], "BF16")) == [0, 0, 1]


def test_values_in_two_dtypes() -> None:
    """1.001 is not 1.0, though it is once it is rounded to bfloat16."""
    pair = stored([1.001, 1.0], "F32"), stored([1.001, 1.0], "BF16")
    found = change(*pair, compare_in="stored")
    assert found[0] > 0 == found[1]
    assert change(*pair) == change(*pair[::-1]) == [0, 0]


def test_values_that_a_dtype_has_no_room_for() -> None:
    """float16 ends at 65,504: a larger value stays as it is; bfloat16's small ones are the zeros that saving makes."""
    assert change(stored([1e6, 2.0], "F32"), stored([2.0, 2.0], "F16")) == [pytest.approx(1, abs=1e-5), 0]
    assert change(stored([1e-30, 2.0], "BF16"), stored([1e-30, 2.0], "F16")) == [0, 0]
    with pytest.raises(CheckpointError, match="infinite in bfloat16"):
        change(stored([3.4e38], "F32"), stored([1.0], "BF16"))
    with pytest.raises(CheckpointError, match="NaN"):
        change(stored([np.nan], "F32"), stored([1.0], "BF16"))


@pytest.mark.parametrize("epsilon", [-1e-8, float("nan"), float("inf")])
def test_epsilon_is_checked(epsilon: float) -> None:
    with pytest.raises(CheckpointError, match="epsilon"):
        Measure(epsilon=epsilon)


def test_arithmetic_is_checked() -> None:
    with pytest.raises(CheckpointError, match="float16"):
        Measure(arithmetic="float16")


def test_a_value_beyond_bfloat16_is_named() -> None:
    big = np.float32([3.4e38])
    with pytest.raises(CheckpointError, match="bfloat16"):
        relative_change(big, np.float32([1]), Measure(arithmetic="bfloat16"))
    assert relative_change(-big, big, Measure()) == np.inf  # the difference overflows: it ranks first
