"""Does a claim of the paper hold in a run? The rules, as pure functions of effects with intervals.

Every rule has three answers. "Holds" and "does not hold" need intervals that exclude the other; everything else
"cannot be told", which says nothing against the claim. The effects of one claim are fixed beforehand (sizes and pairs
that the paper names, levels chosen on dev), so that nothing is picked by its result, and their intervals hold together.
An interval reaches over every value that leaving out one training draw gives, so that no single draw turns a word.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sftknow.report.words import ALPHA, LEAST_DRAWS
from sftknow.stats import student_reach

Word = Literal["holds", "does not hold", "cannot be told"]

MARGIN = 0.01
"""Accuracies nearer than this (one point) are the same for all practical ends."""
MARGIN_NATS = 0.02
LEAST_SIZE = 240
"""Training facts below which phenomenon 2, which is about much data, is not judged."""
LEAST_MODELS = 8
"""Trainings that a rank correlation needs before it says anything."""


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
    without: tuple[float, float] | None = None
    """Least and largest value with one draw left out."""
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


def together(effects: Sequence[Effect], level: float = 1 - ALPHA) -> tuple[Effect, ...]:
    """The effects with intervals that hold all at once with the given probability (Bonferroni)."""
    probability = 1 - (1 - level) / max(1, len(effects))
    done = []
    for e in effects:
        if math.isfinite(e.stderr):
            half = student_reach(probability, e.freedom) * e.stderr
            least, largest = e.without or (e.value, e.value)
            e = replace(e, low=min(least, e.value - half), high=max(largest, e.value + half))
        done.append(e)
    return tuple(done)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A word, and what stands behind it."""

    word: Word
    why: str
    """One sentence."""
    effects: tuple[Effect, ...] = ()


def _untold(why: str, effects: Sequence[Effect] = ()) -> Verdict:
    return Verdict(word="cannot be told", why=why, effects=tuple(effects))


def _holds(why: str, effects: Sequence[Effect]) -> Verdict:
    return Verdict(word="holds", why=why, effects=tuple(effects))


def _fails(why: str, effects: Sequence[Effect]) -> Verdict:
    return Verdict(word="does not hold", why=why, effects=tuple(effects))


def _powerless(effects: Sequence[Effect], least: int, what: str) -> Verdict | None:
    if not effects:
        return _untold(f"The run has no {what}.")
    if min(e.seeds for e in effects) < least:
        return _untold(
            "There is a single training draw of some trainings, so the luck of the draw cannot be told from an effect.",
            effects,
        )
    return None


def _names(effects: Sequence[Effect]) -> str:
    shown = [e.name for e in effects[:3]]
    return "; ".join(shown) + (f"; and {len(effects) - 3} more" if len(effects) > 3 else "")


def mean_effect(name: str, effects: Sequence[Effect]) -> Effect:
    """The mean of some effects, with an error that holds however they go together: the mean of theirs."""

    def mean(values: Iterable[float]) -> float:
        return sum(values) / len(effects)

    without = [e.without or (e.value, e.value) for e in effects]
    return Effect(
        name=name,
        value=mean(e.value for e in effects),
        stderr=mean(e.stderr for e in effects),
        freedom=min(e.freedom for e in effects),
        seeds=min(e.seeds for e in effects),
        without=(mean(low for low, _ in without), mean(high for _, high in without)),
    )


def peak(effects: Sequence[Effect], overall: Effect | None = None, least_seeds: int = LEAST_DRAWS) -> Verdict:
    """Phenomenon 1: more data than 240 facts does not help and risks harm, whatever the data.

    Holds where no larger training is surely better and they are surely worse in the mean, or one is while none is
    better by a point. Does not hold where a larger training is surely better. The mean is there because the paper's own
    models do not all do worse: in its Table 4a 1,920 facts of bucket 4 beat 240 by 1.25 points.

    Args:
        effects: accuracy with each larger size less that with the reference size, for every kind of data.
        overall: their mean.
        least_seeds: training draws needed.
    """
    weak = _powerless(
        effects, least_seeds, "training on more than 240 facts beside one on at most 240 of the same kind"
    )
    if weak:
        return weak
    better, worse = [e for e in effects if e.above], [e for e in effects if e.below]
    if better:
        return _fails(f"More data helped: {_names(better)}.", effects)
    every = [*effects, overall] if overall else effects
    if overall and overall.below:
        ahead = [e for e in effects if e.value > 0]
        but = f"; ahead, but not surely: {_names(ahead)}" if ahead else ""
        return _holds(f"Larger trainings are surely worse in the mean, and none is surely better{but}.", every)
    if worse and all(e.high < MARGIN for e in effects):
        return _holds(f"No larger training is a point better, and this is surely worse: {_names(worse)}.", every)
    if all(e.within(MARGIN) for e in effects):
        return _fails("More data neither helps nor harms by a point: there is no peak.", effects)
    wide = "some larger trainings may still be better by a point" if worse else "no larger training is surely worse"
    return _untold(f"The intervals are too wide: {wide}.", every)


def matters(effects: Sequence[Effect], size: int, least_seeds: int = LEAST_DRAWS) -> Verdict:
    """Phenomenon 2: at a large size the mastery of the training data decides, and unknown facts do worst.

    Holds where bucket 0 is surely worse than bucket 2 (the paper's own pair) and surely better than no other. Does not
    hold where bucket 0 is surely better than another bucket, or where all are within a point.

    Args:
        effects: accuracy with bucket 0 less that with every other bucket, which `Effect.bucket` names.
        size: training facts.
        least_seeds: training draws needed.
    """
    weak = _powerless(effects, least_seeds, "bucket 0 beside another bucket at one size")
    if weak:
        return weak
    if size < LEAST_SIZE:
        return _untold(f"The claim is about much data; the largest size that buckets share is {size:,} facts.", effects)
    better = [e for e in effects if e.above]
    main = [e for e in effects if e.bucket == 2] or list(effects)
    if better:
        return _fails(f"Bucket 0 did better: {_names(better)}.", effects)
    if all(e.below for e in main):
        return _holds(
            f"At {size:,} facts bucket 0 is surely worse, and better than no other bucket: {_names(main)}.", effects
        )
    if all(e.within(MARGIN) for e in effects):
        return _fails(f"At {size:,} facts all buckets are within a point.", effects)
    return _untold(f"At {size:,} facts the intervals of the differences reach over zero.", effects)


def valley(legs: Mapping[str, tuple[Effect, Effect]]) -> Verdict:
    """Token finding 1: the divergence falls first and rises then, whatever the data.

    Holds where both legs are sure for every kind of data. Does not hold where a leg surely goes the other way.

    Args:
        legs: for each kind of data, divergence at the reference size less that at the smallest, and at the largest
            less that at the reference.
    """
    effects = [e for pair in legs.values() for e in pair]
    weak = _powerless(
        effects,
        LEAST_DRAWS,
        "kind of data with three sizes, one of them at most 240 facts, one below and one above that",
    )
    if weak:
        return weak
    wrong = [e for first, then in legs.values() for e in ((first,) * first.above + (then,) * then.below)]
    if wrong:
        return _fails(f"It goes the other way: {_names(wrong)}.", effects)
    sure = [source for source, (first, then) in legs.items() if first.below and then.above]
    if len(sure) == len(legs):
        return _holds("It falls and rises again with every kind of data.", effects)
    if all(e.within(MARGIN_NATS) for e in effects):
        return _fails("The divergence hardly depends on the size.", effects)
    return _untold(f"Both legs are sure with {len(sure)} of {len(legs)} kinds of data.", effects)


def related(rho: float, low: float | None, high: float | None, count: int, draws: int) -> Verdict:
    """Token finding 2: the further the first token moves, the fewer of the best known facts are answered.

    Args:
        rho: rank correlation of divergence and bucket-4 accuracy over trainings.
        low: lower end of its 95 % interval.
        high: upper end.
        count: trainings.
        draws: the fewest training draws behind one of them.
    """
    if count < LEAST_MODELS or low is None or high is None:
        return _untold(f"{count} trainings are too few for a rank correlation; {LEAST_MODELS} are needed.")
    effect = Effect(name="rank correlation", value=rho, stderr=float("nan"), seeds=count, low=low, high=high)
    if draws < LEAST_DRAWS:
        return _untold("There is a single training draw of some trainings, and one seed could turn the word.", [effect])
    if effect.below:
        return _holds("The rank correlation is surely below zero.", [effect])
    if effect.above:
        return _fails("The rank correlation is surely above zero.", [effect])
    return _untold("The interval of the rank correlation reaches over zero.", (effect,))


def unnecessary(effects: Sequence[Effect], mean: Effect | None) -> Verdict:
    """Parameter finding 1: setting the most changed elements back improves a model, whatever it was trained on.

    Holds where the mean gain over the restored trainings is surely above zero and none of them surely loses. Does not
    hold where one surely loses, or where the mean is surely under a point.

    Args:
        effects: accuracy with the chosen level restored less that without, for each restored training.
        mean: of all of them, with trainings as the units; its `seeds` are their number.
    """
    weak = _untold_mean(effects, mean, "restored model beside the same model unrestored")
    if weak or mean is None:
        return weak or _untold("")
    every = [*effects, mean]
    worse = [e for e in effects if e.below and e.seeds >= LEAST_DRAWS]
    if worse:
        return _fails(f"Restoring did harm: {_names(worse)}.", every)
    if mean.above:
        return _holds(f"Restoring gains on average over {mean.seeds} trainings, and none surely loses.", every)
    if mean.high < MARGIN:
        return _fails("On average over the restored trainings it gains no point.", every)
    return _untold(f"The interval of the mean gain over {mean.seeds} trainings reaches over zero.", every)


def _untold_mean(effects: Sequence[Effect], mean: Effect | None, what: str) -> Verdict | None:
    """Where a mean over trainings says nothing: without any, or with a single one of a single draw."""
    if not effects or mean is None:
        return _untold(f"The run has no {what}.", effects)
    if mean.seeds < LEAST_DRAWS:
        return _untold("A single training was restored, and one seed could turn the word.", [*effects, mean])
    return None


def ranking_matters(effects: Sequence[Effect]) -> Verdict:
    """Is it the ranking that helps, and not any step of the same size back towards the base?

    Holds where restoring by relative change surely gains more than every control. Does not hold where a control surely
    gains more, or where the ranking is surely not a point better than one.

    Args:
        effects: gain by relative change less that of each control, means over restored trainings; `Effect.seeds` is
            the number of these.
    """
    if not effects:
        return _untold("The run has no controls beside a restored model.")
    if min(e.seeds for e in effects) < LEAST_DRAWS:
        return _untold("A single training was restored, and one seed could turn the word.", effects)
    if worse := [e for e in effects if e.below]:
        return _fails(f"Without the ranking it gains more: {_names(worse)}.", effects)
    if all(e.above for e in effects):
        return _holds("The ranking gains more than every control.", effects)
    if equal := [e for e in effects if e.high < MARGIN]:
        return _fails(f"The ranking is not a point better: {_names(equal)}.", effects)
    return _untold("The intervals of the differences from the controls reach over zero.", effects)


def more_affected(by_size: Sequence[Effect], by_bucket: Sequence[Effect]) -> Verdict:
    """Parameter finding 2: restoring gains more after larger trainings and after facts that were known less.

    Holds where both contrasts are there and every one is surely above zero. Does not hold where one is surely below.

    Args:
        by_size: gain after the largest training less gain after the smallest, of the same kind of data.
        by_bucket: gain after the lowest bucket less gain after the highest, at the same size.
    """
    effects = [*by_size, *by_bucket]
    weak = _powerless(effects, LEAST_DRAWS, "two restored trainings that differ in size or bucket alone")
    if weak:
        return weak
    wrong = [e for e in effects if e.below]
    if wrong:
        return _fails(f"It is the other way round: {_names(wrong)}.", effects)
    if by_size and by_bucket and all(e.above for e in effects):
        return _holds("Restoring gains more in every contrast.", effects)
    lacking = "" if by_size and by_bucket else f" No {'bucket' if by_size else 'size'} contrast was restored."
    sure = sum(e.above for e in effects)
    return _untold(f"{sure} of {len(effects)} contrasts are surely as the paper says.{lacking}", effects)
