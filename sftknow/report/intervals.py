"""Intervals of differences, from an estimate, its standard error and its degrees of freedom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from scipy.stats import t as student

LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A difference that a claim is about, with its interval."""

    name: str
    """What is compared, in words."""
    bucket: int | None = None
    """The mastery bucket that the other side of the comparison was trained on, where the claim names one."""
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
            half = float(student.ppf(probability, max(1.0, e.freedom))) * e.stderr
            e = replace(e, low=e.value - half, high=e.value + half)
        done.append(e)
    return tuple(done)
