"""The relative change r of stored values.

r = |s − p| / (|p| + ε) (paper, appendix B.2; ε = 1e-8 from the authors' code), with p the base's and s the fine-tuned
value. Every operation is one IEEE float32 operation; in the arithmetic ``bfloat16`` p and s are rounded to bfloat16
first, ε too, and every result is rounded to bfloat16 again, as the authors' tensors were and as torch does on a CPU.

Where the two checkpoints are stored in different dtypes, writing the finer values in the coarser dtype changes nearly
all of them, and no training did that. So both are compared in the coarser dtype (`in_one_dtype`), unless the stored
values are asked for.

A value counts as changed where s ≠ p as numbers in the dtypes that they are compared in. So +0 and −0 are equal: r = 0,
not changed; a restoration that selects such an element still copies the base's bits, sign included.

This is the definition, in NumPy, which the compiled loops of `relative_kernels` are tested against.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sftknow.checkpoints.reader import narrow, nonfinite, round_to_bfloat16, widen
from sftknow.errors import CheckpointError

ARITHMETICS = ("float32", "bfloat16")
COMPARISONS = ("coarser", "stored")

NONFINITE_MESSAGE = "a value is NaN or infinite: the checkpoints are not those that the plan was made from"
TOO_LARGE_MESSAGE = (
    "values beyond 3.39e38 become infinite in bfloat16; use the arithmetic float32, and compare_in stored"
)


class NonfiniteError(Exception):
    """A NaN or an infinity was met."""


class TooLargeError(Exception):
    """A value was met that is infinite in bfloat16."""


Stored = tuple[NDArray[Any], str]
"""Stored bits, any shape, and their dtype as safetensors names it."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How r is computed."""

    epsilon: float = 1e-8
    """Rounded to float32. 0 is allowed: a zero that moved has r = +inf and ranks first, 0/0 counts as 0."""
    arithmetic: str = "float32"
    """``float32`` or ``bfloat16``."""
    compare_in: str = "coarser"
    """``coarser``: the coarser of the two stored dtypes; ``stored``: the values as they are."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and 0 <= self.epsilon <= 1e30):
            raise CheckpointError(f"epsilon {self.epsilon} cannot be used; give a number from 0 to 1e30, usually 1e-8")
        if self.arithmetic not in ARITHMETICS:
            raise CheckpointError(f"unknown arithmetic {self.arithmetic!r}; use one of {', '.join(ARITHMETICS)}")
        if self.compare_in not in COMPARISONS:
            raise CheckpointError(f"unknown compare_in {self.compare_in!r}; use one of {', '.join(COMPARISONS)}")

    def compared(self, base: Stored, tuned: Stored) -> tuple[Stored, Stored]:
        """The values of both sides that r is computed of; see `in_one_dtype`.

        Raises:
            CheckpointError: a value is NaN, infinite, or too large for the dtype that is compared in.
        """
        if self.compare_in == "stored":
            return base, tuned
        try:
            return in_one_dtype(base, tuned)
        except NonfiniteError:
            raise CheckpointError(NONFINITE_MESSAGE) from None
        except TooLargeError:
            raise CheckpointError(TOO_LARGE_MESSAGE) from None

    @property
    def rounded(self) -> bool | None:
        """Whether to round as in bfloat16, as the compiled loops take it: True or None."""
        return True if self.arithmetic == "bfloat16" else None

    @property
    def stored_epsilon(self) -> np.float32:
        """ε as the arithmetic has it: a float32, rounded to bfloat16 where that is the arithmetic."""
        epsilon = np.array([self.epsilon], dtype=np.float32)
        return np.float32((round_to_bfloat16(epsilon) if self.arithmetic == "bfloat16" else epsilon)[0])


def relative_change(base: NDArray[np.float32], tuned: NDArray[np.float32], measure: Measure) -> NDArray[np.float32]:
    """r of finite float32 values, shape (elements,). Never NaN or negative; +inf where it overflows or p = ε = 0.

    Raises:
        CheckpointError: a value is too large for bfloat16 where that arithmetic was asked for.
    """
    with np.errstate(divide="ignore", over="ignore", invalid="ignore", under="ignore"):
        if measure.arithmetic == "float32":
            change = np.abs(tuned - base)
            r = change / (np.abs(base) + measure.stored_epsilon)
        else:
            base, tuned = round_to_bfloat16(base), round_to_bfloat16(tuned)
            if not (np.isfinite(base).all() and np.isfinite(tuned).all()):
                raise CheckpointError(TOO_LARGE_MESSAGE)
            change = np.abs(round_to_bfloat16(tuned - base))
            scale = round_to_bfloat16(np.abs(base) + measure.stored_epsilon)
            r = change / scale
        r[change == 0] = 0  # 0/0 where ε = 0; before rounding, which takes no NaN
        return r if measure.arithmetic == "float32" else round_to_bfloat16(r)


def in_one_dtype(base: Stored, tuned: Stored) -> tuple[Stored, Stored]:
    """Both sides as the coarser of their dtypes has them, rounded to nearest, ties to even.

    A value that float16 is too small for stays as it is. Of bfloat16 and float16 neither holds the other: the base is
    rounded to the fine-tuned dtype, as saving in it would, and both then to bfloat16, whose steps are the coarser ones.

    Raises:
        NonfiniteError: a NaN or an infinity.
        TooLargeError: a float32 that bfloat16 is too small for.
    """
    if base[1] == tuned[1]:
        return base, tuned
    if any(any(nonfinite(*side)) for side in (base, tuned)):
        raise NonfiniteError
    sides = _rounded_alike(base, tuned)
    if any(any(nonfinite(*side)) for side in sides):
        raise TooLargeError
    return sides


def changed_in_each(base: Stored, tuned: Stored) -> tuple[int, int]:
    """Of finite values in two dtypes: how many differ beyond rounding (`in_one_dtype`), and how many as stored."""
    return _differing(*_rounded_alike(base, tuned)), _differing(base, tuned)


def _rounded_alike(base: Stored, tuned: Stored) -> tuple[Stored, Stored]:
    target = "BF16" if "BF16" in (base[1], tuned[1]) else "F32"
    if "F16" in (base[1], tuned[1]):
        base, tuned = _on_float16_steps(base), _on_float16_steps(tuned) if tuned[1] == "F32" else tuned
    return (narrow(widen(*base), target), target), (narrow(widen(*tuned), target), target)


def _on_float16_steps(side: Stored) -> Stored:
    values = widen(*side)
    rounded = widen(narrow(values, "F16"), "F16")
    return np.where(np.isinf(rounded), values, rounded).view(np.uint32), "F32"


def _differing(base: Stored, tuned: Stored) -> int:
    return int(np.count_nonzero(widen(*base) != widen(*tuned)))
