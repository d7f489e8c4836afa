"""What an arena measured, sorted: one set of values for each method, kind of training, level and seed.

Everything that the arena says is worked out from these values; nothing here touches a disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from sftknow.artifacts.arena import BASE, NOTHING, Entry
from sftknow.report import cells

PLAIN, INTERPOLATION = "plain", "interpolation"
LEARNED = "learned"
FORMS = ("statements", "questions")
"""How what was known is asked: the headline first."""
ANSWERS = "answers"
"""The paper's measure: questions of all five buckets."""

Values = Mapping[str, float]
"""Measures of one model, shares between 0 and 1 where they are accuracies: ``learned`` (training facts in wording not
trained on, less the base's), ``statements`` and ``questions`` (mean accuracy over buckets 1 to 4), ``answers``
(questions, mean over buckets 0 to 4), ``ood``, ``kl``, ``changed``, ``distance``, ``time`` and ``memory`` (times plain
fine-tuning's). What was not measured is not there."""


class Method(NamedTuple):
    """A way to train and what is done afterwards."""

    strategy: str
    after: str = NOTHING

    @property
    def title(self) -> str:
        """Such as ``l2-sp`` or ``plain + relative``."""
        return self.strategy if self.after == NOTHING else f"{self.strategy} + {self.after}"


class Kind(NamedTuple):
    """What was trained on: facts of one bucket or of all (None), and how many."""

    bucket: int | None
    size: int

    @property
    def title(self) -> str:
        """Such as ``bucket 2, 240 facts``."""
        source = "mixed" if self.bucket is None else f"b{self.bucket}"
        return cells.Kind(source=source, size=self.size, all=False).title


Seeds = dict[int, Values]
"""Values by seed."""
Looks = tuple[object, ...]
"""What two models share that are the same for all that was measured."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """All that an arena measured."""

    entries: tuple[Entry, ...]
    """Of trained models."""
    bases: tuple[Entry, ...]
    """Of the base: one for all, or one for each training draw, whose facts it was asked."""

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Field:
        """Sort the entries of a run into those of the base and the others."""
        found = tuple(entries)
        return cls(
            entries=tuple(e for e in found if e.strategy != BASE), bases=tuple(e for e in found if e.strategy == BASE)
        )

    @cached_property
    def levels(self) -> dict[Method, dict[Kind, dict[str | None, Seeds]]]:
        """Values of every level; the draws of a random method are one, by their mean."""
        drawn: dict[Method, dict[Kind, dict[str | None, dict[int, list[Values]]]]] = {}
        for e in self.entries:
            kinds = drawn.setdefault(Method(e.strategy, e.after), {}).setdefault(Kind(e.bucket, e.size), {})
            kinds.setdefault(e.level, {}).setdefault(e.seed, []).append(values_of(e, self.base_scores(e)))
        return {
            m: {k: {level: _means(s) for level, s in ls.items()} for k, ls in ks.items()} for m, ks in drawn.items()
        }

    @cached_property
    def chosen(self) -> dict[Method, dict[Kind, Seeds]]:
        """Values at the level that was chosen on dev, for each method."""
        drawn: dict[Method, dict[Kind, dict[int, list[Values]]]] = {}
        for e in self.entries:
            if e.chosen:
                seeds = drawn.setdefault(Method(e.strategy, e.after), {}).setdefault(Kind(e.bucket, e.size), {})
                seeds.setdefault(e.seed, []).append(values_of(e, self.base_scores(e)))
        return {method: {kind: _means(seeds) for kind, seeds in kinds.items()} for method, kinds in drawn.items()}

    def at(self, method: Method, kind: Kind) -> Seeds:
        """Values of a method at its chosen level, by seed; empty where there are none."""
        return self.chosen.get(method, {}).get(kind, {})

    @cached_property
    def base(self) -> Seeds:
        """The base's values, by seed, for seeds that anything was trained with."""
        return {e.seed: values_of(base, self.base_scores(e)) for e in self.entries for base in self.bases[:1]}

    def base_scores(self, entry: Entry) -> Mapping[str, tuple[int, int]]:
        """What the base answered to the questions of an entry: those of its own training facts where they are told."""
        draw = (entry.bucket, entry.size, entry.seed)
        own = [base.scores for base in self.bases if (base.bucket, base.size, base.seed) == draw]
        return {name: score for scores in (*(b.scores for b in self.bases[:1]), *own) for name, score in scores.items()}

    @cached_property
    def kinds(self) -> tuple[Kind, ...]:
        """What plain fine-tuning was trained on beside at least one strategy; on anything, where there is none."""
        plain = set(self.chosen.get(Method(PLAIN), {}))
        others = {kind for method, kinds in self.chosen.items() if method.strategy != PLAIN for kind in kinds}
        return tuple(sorted(plain & others or plain, key=kind_order))

    @property
    def every_kind(self) -> tuple[Kind, ...]:
        """All that plain fine-tuning was trained on."""
        return tuple(sorted(self.chosen.get(Method(PLAIN), {}), key=kind_order))

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """All seeds of the arena."""
        return tuple(sorted({e.seed for e in self.entries}))

    @cached_property
    def _looks(self) -> dict[Method, dict[tuple[Kind, int], Looks]]:
        found: dict[Method, dict[tuple[Kind, int], Looks]] = {}
        for e in self.entries:
            if e.chosen:
                looks = (e.changed, e.distance, e.kl, tuple(sorted(e.scores.items())))
                found.setdefault(Method(e.strategy, e.after), {})[Kind(e.bucket, e.size), e.seed] = looks
        return found

    def same(self, method: Method, other: Method) -> int:
        """Models of a method that equal another's of the same draw in weights and in all that was measured.

        Weights are equal where the share that differs from the base's bits, the distance from the base, the divergence
        and every score are.
        """
        there = self._looks.get(other, {})
        return sum(there.get(place) == looks for place, looks in self._looks.get(method, {}).items())

    def idle(self, method: Method) -> int:
        """Models of a method whose weights or whose scores are the base's."""

        def equal(e: Entry) -> bool:
            base = self.base_scores(e)
            return e.changed == 0 or all(base.get(name) == score for name, score in e.scores.items())

        return sum(e.chosen and Method(e.strategy, e.after) == method and equal(e) for e in self.entries)

    def count(self, method: Method) -> int:
        """Models of a method."""
        return len(self._looks.get(method, {}))

    def step(self, form: str) -> float:
        """What one question more changes in the kept knowledge: no spread over seeds is taken for less."""
        asked = [a for b in self.bases[:1] for _, a in _asked(b.scores, form, range(1, 5))]
        return 1 / (len(asked) * max(asked)) if asked else 0.0


def kind_order(kind: Kind) -> tuple[bool, int, int]:
    """Mixed draws first, then buckets, by size."""
    return kind.bucket is not None, kind.bucket or 0, kind.size


def _asked(scores: Mapping[str, tuple[int, int]], form: str, buckets: Iterable[int]) -> list[tuple[int, int]]:
    names = [f"{'kept' if bucket else 'new'}/{form}/{bucket}" for bucket in buckets]
    return [scores[name] for name in names if name in scores and scores[name][1]]


def values_of(entry: Entry, base: Mapping[str, tuple[int, int]]) -> Values:
    """The measures of an entry; those for which scores are lacking are left out.

    Args:
        entry: a trained model's, or the base's.
        base: scores of the base on the same questions.
    """
    values = {"changed": entry.changed, "distance": entry.distance}
    here, there = entry.scores.get(LEARNED, (0, 0)), base.get(LEARNED, (0, 0))
    if entry.strategy == BASE:
        values[LEARNED] = 0.0
    elif here[1] and there[1]:
        values[LEARNED] = here[0] / here[1] - there[0] / there[1]
    for name, form, buckets in (*((form, form, range(1, 5)) for form in FORMS), (ANSWERS, "questions", range(5))):
        found = _asked(entry.scores, form, buckets)
        if found and len(found) == len(_asked(base, form, buckets)):
            values[name] = sum(right / asked for right, asked in found) / len(found)
    right, asked = entry.scores.get("ood", (0, 0))
    values |= {"ood": right / asked} if asked else {}
    optional = {"kl": entry.kl, "time": entry.relative_seconds, "memory": entry.relative_peak}
    return values | {name: value for name, value in optional.items() if value is not None}


def mixed(values: Sequence[Values], weights: Sequence[float] | None = None) -> Values:
    """The weighted mean of some models' values, measure by measure; of those that all have."""
    shared = set.intersection(*(set(v) for v in values))
    return {name: float(np.average([v[name] for v in values], weights=weights)) for name in sorted(shared)}


def _means(seeds: Mapping[int, Sequence[Values]]) -> Seeds:
    return {seed: mixed(values) for seed, values in seeds.items()}
