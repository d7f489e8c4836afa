"""What plain fine-tuning keeps at any amount of learning: its line towards the base.

Every model between plain fine-tuning and its base costs nothing but a choice (interpolation of the weights), so a
method is worth what it keeps beyond that line at the learning that it reached.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.interpolate import CubicHermiteSpline

from sftknow.report.arena.field import INTERPOLATION, LEARNED, PLAIN, Field, Kind, Method, Seeds
from sftknow.report.words import ALPHA
from sftknow.stats import student_p

Floats = npt.NDArray[np.float64]
_ROUNDING = 1e-12
_STEPS = 8
"""Places looked at between two interpolated models."""
_APART = 0.05
"""Share of the way from the base to plain fine-tuning that the models on the line are apart at least."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """Stops from little learning to much, of which each keeps less than the one before, on average over seeds.

    Of all places between the base and plain fine-tuning, those are left out beside which another one has learned at
    least as much and kept at least as much: where the line turns back, what counts is the most that plain fine-tuning
    can keep with at least that learning.
    """

    learned: Floats
    """(stops, seeds), shares."""
    kept: Floats
    """(stops, seeds), shares."""

    @classmethod
    def through(cls, learned: Floats, kept: Floats) -> Line:
        """The line through some places.

        Args:
            learned: (places, seeds) in any order.
            kept: (places, seeds).
        """
        x, y = learned.mean(axis=1), kept.mean(axis=1)
        stops: list[int] = []
        for place in sorted(range(len(x)), key=lambda i: (-x[i], -y[i])):
            if not stops or y[place] > y[stops[-1]] + _ROUNDING:
                stops.append(place)
        return cls(learned=learned[stops[::-1]], kept=kept[stops[::-1]])

    def beyond(self, learned: Floats, kept: Floats) -> tuple[Floats, bool]:
        """What models keep beyond the line, seed by seed.

        The place on the line is the one where it has learned as much as the models on average over seeds. A seed's
        value is what its model keeps less what its own line keeps there, and the line's slope there makes up for what
        that model learned more or less than that line. On average nothing is made up for: single seeds, whose lines
        are ragged, move no mean, while the spread of what they learned is part of the error.

        Args:
            learned: (seeds,) of the models.
            kept: (seeds,).

        Returns:
            The values, and whether the models learned more than any stop. They are then compared with the last one as
            it is, and nothing is given for what they learned beyond it; where that may be chance the slope still
            carries the spread of the learning into that of the values.
        """
        x, stops = float(learned.mean()), self.learned.mean(axis=1)
        if x <= stops[0] and len(stops) > 1:
            return kept - self.kept[0], False
        after = min(int(np.searchsorted(stops, x)), len(stops) - 1)
        more = bool(x > stops[after] + _ROUNDING)
        share = min(1.0, (x - stops[after - 1]) / (stops[after] - stops[after - 1])) if after else 1.0
        there, keeps = ((1 - share) * a[after - 1] + share * a[after] for a in (self.learned, self.kept))
        excess = learned - there
        if more and _surely_above(excess):
            return kept - keeps, True
        made_up = excess - excess.mean() if more else excess
        return kept - keeps - self._slope(after) * made_up, more

    def _slope(self, after: int) -> float:
        """Kept for learned around a stop."""
        low, high = max(0, after - 1 - _STEPS // 2), min(len(self.learned) - 1, after + _STEPS // 2)
        learned, kept = (float(a[high].mean() - a[low].mean()) for a in (self.learned, self.kept))
        return kept / learned if learned else 0.0


def _surely_above(values: Floats) -> bool:
    """Whether a mean over seeds is above zero by Student's t."""
    if len(values) < 2:
        return False
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5
    return float(values.mean()) > 0 and student_p(float(values.mean()), error, len(values) - 1) < ALPHA


@dataclass(frozen=True, kw_only=True)
class Worth:
    """What a method keeps beyond plain fine-tuning's line at equal learning."""

    values: Mapping[Kind, Mapping[int, float]]
    """By kind of training and seed."""
    beyond: bool
    """Whether it learned more than the whole line for some kind of training."""

    def by_seed(self) -> dict[int, float]:
        """The mean over kinds of training, for each seed."""
        return by_seed(self.values)


def by_seed(values: Mapping[Kind, Mapping[int, float]]) -> dict[int, float]:
    """The mean over kinds of training, for each seed that has any."""
    found: dict[int, list[float]] = {}
    for seeds in values.values():
        for seed, value in seeds.items():
            found.setdefault(seed, []).append(value)
    return {seed: sum(v) / len(v) for seed, v in sorted(found.items())}


def differences(
    first: Mapping[Kind, Mapping[int, float]], second: Mapping[Kind, Mapping[int, float]]
) -> dict[int, float]:
    """First less second where both are there: the mean over kinds of training, for each seed."""
    return by_seed(differences_by_kind(first, second))


def differences_by_kind(
    first: Mapping[Kind, Mapping[int, float]], second: Mapping[Kind, Mapping[int, float]]
) -> dict[Kind, dict[int, float]]:
    """First less second, for each kind of training and seed that both have."""
    found = {
        kind: {seed: value - second[kind][seed] for seed, value in seeds.items() if seed in second[kind]}
        for kind, seeds in first.items()
        if kind in second
    }
    return {kind: seeds for kind, seeds in found.items() if seeds}


def plain_line(field: Field, kind: Kind, form: str, seeds: Iterable[int]) -> Line | None:
    """Plain fine-tuning's line for some seeds; None where one of them lacks a model or the base's scores.

    It runs smoothly from the base through the interpolated models that every one of the seeds has to plain fine-tuning.

    Args:
        field: the arena.
        kind: of training.
        form: ``statements`` or ``questions``.
        seeds: of the line, in this order.
    """
    seeds = list(seeds)
    plain = field.at(Method(PLAIN), kind)
    between = field.levels.get(Method(PLAIN, INTERPOLATION), {}).get(kind, {}).values()
    models = [found for found in (field.base, *between, plain) if all(seed in found for seed in seeds)]
    names = (LEARNED, form, "distance")
    models = [found for found in models if all(name in found[seed] for seed in seeds for name in names)]
    if not seeds or not any(found is field.base for found in models) or not any(found is plain for found in models):
        return None
    learned, kept, distance = (np.array([[found[s][name] for s in seeds] for found in models]) for name in names)
    place, first = np.unique(distance.mean(axis=1), return_index=True)
    used = _apart(place)
    return Line.through(*(smooth(place[used], values[first[used]]) for values in (learned, kept)))


def _apart(place: Floats) -> list[int]:
    """Which of some growing places to use: both ends, and of those between none that is close to one used. Between two
    models that are nearly the same a curve would follow their noise."""
    used, last, gap = [0], len(place) - 1, _APART * float(place[-1] - place[0])
    for i in range(1, last):
        if min(place[i] - place[used[-1]], place[last] - place[i]) >= gap:
            used.append(i)
    return used + [last] * (last > 0)


def smooth(place: Floats, values: Floats) -> Floats:
    """Values at the given places and between them: a cubic in each gap, with the slopes of parabolas through three
    neighbours at its ends. Straight pieces would lie below a bent line, and every method would seem to be above it.

    Args:
        place: (models,), growing.
        values: (models, seeds).

    Returns:
        (places, seeds); the given values are among them.
    """
    if len(place) < 3:
        return values if len(place) < 2 else np.linspace(values[0], values[1], _STEPS + 1)
    fine = np.unique(np.concatenate([np.linspace(a, b, _STEPS + 1) for a, b in pairwise(place)]))
    slopes = np.gradient(values, place, axis=0, edge_order=2)
    return np.asarray(CubicHermiteSpline(place, values, slopes, axis=0)(fine), dtype=np.float64)


def worth(field: Field, models: Mapping[Kind, Seeds], form: str) -> Worth:
    """What models keep beyond plain fine-tuning's line at equal learning.

    Args:
        field: the arena.
        models: values by kind of training and seed. Seeds without plain fine-tuning of the same kind are left out.
        form: ``statements`` or ``questions``.
    """
    values, beyond = {}, False
    for kind, seeds in models.items():
        plain = field.at(Method(PLAIN), kind)
        own = [seed for seed, v in sorted(seeds.items()) if seed in plain and LEARNED in v and form in v]
        line = plain_line(field, kind, form, own)
        if line is None:
            continue
        found, more = line.beyond(*(np.array([seeds[seed][name] for seed in own]) for name in (LEARNED, form)))
        values[kind] = {seed: float(value) for seed, value in zip(own, found, strict=True)}
        beyond |= more
    return Worth(values=values, beyond=beyond)
