"""Deciding early: a fact is asked until its bucket is sure. The paper's grading (3.1, 3.3) asks all of every fact.

All statements of a fact are asked in rounds, a few continuations of each, so that every round is a small picture of the
whole. After a round a fact is done if the whole grading would put it into the bucket where it stands now with at least
the probability ``certainty``. What the rest of the tries would give is beta-binomial: the rate has the prior
Beta(0.1, 0.5), in which half of the facts are all but unknown, and the tries so far.

The error: of facts spread like the prior at most 1 - ``certainty`` are put elsewhere than by the whole grading, however
often one looks, since a Bayesian's probability does not change with the reason to stop. Statements of one fact are not
alike, which makes it less: each has its share in every round. A fact of a given rate has no such bound: one with a
single hit in 210 tries is often taken for one with none, as another seed of the whole grading would take it.

A continuation's random numbers belong to it (`sftknow.grading.sampling.uniforms`): a fact that is asked to the end has
the tries of the whole grading.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from sftknow.grading.mastery import grade
from sftknow.grading.sampling import Sampler
from sftknow.grading.shards import Engine, Shard, finished, plan_shards, sample_shards, unfinished
from sftknow.records import Fact, GradedFact, SampleTally, SamplingPolicy
from sftknow.stats import beta_binomial, bucket_of

SHARES = (0.3, 0.6, 1.0)
"""Of each statement's continuations, drawn by the end of each round. More rounds read the statements more often."""
PRIOR = (0.1, 0.5)

Statements = Sequence[tuple[Fact, Sequence[str]]]


def rounds(samples: int) -> list[tuple[int, int]]:
    """The first continuation of each round and the first of the next."""
    ends = sorted({math.ceil(round(share * samples, 9)) for share in SHARES})
    return list(zip([0, *ends[:-1]], ends, strict=True))


@cache
def sure(hits: int, tries: int, whole: int, certainty: float) -> bool:
    """Whether a fact's bucket is sure.

    Args:
        hits: so far.
        tries: so far, at least one.
        whole: tries of the whole grading.
        certainty: see the module.
    """
    here, more = bucket_of(hits, tries), whole - tries
    chances = beta_binomial(more, PRIOR[0] + hits, PRIOR[1] + tries - hits)
    stays = sum(chance for rest, chance in enumerate(chances) if bucket_of(hits + rest, whole) == here)
    return bool(stays >= certainty)


@dataclass(kw_only=True)
class EarlyGrading:
    """Grading in rounds; every round has shards of its own, so that a second start goes on. See `plan_shards`."""

    statements: Statements
    policy: SamplingPolicy
    folder: Path
    certainty: float
    shard_size: int
    keep_texts: bool
    templates: Sequence[int] | None
    identity: str
    _shards: list[list[Shard]] = field(default_factory=list)
    _policies: list[SamplingPolicy] = field(default_factory=list)

    def sample(self, load: Callable[[Sequence[Shard]], Sampler | Engine]) -> None:
        """Ask until every fact is sure.

        Args:
            load: gives the sampler, told what is left of a round; called once, and not at all where all is done.
        """
        sampler = None
        asked: Statements = sorted(self.statements, key=lambda pair: pair[0].id)
        totals: dict[str, tuple[int, int]] = {}
        plan = rounds(self.policy.samples)
        for number, (first, stop) in enumerate(plan, 1):
            policy = replace(self.policy, samples=stop - first)
            shards = plan_shards(
                asked,
                policy,
                self.folder / f"round-{number}",
                shard_size=self.shard_size,
                keep_texts=self.keep_texts,
                templates=self.templates,
                identity=self.identity,
                first=first,
            )
            left = unfinished(shards, policy, keep_texts=self.keep_texts)
            if left:
                sampler = sampler or load(left)
                title = f"grading, round {number} of at most {len(plan)}"
                sample_shards(shards, sampler, policy, keep_texts=self.keep_texts, left=left, title=title)
            self._shards.append(shards)
            self._policies.append(policy)
            asked = self._undecided(shards, policy, totals)
            if not asked:
                return

    def _undecided(
        self, shards: Sequence[Shard], policy: SamplingPolicy, totals: dict[str, tuple[int, int]]
    ) -> Statements:
        asked = []
        for shard, tallies in finished(shards, policy, self.keep_texts):
            wholes: dict[str, int] = {}
            for tally in tallies:
                hits, tries = totals.get(tally.fact_id, (0, 0))
                totals[tally.fact_id] = hits + tally.hits, tries + tally.tries
                wholes[tally.fact_id] = wholes.get(tally.fact_id, 0) + self.policy.samples
            asked += [
                (fact, texts)
                for fact, texts in shard.statements
                if not sure(*totals[fact.id], wholes[fact.id], self.certainty)
            ]
        return asked

    def facts(self) -> Iterator[GradedFact]:
        """The facts with their mastery, over as many tries as each had, in the order of their ids."""
        for fact, tallies in self._together():
            yield GradedFact(fact=fact, mastery=grade(fact.id, tallies))

    def tallies(self) -> Iterator[SampleTally]:
        """With continuations, where they are kept, in the order of fact id and template."""
        for _, tallies in self._together():
            yield from tallies

    def _together(self) -> Iterator[tuple[Fact, list[SampleTally]]]:
        """Each fact with what all its rounds gave; a shard of each round is in memory at a time."""
        first, *later = [self._by_fact(*each) for each in zip(self._shards, self._policies, strict=True)]
        ahead = [next(each, None) for each in later]
        for fact, tallies in first:
            for place, each in enumerate(later):
                there = ahead[place]
                if there is not None and there[0].id == fact.id:
                    tallies = [_added(*pair) for pair in zip(tallies, there[1], strict=True)]
                    ahead[place] = next(each, None)
            yield fact, tallies

    def _by_fact(self, shards: Sequence[Shard], policy: SamplingPolicy) -> Iterator[tuple[Fact, list[SampleTally]]]:
        for shard, tallies in finished(shards, policy, self.keep_texts):
            by_fact: dict[str, list[SampleTally]] = {}
            for tally in tallies:
                by_fact.setdefault(tally.fact_id, []).append(tally)
            for fact in shard.facts:
                yield fact, by_fact[fact.id]


def _added(one: SampleTally, other: SampleTally) -> SampleTally:
    """Two tallies of one statement."""
    texts = None if one.texts is None or other.texts is None else one.texts + other.texts
    return replace(one, tries=one.tries + other.tries, hits=one.hits + other.hits, texts=texts)
