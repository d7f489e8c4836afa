"""Which method is worth most, how sure that is, and what cannot be told: tests over seeds, corrected for their number.

The unit is the seed: what a method does with one seed is averaged over the kinds of training, so that nothing is taken
as independent that shares a draw.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from math import comb

import numpy as np

from sftknow.artifacts.arena import NOTHING
from sftknow.report.aggregate import over_runs
from sftknow.report.arena.field import INTERPOLATION, LEARNED, PLAIN, Field, Kind, Method, Seeds
from sftknow.report.arena.line import Worth, differences, worth
from sftknow.report.words import ALPHA, CHANCE, UNTOLD, Difference, together
from sftknow.stats import student_reach

IS_PLAIN, IDLE, BOUGHT = "is plain fine-tuning", "does nothing", "learns more and keeps less"
ON_LINE = (Method(PLAIN), Method(PLAIN, INTERPOLATION))
"""The ends of comparison: they are plain fine-tuning's line."""


def over_seeds(values: Sequence[float], step: float = 0.0) -> Difference:
    """The mean of one value a seed with Student's error.

    Args:
        values: one a seed, at least one.
        step: what one question more changes: where seeds agree by chance, their spread is taken for that much.
    """
    found, count = over_runs(values, math.nan, 0), len(values)
    error = max(found.error, step) / math.sqrt(count) if count > 1 else math.inf
    return Difference(
        value=found.value,
        stderr=error,
        freedom=max(1, count - 1),
        draws=count,
        without=found.without if count > 1 else None,
    )


def interval(found: Difference, looks: int = 1) -> tuple[float, float] | None:
    """The 95 % interval of a mean over seeds by Student's t; of so many at once (Bonferroni). None for one seed."""
    if not math.isfinite(found.stderr):
        return None
    reach = student_reach(1 - ALPHA / max(1, looks), found.freedom) * found.stderr
    return found.value - reach, found.value + reach


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A method and what became of it."""

    method: Method
    worth: Worth
    found: Difference | None
    """Kept beyond plain fine-tuning's line at equal learning, corrected for all methods of the table where it is
    judged; None where nothing can be compared."""
    learned: Difference | None
    """Over the base."""
    kept: Mapping[str, Difference]
    """By form."""
    means: Mapping[str, float]
    """Of ``ood``, ``kl``, ``changed``, ``time`` and ``memory``, as far as they were measured."""
    models: int
    idle: int
    """Of these, how many do nothing."""
    plain: int
    """How many are plain fine-tuning."""

    @property
    def nothing_new(self) -> str | None:
        """What is said of a method that is none."""
        if self.models and self.idle == self.models:
            return IDLE
        return IS_PLAIN if self.method != Method(PLAIN) and self.models and self.plain == self.models else None

    @property
    def judged(self) -> bool:
        """Whether it is tested at all: not the line itself, nor what does nothing; not one that bought its learning."""
        tested = self.method not in ON_LINE and not self.nothing_new and self.found is not None
        return tested and not self.bought

    @property
    def bought(self) -> bool:
        """Whether it learned more than the whole line and kept less than its end: neither is the better one."""
        return self.worth.beyond and self.found is not None and self.found.value < 0

    @property
    def word(self) -> str:
        """What can be said of it."""
        if self.nothing_new:
            return self.nothing_new
        if self.method in ON_LINE:
            return "the line that others are compared with" if self.method.after != NOTHING else "the end of the line"
        if self.found is None:
            return "not measured"
        if self.bought:
            return BOUGHT
        more = ", and learns more than plain" if self.worth.beyond else ""
        if not self.found.sure:
            return (UNTOLD if self.found.doubt == CHANCE else self.found.doubt) + more
        return f"keeps {'more' if self.found.value > 0 else 'less'}{more}"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two methods, the first of the higher rank."""

    first: Method
    second: Method
    found: Difference
    """First less second, over the seeds that both have; corrected for all pairs."""
    comparable: bool
    """False where the second learned more than plain fine-tuning's whole line: it may be worth more than is known."""

    @property
    def sure(self) -> bool:
        return self.comparable and self.found.sure


@dataclass(frozen=True, kw_only=True)
class Contest:
    """A field of methods, ranked by what they keep at equal learning."""

    form: str
    standings: tuple[Standing, ...]
    """The best first; those that nothing can be compared of last."""

    @cached_property
    def entrants(self) -> tuple[Standing, ...]:
        """Those that are tested, the best first."""
        return tuple(s for s in self.standings if s.judged)

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """Every two methods that are tested, with paired differences over seeds, corrected for their number (Holm)."""
        raw = []
        for one, two in combinations(self.entrants, 2):
            values = differences(one.worth.values, two.worth.values)
            if values:
                raw.append((one, two, over_seeds(list(values.values()))))
        tested = [index for index, (_, two, _) in enumerate(raw) if not two.worth.beyond]
        corrected = dict(zip(tested, together([raw[i][2] for i in tested]), strict=True))
        return tuple(
            Pair(first=one.method, second=two.method, found=corrected.get(i, found), comparable=i in corrected)
            for i, (one, two, found) in enumerate(raw)
        )

    @property
    def winner(self) -> Standing | None:
        """The method of the highest worth."""
        return self.entrants[0] if self.entrants else None

    @property
    def over_line(self) -> Difference | None:
        """The winner's worth, corrected for having been picked out of all (Bonferroni)."""
        best = self.winner
        return best.found.among(len(self.entrants)) if best and best.found else None

    @property
    def ahead(self) -> tuple[Standing, Difference] | None:
        """The runner-up, and what the winner is ahead by: the two were picked out of all pairs (Bonferroni)."""
        if len(self.entrants) < 2:
            return None
        one, two = self.entrants[:2]
        values = differences(one.worth.values, two.worth.values)
        looks = comb(len(self.entrants), 2)
        if not values:
            return None
        found = over_seeds(list(values.values())).among(looks)
        return two, replace(found, adjusted=1.0) if two.worth.beyond else found

    @property
    def level_with_winner(self) -> tuple[Method, ...]:
        """Methods that are not told apart from the winner."""
        best = self.winner
        told = {pair.second for pair in self.pairs if best and pair.first == best.method and pair.sure}
        return tuple(s.method for s in self.entrants[1:] if s.method not in told)

    def picked_on_others(self) -> Difference | None:
        """What the method that is best on all other seeds keeps on the seed left out: no method is picked by what it is
        then judged by. None below three seeds."""
        by_method = {s.method: s.worth.by_seed() for s in self.entrants}
        seeds = sorted(set.intersection(*(set(v) for v in by_method.values()))) if by_method else []
        if len(seeds) < 3:
            return None

        def best_without(seed: int) -> float:
            means = {m: np.mean([v[s] for s in seeds if s != seed]) for m, v in by_method.items()}
            return by_method[max(means, key=lambda m: means[m])][seed]

        return over_seeds([best_without(seed) for seed in seeds])


def contenders(field: Field) -> list[Method]:
    """Every way to train, and everything done after plain fine-tuning."""
    return [m for m in field.chosen if m.after == NOTHING or m.strategy == PLAIN]


def contest(field: Field, methods: Iterable[Method], form: str) -> Contest:
    """The methods of a table with what became of them, ranked and judged together.

    Args:
        field: the arena.
        methods: of the table.
        form: ``statements`` or ``questions``.
    """
    found = [_standing(field, method, form) for method in methods]
    judged = iter(together([s.found for s in found if s.judged and s.found is not None]))
    found = [replace(s, found=next(judged)) if s.judged else s for s in found]
    rank = {s.method: (s.found is None, -s.found.value if s.found else 0.0, s.method) for s in found}
    return Contest(form=form, standings=tuple(sorted(found, key=lambda s: rank[s.method])))


def _standing(field: Field, method: Method, form: str) -> Standing:
    models = {kind: field.at(method, kind) for kind in field.kinds if field.at(method, kind)}
    here = worth(field, models, form)
    values = list(here.by_seed().values())
    kept = {f: d for f in (form, *{"statements", "questions"} - {form}) if (d := mean_over_seeds(field, models, f))}
    names = ("ood", "kl", "changed", "time", "memory")
    means = {name: d.value for name in names if (d := mean_over_seeds(field, models, name))}
    return Standing(
        method=method,
        worth=here,
        found=over_seeds(values, field.step(form) / max(1, len(models))) if values else None,
        learned=mean_over_seeds(field, models, LEARNED),
        kept=kept,
        means=means,
        models=field.count(method),
        idle=field.idle(method),
        plain=field.same(method, Method(PLAIN)),
    )


def mean_over_seeds(field: Field, models: Mapping[Kind, Seeds], name: str) -> Difference | None:
    """A measure's mean over seeds.

    Where a method lacks kinds of training that plain fine-tuning has, it is plain's mean and the mean difference from
    plain where both are.
    """

    def named(seeds: Seeds) -> dict[int, float]:
        return {seed: v[name] for seed, v in seeds.items() if name in v}

    own = {kind: named(seeds) for kind, seeds in models.items()}
    plain = {kind: named(field.at(Method(PLAIN), kind)) for kind in field.kinds}
    whole, steps = differences(plain, {k: dict.fromkeys(s, 0.0) for k, s in plain.items()}), differences(own, plain)
    values = [whole[seed] + step for seed, step in steps.items()]
    return over_seeds(values) if values else None


@dataclass(frozen=True, kw_only=True)
class Added:
    """What a method that is applied afterwards adds to a strategy's worth."""

    strategy: str
    after: str
    found: Difference
    judged: bool
    """False where the strategy by itself learned more than plain's whole line and kept less than its end, or where
    nothing was changed."""


def added(field: Field, form: str) -> list[Added]:
    """For each strategy but plain what each method afterwards adds: paired over seeds, corrected together."""
    found: list[Added] = []
    for method in field.chosen:
        if method.after == NOTHING or method.strategy == PLAIN or Method(method.strategy) not in field.chosen:
            continue
        after, before = (_standing(field, m, form) for m in (method, Method(method.strategy)))
        values = differences(after.worth.values, before.worth.values)
        if not values:
            continue
        same = field.same(method, Method(method.strategy)) == field.count(method)
        judged = not same and not before.worth.beyond and not after.bought
        found.append(
            Added(
                strategy=method.strategy,
                after=method.after,
                found=over_seeds(list(values.values()), field.step(form)),
                judged=judged,
            )
        )
    corrected = iter(together([a.found for a in found if a.judged]))
    return [replace(a, found=next(corrected)) if a.judged else a for a in found]
