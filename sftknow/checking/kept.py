"""How much of what the base knows the tuned model still knows: an estimate without a bias for what is picked.

Facts that a noisy measurement calls known are, measured again, known less: a model compared with itself would seem to
have lost something. So the statements of each fact are cut into two halves. One half tells whether the base knows the
fact, the other measures both models, and then the halves change places. What is measured has no part in the choice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import hypergeom, t

from sftknow.stats import holm

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

FEWEST = 20
"""Facts that the base must be seen to know before anything is said: the interval rests on that many at least."""

PLAIN = 0.999
"""Level of the interval that ends the asking early. A look at it is taken after 2, 4, 8, 16 … blocks, so that all looks
together are wrong at most once in a hundred checks."""


@dataclass(frozen=True, kw_only=True)
class Hits:
    """What both models made of the same facts' statements. Facts are rows, statement templates columns."""

    before: Ints
    """Hits of the base, shape [facts, templates]."""
    after: Ints
    """Hits of the tuned model, same shape."""
    tries: Ints
    """Continuations drawn from each of the two, same shape; 0 where a statement was not asked."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The share of the base's knowledge that the tuned model keeps, with its 95 % interval."""

    share: float
    """1 where nothing is lost; above 1 where facts that the base half knew are known better."""
    low: float
    high: float
    facts: int
    """Facts that the base was seen to know."""

    @property
    def reach(self) -> float:
        """From the share to the lower, farther end; infinite where too few facts are known to tell an interval."""
        return self.share - self.low


def halves(hits: Hits) -> tuple[tuple[Floats, Floats, Floats], ...]:
    """For each half of the statements: the base's rate in the other half, the base's and the tuned model's in this one.

    A fact's asked statements are dealt to the halves in turn. Returns float64 of shape [facts]; NaN where a half of a
    fact has no statement.
    """
    asked = hits.tries > 0
    odd = (np.cumsum(asked, axis=1) % 2 == 1) & asked
    even = asked & ~odd
    with np.errstate(invalid="ignore"):
        rates = [
            tuple(
                np.where(half, side, 0).sum(1) / np.where(half, hits.tries, 0).sum(1)
                for side in (hits.before, hits.after)
            )
            for half in (odd, even)
        ]
    (odd_before, odd_after), (even_before, even_after) = rates
    return (even_before, odd_before, odd_after), (odd_before, even_before, even_after)


def kept_share(hits: Hits, level: float = 0.95) -> Kept | None:
    """The share of the base's knowledge that is kept; None where the base is not seen to know a single fact.

    Over the facts that the base completed at least once in one half of their statements: the sum of the tuned model's
    rates in the other half over the sum of the base's. The interval is Student's, of the ratio linearised (Cochran,
    1977, 6.4), with facts as the independent units; it is infinite below `FEWEST` facts. Where hardly a fact changed it
    knows too little of those not asked, so it never ends above what n facts can exclude: a loss of 3 ÷ n at 95 %
    (more exactly 1 − 0.05^(1/n)).

    Args:
        hits: of all facts asked, also those that the base does not know.
        level: of the interval.
    """
    before, after, seen = _counted(hits)
    return _share(before[seen], after[seen], level)


def _counted(hits: Hits) -> tuple[Floats, Floats, Bools]:
    """For each fact the two models' rates, summed over the halves that count, and whether one does; shape [facts]."""
    before, after = np.zeros(len(hits.tries)), np.zeros(len(hits.tries))
    seen = np.zeros(len(hits.tries), dtype=bool)
    for known_by, base, tuned in halves(hits):
        known = (known_by > 0) & ~np.isnan(base)
        before[known] += base[known]
        after[known] += tuned[known]
        seen |= known
    return before, after, seen


def share_gained(first: Hits, second: Hits, level: float = 0.95) -> Kept | None:
    """How much more of the base's knowledge one model keeps than another, paired by facts.

    Args:
        first: of base and one model.
        second: of the same base and another model, for the same facts and statements.
        level: of the interval.

    Returns:
        The difference of the two `kept_share`, with its own interval; None where the base knows nothing.
    """
    before, one, seen = _counted(first)
    _, two, _ = _counted(second)
    return _share(before[seen], (two - one)[seen], level, both=True)


def mean_change(differences: Floats, level: float = 0.95) -> Kept | None:
    """The mean of paired differences, each between −1 and 1, with Student's interval; infinite below `FEWEST`.

    Args:
        differences: shape [rows].
        level: of the interval.
    """
    return _share(np.ones(len(differences)), differences, level, both=True) if len(differences) else None


def kept_answers(hits: Hits, before: Floats, after: Floats, level: float = 0.99) -> Kept | None:
    """The share of the base's answers to questions that is kept, of the facts whose statements it completes.

    Args:
        hits: of all facts asked.
        before: the base's rate of right answers to each fact's question, shape [facts]; NaN where it was not asked.
        after: the tuned model's.
        level: of the interval; wide, as it is looked at beside that of the statements.
    """
    known = (hits.before.sum(1) > 0) & ~np.isnan(before)
    return _share(before[known], after[known], level)


def _share(before: Floats, after: Floats, level: float, *, both: bool = False) -> Kept | None:
    """Args: both: what n facts without a change cannot exclude widens the interval to both sides."""
    count, total = len(before), float(before.sum())
    if total == 0:
        return None
    share = float(after.sum()) / total
    if count < FEWEST:
        return Kept(share=share, low=-math.inf, high=math.inf, facts=count)
    error = math.sqrt(count / (count - 1) * float(((after - share * before) ** 2).sum())) / total
    reach = float(t.ppf((1 + level) / 2, count - 1)) * error
    unseen = 1 - (1 - level) ** (1 / count)
    above = max(reach, unseen) if both else reach
    return Kept(share=share, low=share - max(reach, unseen), high=share + above, facts=count)


def by_level(hits: Hits) -> list[tuple[int, int, float, float]]:
    """How well facts are known before and after, by how well the base knows them.

    Returns:
        For each bucket with facts in it: bucket, facts, mean rate of the base, mean rate of the tuned model. The
        bucket is that of one half of the statements, the rates are those of the other, as in `kept_share`; each fact
        counts once for each half, so ``facts`` may hold halves and is rounded.
    """
    rows: list[tuple[int, int, float, float]] = []
    parts = halves(hits)
    for bucket in range(5):
        before, after = [], []
        for known_by, base, tuned in parts:
            there = ~np.isnan(base) & ~np.isnan(known_by)
            there[there] &= np.ceil(4 * known_by[there]).astype(int) == bucket
            before.append(base[there])
            after.append(tuned[there])
        first, second = np.concatenate(before), np.concatenate(after)
        if len(first):
            rows.append((bucket, round(len(first) / 2), float(first.mean()), float(second.mean())))
    return rows


def surely_worse(first: Ints, second: Ints, tries: Ints, level: float = 0.05) -> Bools:
    """Facts that the second side knows worse than the first, one by one.

    Fisher's exact test, one-sided, of hits against misses (shape [facts, templates]), with Holm's correction over the
    facts: the chance that a single one is named wrongly is at most ``level``.
    """
    a, b, n = first.sum(1), second.sum(1), tries.sum(1)
    values = hypergeom.sf(a - 1, 2 * n, a + b, n)
    return np.array(holm([float(value) for value in values])) <= level


def plain_already(hits: Hits, blocks: int, margin: float) -> bool:
    """Whether asking may end because the verdict is beyond doubt (group-sequential: Haybittle, 1971; Peto, 1976).

    Args:
        hits: of all facts asked.
        blocks: asked so far; only at powers of two from 2 on a look is taken.
        margin: as a share of the base's knowledge.
    """
    return blocks > 1 and blocks & (blocks - 1) == 0 and verdict(kept_share(hits, PLAIN), margin) != "open"


def facts_needed(kept: Kept, margin: float, asked: int) -> int | None:
    """About how many more facts would tell on which side of the margin the loss lies; None where none would.

    Args:
        kept: what is known now.
        margin: as a share of the base's knowledge.
        asked: facts asked so far.
    """
    gap = abs((1 - kept.share) - margin)
    if not math.isfinite(kept.reach) or gap == 0:
        return None
    return max(0, math.ceil(asked * (kept.reach / gap) ** 2) - asked)


def verdict(kept: Kept | None, margin: float) -> Literal["kept", "lost", "open"]:
    """``kept``: no loss beyond the margin; ``lost``: surely one; ``open``: it cannot be told.

    Args:
        kept: from `kept_share`.
        margin: as a share of the base's knowledge.
    """
    if kept is None:
        return "open"
    if 1 - kept.low <= margin:
        return "kept"
    return "lost" if 1 - kept.high > margin else "open"
