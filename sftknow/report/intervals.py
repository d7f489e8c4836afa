"""Intervals of differences, from an estimate, its standard error and its degrees of freedom. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

LEVEL = 0.95


def t_quantile(probability: float, freedom: float) -> float:
    """Quantile of Student’s t distribution (Hill, 1970, CACM algorithm 396).

    Exact for 1 and 2 degrees of freedom, up to 5 % too large between them, good to three digits above.

    Args:
        probability: between ½ and 1.
        freedom: degrees of freedom, at least 1, not necessarily whole; infinity gives the normal distribution.
    """
    normal = NormalDist().inv_cdf(probability)
    if math.isinf(freedom) or freedom > 1e6:
        return normal
    tail = 2 * (1 - probability)
    if freedom <= 1:
        return math.tan(math.pi * (probability - 0.5))
    if freedom == 2:
        return math.sqrt(2 / (tail * (2 - tail)) - 2)
    if freedom < 2:  # the series below is poor there: between the closed forms, by logarithm over 1 / freedom
        outer, inner = (math.log(t_quantile(probability, whole)) for whole in (1, 2))
        return math.exp(inner + (outer - inner) * (2 / freedom - 1))
    a = 1 / (freedom - 0.5)
    b = 48 / a**2
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * math.sqrt(a * math.pi / 2) * freedom
    y = (d * tail) ** (2 / freedom)
    if y > 0.05 + a:
        y = normal**2
        if freedom < 5:
            c += 0.3 * (freedom - 4.5) * (normal + 0.6)
        c = (((0.05 * d * normal - 5) * normal - 7) * normal - 2) * normal + b + c
        y = (((((0.4 * y + 6.3) * y + 36) * y + 94.5) / c - y - 3) / b + 1) * normal
        y = math.expm1(a * y * y)
    else:
        y = ((1 / (((freedom + 6) / (freedom * y) - 0.089 * d - 0.822) * (freedom + 2) * 3) + 0.5 / (freedom + 4)) * y
             - 1) * (freedom + 1) / (freedom + 2) + 1 / y  # fmt: skip
    return math.sqrt(freedom * y)


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A difference that a claim is about, with its interval."""

    name: str
    """What is compared, in words."""
    value: float
    stderr: float
    freedom: float = math.inf
    seeds: int = 1
    """Training draws behind the side that has fewer."""
    low: float = -math.inf
    """Lower end of the simultaneous interval, which `together` gives."""
    high: float = math.inf

    @property
    def above(self) -> bool:
        """Surely more than zero."""
        return self.low > 0

    @property
    def below(self) -> bool:
        """Surely less than zero."""
        return self.high < 0

    def within(self, margin: float) -> bool:
        """Surely nearer to zero than the margin, to both sides."""
        return -margin < self.low and self.high < margin


def together(effects: Sequence[Effect], level: float = LEVEL) -> tuple[Effect, ...]:
    """The effects with intervals that hold all at once with the given probability (Bonferroni)."""
    probability = 1 - (1 - level) / (2 * max(1, len(effects)))
    done = []
    for e in effects:
        if math.isfinite(e.stderr):
            half = t_quantile(probability, max(1.0, e.freedom)) * e.stderr
            e = _replaced(e, low=e.value - half, high=e.value + half)
        done.append(e)
    return tuple(done)


def _replaced(effect: Effect, **values: Any) -> Effect:
    return Effect(**{**effect.__dict__, **values})
