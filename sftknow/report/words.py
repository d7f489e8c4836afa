"""Words of judgement: the one rule by which the report, the terminal and the cards call a difference one.

A difference is *sure* where chance would give one as large in less than 5 % of cases: Student's t with the degrees of
freedom that there are, corrected for every comparison of the same table or sentence (Holm). It is never sure where
leaving out one training draw would turn its sign. A statement about a kind of training needs at least two draws
(seeds) of it: with one, the luck of the draw is not known, whatever the number of questions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sftknow.stats import holm, mcnemar, student_p, student_reach

ALPHA = 0.05
"""Probability of any false word in one table or sentence."""
LEAST_DRAWS = 2
"""Training draws that a statement about a kind of training needs."""

FEW = "too few seeds to say"
SPREAD = "too few seeds to be sure"
"""Of a difference that is large for its standard error, which two or three seeds do not tell well enough."""
CHANCE = "it may be chance"
UNTOLD = "cannot be told"
RULE = (
    "“Surely” means that chance would give such a difference in less than 5 % of cases, by Student’s t with the "
    "degrees of freedom that the seeds leave, corrected for all comparisons of the same table or sentence (Holm). "
    "Two or three seeds tell the error behind ± only roughly, so that with them even a difference of many errors may "
    f"not be sure: “{SPREAD}”."
)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How two models, or two groups of models, differ: in the mean over buckets, or in mean divergence."""

    value: float
    stderr: float
    freedom: float = math.inf
    """Degrees of freedom of the standard error: few where seeds or changed questions are few."""
    gained: int | None = None
    """Questions right only in the first; None where the questions are not there or there are several runs."""
    lost: int | None = None
    draws: int | None = None
    """Training draws of the side that has fewer; None where nothing is said beyond the very models at hand."""
    without: tuple[float, float] | None = None
    """Least and largest value with one training draw of a side left out; None where there is one draw."""
    adjusted: float | None = None
    """p-value after the correction for all comparisons it was made with; see `together`."""

    @property
    def p(self) -> float:
        """Two-sided p-value; 1 where there is no error to judge by."""
        if self.stderr == 0 and self.value and self.gained is not None and self.lost is not None:
            return mcnemar(self.gained, self.lost)  # every question of a bucket changed alike: no spread to go by
        return student_p(self.value, self.stderr, self.freedom)

    @property
    def few(self) -> bool:
        """Too few training draws to say anything about the kind of training."""
        return self.draws is not None and self.draws < LEAST_DRAWS

    @property
    def sure(self) -> bool:
        """Whether it is called a difference."""
        steady = self.without is None or self.without[0] * self.without[1] > 0
        return not self.few and steady and (self.p if self.adjusted is None else self.adjusted) < ALPHA

    @property
    def doubt(self) -> str:
        """Why it is not called a difference, in words; empty where it is one.

        With more seeds of the same spread a large one would be sure; one within the errors would not.
        """
        if self.sure:
            return ""
        if self.few:
            return FEW
        looks = 1.0 if self.adjusted is None or not self.p else self.adjusted / self.p
        with_more = student_p(self.value, self.stderr, math.inf) * looks
        return SPREAD if self.draws is not None and with_more < ALPHA else CHANCE

    def among(self, looks: int) -> Difference:
        """The same, picked out of so many by its value (Bonferroni)."""
        return replace(self, adjusted=min(1.0, self.p * max(1, looks)))

    def widened(self, looks: int) -> Difference:
        """The same with the standard error that a value picked out of so many has to be judged by.

        Its interval is then as wide as Bonferroni's for that many, whatever it is corrected for later.
        """
        reach = student_reach(1 - ALPHA / max(1, looks), self.freedom) / student_reach(1 - ALPHA, self.freedom)
        return replace(self, stderr=self.stderr * reach)

    def part(self) -> dict[str, Any]:
        """As it stands in ``results.json``."""
        return {
            "value": self.value,
            "stderr": self.stderr if math.isfinite(self.stderr) else None,
            "degrees_of_freedom": self.freedom if math.isfinite(self.freedom) else None,
            "p": self.p if self.adjusted is None else self.adjusted,
            "sure": self.sure,
            "few_seeds": self.few,
            "doubt": self.doubt,
        }


def together(found: Sequence[Difference]) -> list[Difference]:
    """The differences of one table or sentence, corrected for their number (Holm); those of too few draws apart."""
    adjusted = iter(holm([d.p for d in found if not d.few]))
    return [d if d.few else replace(d, adjusted=next(adjusted)) for d in found]


def tone(difference: Difference) -> str:
    """Background for a difference: its direction, and how sure and how large it is."""
    if float(f"{100 * difference.value:.1f}") == 0:
        return ""
    way = "up" if difference.value > 0 else "down"
    if not difference.sure:
        return f"{way}-weak"
    return f"{way}-strong" if abs(difference.value) >= 0.05 else f"{way}-mid"


TONES = (
    f"Green with +: better; orange with −: worse. The fullest colour: 5 points or more; the faintest: {CHANCE}, "
    f"{FEW} or {SPREAD} (Student’s t, corrected for all differences of the table by Holm)."
)
"""What the colours of `tone` mean."""


def hedge(part: Mapping[str, Any]) -> str:
    """What stands behind a difference in a sentence: nothing where it is sure."""
    return "" if part["sure"] else f" ({part['doubt']})"
