"""The relative change r of stored values.

r = |s − p| / (|p| + ε) (paper, appendix B.2; ε = 1e-8 from the authors' code), with p the base's and s the fine-tuned
value. Every operation is one IEEE float32 operation; in the arithmetic ``bfloat16`` p and s are rounded to bfloat16
first, ε too, and every result is rounded to bfloat16 again, as the authors' tensors were and as torch does on a CPU.

A value counts as changed where s ≠ p as numbers in their own dtypes. So +0 and −0 are equal: r = 0, not changed; a
restoration that selects such an element still copies the base's bits, sign included.

This is the definition, in NumPy, which the compiled loops of `relative_kernels` are tested against.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sftknow.checkpoints.reader import round_to_bfloat16
from sftknow.errors import CheckpointError

ARITHMETICS = ("float32", "bfloat16")

TOO_LARGE_MESSAGE = "values beyond 3.39e38 become infinite in bfloat16; use the arithmetic float32"


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How r is computed."""

    epsilon: float = 1e-8
    """Rounded to float32. 0 is allowed: a zero that moved has r = +inf and ranks first, 0/0 counts as 0."""
    arithmetic: str = "float32"
    """``float32`` or ``bfloat16``."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and 0 <= self.epsilon <= 1e30):
            raise CheckpointError(f"epsilon {self.epsilon} cannot be used; give a number from 0 to 1e30, usually 1e-8")
        if self.arithmetic not in ARITHMETICS:
            raise CheckpointError(f"unknown arithmetic {self.arithmetic!r}; use one of {', '.join(ARITHMETICS)}")

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
