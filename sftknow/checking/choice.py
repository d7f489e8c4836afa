"""Which candidate of a repair goes on, which one is chosen, and whether it helps on facts that no choice has seen.

Candidates are compared in rounds: in each the better half goes on to further facts (successive halving, Jamieson and
Talwalkar 2016). The best of many is picked partly for its luck, so what it brings is measured anew on other facts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sftknow.artifacts.repairs import Estimate
from sftknow.checking.kept import Kept


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One candidate against the fine-tuned model."""

    name: str
    control: bool
    gain: Kept | None
    """`share_gained`."""
    task: Kept | None
    """`mean_change` of the scores on what is to be kept; None where nothing is."""

    @property
    def points(self) -> float:
        """The gain to sort by."""
        return -math.inf if self.gain is None else self.gain.share

    def breaks(self, margin: float) -> bool:
        """Whether it surely loses more of what is to be kept than the margin, a share."""
        return self.task is not None and self.task.high < -margin

    def keeps(self, margin: float) -> bool:
        """Whether, as measured, it loses no more of that than the margin."""
        return self.task is None or self.task.share >= -margin

    def helps(self, margin: float) -> bool:
        """Whether, as measured, it gains and keeps."""
        return self.keeps(margin) and self.points > 0


def survivors(standings: Sequence[Standing], keep_margin: float) -> list[str]:
    """The better half of the candidates, and of the controls, without those that surely break what is to be kept.

    Candidates that as measured gain and keep it come first. One control stays whatever it breaks.

    Args:
        standings: after a round.
        keep_margin: a share.
    """
    found: list[str] = []
    for control in (False, True):
        those = [one for one in standings if one.control == control]
        fit = [one for one in those if not one.breaks(keep_margin)] or (those if control else [])
        ranked = sorted(fit, key=lambda one: (not one.helps(keep_margin), -one.points))
        found += [one.name for one in ranked[: -(-len(those) // 2)]]
    return [one.name for one in standings if one.name in found]


def pick(standings: Sequence[Standing], keep_margin: float) -> str | None:
    """The candidate, no control, that gains most and as measured keeps what is to be kept; None where none does."""
    fit = [one for one in standings if not one.control and one.helps(keep_margin)]
    return max(fit, key=lambda one: one.points).name if fit else None


def best_control(standings: Sequence[Standing], keep_margin: float) -> str | None:
    """The control that is compared with what was chosen: the best one that keeps, else the best one."""
    those = [one for one in standings if one.control]
    fit = [one for one in those if one.keeps(keep_margin)] or those
    return max(fit, key=lambda one: one.points).name if fit else None


def hopeless(standings: Sequence[Standing], margin: float, keep_margin: float) -> bool:
    """Whether surely no candidate helps: each breaks what is to be kept, or gains less than the margin.

    Args:
        standings: the last one of every candidate.
        margin: as a share of the base's knowledge.
        keep_margin: a share.
    """
    those = [one for one in standings if not one.control]
    return all(one.breaks(keep_margin) or (one.gain is not None and one.gain.high < margin) for one in those)


def confirmed(
    gain: Kept | None, task: Kept | None, *, margin: float, keep_margin: float
) -> Literal["repaired", "no help", "open"]:
    """What the chosen candidate is, by facts and rows that no choice has seen.

    ``repaired``: it surely gains, and as measured keeps what is to be kept. ``no help``: surely the gain is below the
    margin, or what is to be kept is lost beyond its own.
    """
    if gain is None:
        return "open"
    if gain.high < margin or (task is not None and task.high < -keep_margin):
        return "no help"
    return "repaired" if gain.low > 0 and (task is None or task.share >= -keep_margin) else "open"


def more_facts(gain: Kept | None, asked: int) -> int | None:
    """About how many more facts would tell a gain from none; None where none would.

    Args:
        gain: measured.
        asked: facts of the whole set that were asked for it.
    """
    if gain is None or gain.share <= 0 or not math.isfinite(gain.reach):
        return None
    return max(1, math.ceil(asked * (gain.reach / gain.share) ** 2) - asked)


def points(found: Kept | None) -> Estimate | None:
    """In points, for people and files."""
    if found is None:
        return None
    told = math.isfinite(found.low)
    return Estimate(
        value=100 * found.share,
        low=100 * found.low if told else None,
        high=100 * found.high if told else None,
        count=found.facts,
    )
