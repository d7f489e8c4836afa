"""Is the ranking worth anything? Restoring by relative change beside rivals, at equal share and at equal distance.

The paper sets the parameters back that changed most relative to their size. Rivals set as many back by another rule, or
move all weights. They are compared after plain fine-tuning, for every bucket and size, at each level that was measured:
no level is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sftknow.report.arena.contest import over_seeds
from sftknow.report.arena.field import ANSWERS, FORMS, PLAIN, Field, Kind, Method, Seeds, Values, mixed
from sftknow.report.arena.line import by_seed, differences, differences_by_kind, worth
from sftknow.report.verdicts import Effect, Verdict, ranking_matters, together
from sftknow.report.words import FEW, LEAST_DRAWS, Difference

RELATIVE = "relative"
RIVALS = {
    "absolute": "by absolute change",
    "random": "at random",
    "smallest": "the smallest |p|",
    "per-tensor": "the same share of every tensor",
    "interpolation": "interpolation of all weights",
}
"""Other ways back towards the base, in words."""
EQUAL = {
    "share": "at equal share",
    "distance": "at equal distance",
    "choice": "each at the level chosen on dev",
}
"""At what two ways are compared, in words."""
MEASURES = {
    FORMS[0]: "statements kept at equal learning",
    ANSWERS: "the paper’s measure (questions answered, mean over the five buckets)",
}
"""What is compared, in words."""

ByKind = Mapping[Kind, Mapping[int, float]]


@dataclass(frozen=True, kw_only=True)
class Rivalry:
    """What the ranking gains beyond one rival."""

    rival: str
    equal: str
    """Of `EQUAL`."""
    measure: str
    values: ByKind
    """Mean over the levels, by kind of training and seed."""
    levels: tuple[str, ...]
    """That both could be compared at somewhere."""

    @property
    def name(self) -> str:
        """Such as ``at random, at equal share``."""
        return f"{RIVALS[self.rival]}, {EQUAL[self.equal]}"

    def of(self, kind: Kind) -> Difference | None:
        """Over the seeds of one kind of training."""
        values = list(self.values.get(kind, {}).values())
        return over_seeds(values) if values else None

    @property
    def found(self) -> Difference:
        """Over seeds, each the mean over kinds of training."""
        return over_seeds(list(by_seed(self.values).values()))


def rivalries(field: Field, measure: str) -> list[Rivalry]:
    """The ranking against every rival that the arena has: at equal share and at equal distance, at all levels that both
    have; by the paper's measure, which is asked at chosen levels only, each at the level that was chosen on dev.

    Args:
        field: the arena.
        measure: of `MEASURES`.
    """
    found = []
    for rival in RIVALS:
        if measure == ANSWERS:
            own, other = (field.chosen.get(Method(PLAIN, name), {}) for name in (RELATIVE, rival))
            values = differences_by_kind(_measured(field, own, measure), _measured(field, other, measure))
            found += [Rivalry(rival=rival, equal="choice", measure=measure, values=values, levels=())] if values else []
            continue
        for equal, partner in (("share", _same_share), ("distance", same_distance)):
            found += rivalry(field, rival, equal, partner, measure)
    return found


Partner = Callable[[Field, str, Kind, str, Seeds], Seeds]


def rivalry(field: Field, rival: str, equal: str, partner: Partner, measure: str) -> list[Rivalry]:
    """The ranking against one rival, at every level that both have; nothing where they have none.

    Args:
        field: the arena.
        rival: of `RIVALS`.
        equal: of `EQUAL`.
        partner: finds the rival's models for a level of the ranking's.
        measure: a measure of the values.
    """
    collected: dict[Kind, dict[int, list[float]]] = {}
    levels: list[str] = []
    shares = _shares(field)
    for kind, own_levels in field.levels.get(Method(PLAIN, RELATIVE), {}).items():
        for level, own in own_levels.items():
            if level is None or level not in shares:
                continue
            other = partner(field, rival, kind, level, own)
            shared = own.keys() & other.keys()
            one, two = (
                _measured(field, {kind: {seed: side[seed] for seed in sorted(shared)}}, measure)
                for side in (own, other)
            )
            for seed, value in differences(one, two).items():
                collected.setdefault(kind, {}).setdefault(seed, []).append(value)
                levels += [] if level in levels else [level]
    values = {kind: {s: sum(v) / len(v) for s, v in seeds.items()} for kind, seeds in collected.items()}
    if not values:
        return []
    return [Rivalry(rival=rival, equal=equal, measure=measure, values=values, levels=tuple(levels))]


def _shares(field: Field) -> set[str]:
    """The levels that the ranking is compared at: those that a rival was measured at, too."""
    return {
        level.removeprefix("as ")
        for rival in RIVALS
        for levels in field.levels.get(Method(PLAIN, rival), {}).values()
        for level in levels
        if level is not None
    }


def _measured(field: Field, models: Mapping[Kind, Seeds], measure: str) -> ByKind:
    if measure in FORMS:
        return worth(field, models, measure).values
    return {kind: {seed: v[measure] for seed, v in seeds.items() if measure in v} for kind, seeds in models.items()}


def _same_share(field: Field, rival: str, kind: Kind, level: str, own: Seeds) -> Seeds:
    """The rival's models at the same level."""
    return field.levels.get(Method(PLAIN, rival), {}).get(kind, {}).get(level, {})


def same_distance(field: Field, rival: str, kind: Kind, level: str, own: Seeds) -> Seeds:
    """The rival as far from the base as each model: where that was not measured, on the straight line between the two
    of its levels around that distance, plain fine-tuning among them. Nothing where the rival has no level that near to
    the base."""
    measured = field.levels.get(Method(PLAIN, rival), {}).get(kind, {}).get(f"as {level}")
    if measured:
        return measured
    plain = field.at(Method(PLAIN), kind)
    found: dict[int, Values] = {}
    for seed, model in own.items():
        models = [
            seeds[seed] for seeds in field.levels.get(Method(PLAIN, rival), {}).get(kind, {}).values() if seed in seeds
        ]
        if models and seed in plain and (there := _between([*models, plain[seed]], model["distance"])):
            found[seed] = there
    return found


def _between(models: Sequence[Values], distance: float) -> Values | None:
    nearer = [m for m in models if m["distance"] <= distance]
    farther = [m for m in models if m["distance"] >= distance]
    if not nearer or not farther:
        return None
    low, high = max(nearer, key=lambda m: m["distance"]), min(farther, key=lambda m: m["distance"])
    width = high["distance"] - low["distance"]
    share = (distance - low["distance"]) / width if width else 0.0
    return mixed([low, high], [1 - share, share])


def verdict(found: Sequence[Rivalry]) -> Verdict:
    """One word for all rivals, by the rule of the report's verdict on the ranking: intervals that hold together."""
    effects = [
        Effect(
            name=rivalry.name,
            value=rivalry.found.value,
            stderr=rivalry.found.stderr,
            freedom=rivalry.found.freedom,
            seeds=rivalry.found.draws or 0,
            without=rivalry.found.without,
        )
        for rivalry in found
    ]
    if effects and min(e.seeds for e in effects) < LEAST_DRAWS:
        return Verdict(word="cannot be told", why=f"There is one seed: {FEW}.", effects=tuple(effects))
    judged = ranking_matters(together(effects))
    return judged if effects else replace(judged, why="The arena has no rivals beside restoring by relative change.")
