"""Ask two models the same statements, block by block, until enough is known; every block is on disk when it is done."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sftknow.answers import Matcher
from sftknow.artifacts.checks import Finding
from sftknow.artifacts.files import digest
from sftknow.checking.kept import Floats, Hits, kept_share, plain_already
from sftknow.checking.options import AskingOptions, CheckOptions
from sftknow.errors import ModelError
from sftknow.facts.prompts import Statements
from sftknow.facts.topics import Topic
from sftknow.grading.estimate import seconds_each
from sftknow.grading.options import GradingOptions
from sftknow.grading.sampling import Sampler, SampleRequest
from sftknow.grading.shards import Shard, kept_tallies, plan_shards, read_shard, unfinished, write_shard
from sftknow.models.chat import chat_text, has_template
from sftknow.models.limits import most_positions
from sftknow.models.loading import load_config
from sftknow.models.resolving import BaseModel
from sftknow.progress import progress
from sftknow.records import Fact, SampleTally, SamplingPolicy
from sftknow.run.time_limit import OutOfTimeError, TimedSampler, TimeLimit

Say = Callable[[str], object]

RULE = GradingOptions().rule
"""What a hit is: the paper's."""

FOR_RETRY = 0.2
"""Share of the time that is kept for asking lost facts again and for the question form."""
_AGAIN = 8
"""Lost facts that are asked again at once: what a kill can cost."""
_SHOTS, _TRIES = 4, 10
"""Solved examples before a lost fact's statement, and continuations drawn of each."""


@dataclass
class Side:
    """One of the two models."""

    model: BaseModel
    sampler: Sampler
    tokenizer: Any
    work: Path
    hits: dict[str, dict[int, int]] = field(default_factory=dict)
    """By fact, by template."""
    said: dict[str, list[str]] = field(default_factory=dict)
    """Answers to a fact's question, by fact."""

    @property
    def chat(self) -> bool:
        """Whether it has a chat template, in which it is asked questions."""
        return has_template(self.tokenizer)

    def question(self, fact: Fact) -> str:
        """The question's text as the model is shown it, without BOS."""
        if not self.chat:
            return f"Question: {fact.question}\nAnswer:"
        return chat_text(self.tokenizer, [{"role": "user", "content": fact.question}])


class Asking:
    """The asking of one check. Every block is a shard on disk: a second start takes what is there."""

    def __init__(
        self,
        sides: Sequence[Side],
        facts: Sequence[Fact],
        topics: Mapping[str, Topic],
        options: AskingOptions,
        work: Path,
        say: Say,
    ) -> None:
        self.sides, self.facts, self.topics, self.options, self.say = sides, facts, topics, options, say
        self.asked: list[Fact] = []
        self.limit = TimeLimit(work / "time.json", options.minutes)
        self.drawn = 0
        """Blocks that were asked in this start."""
        self._until: float | None = None

    @property
    def seconds(self) -> float:
        """Spent in this start and in earlier ones."""
        return self.limit.seconds

    def _over(self) -> bool:
        return self._until is not None and self.limit.left(self._until) < 0

    @contextmanager
    def until(self, share: float) -> Iterator[None]:
        """Leave what is asked meanwhile, with OutOfTimeError, when that share of the time is used."""
        self._until = share
        try:
            yield
        finally:
            self._until = None

    @property
    def policy(self) -> SamplingPolicy:
        options = self.options
        return SamplingPolicy(
            samples=options.samples,
            temperature=options.temperature,
            max_new_tokens=options.max_new_tokens,
            seed=options.seed,
        )

    def statements(self, options: CheckOptions) -> None:
        """Ask statements until the interval is narrow enough, or the time is used."""
        most = max(len(self.topics[fact.topic].templates) for fact in self.facts)
        rounds = -(-most // options.templates)
        work = [(r, start) for r in range(rounds) for start in range(0, len(self.facts), options.block)]
        total = 2 * sum(len(self.topics[fact.topic].templates) for fact in self.facts)
        self.say(
            f"asking both models up to {len(self.facts):,} facts, {options.templates} statements a round, until what "
            f"is kept is known to ± {options.precision:g} points, at most {options.minutes:g} min"
        )
        share, took = 1 - FOR_RETRY, 0.0
        with progress(total, "facts", unit="statements", steady=True) as bar:
            for place, (number, start) in enumerate(work):
                if number == 1 and start == 0 and kept_share(self.hits()) is None:
                    return  # the base completed none of all the facts: other statements of them would not help
                block = self.facts[start : start + options.block]
                if place == 0:
                    self.refuse_days(block)
                elif self.limit.ends("statements", place, share=share, needs=took):
                    return
                began = self.seconds
                try:
                    with self.until(share if place else 1.0):
                        for side in self.sides:
                            for shard in self.shards(side, block, number):
                                bar.update(self.ask(side, shard, bar.update))
                except OutOfTimeError:
                    if place == 0:
                        raise
                    self.limit.end("statements", place)
                    return
                took = self.seconds - began
                if number == 0:
                    self.asked.extend(block)
                self.limit.reach("statements", place + 1)
                hits = self.hits()
                kept = kept_share(hits)
                if kept is not None:
                    reach = f" ± {100 * kept.reach:.1f}" if math.isfinite(kept.reach) else ""
                    bar.set_postfix_str(f"kept {100 * kept.share:.1f}{reach} %")
                    if 100 * kept.reach <= options.precision or plain_already(hits, place + 1, options.margin / 100):
                        return

    def refuse_days(self, block: Sequence[Fact], times: float = 1, what: str = "") -> None:
        """Refuse what would take far longer than was asked for, after a first few statements.

        Args:
            block: the first facts.
            times: how often both models, or others like them, are asked so many facts at least.
            what: that is, in words.
        """
        seconds = 0.0
        requests = [
            SampleRequest(
                fact_id=fact.id,
                template=0,
                prompt=Statements(self.topics[fact.topic], fact.subject)[0],
                answers=fact.answers,
            )
            for fact in block
        ]
        for side in self.sides:
            if unfinished(self.shards(side, block, 0), self.policy):
                seconds += seconds_each(side.sampler, requests, self.policy, seconds=5.0, statements=16)
        minutes = seconds / 60 * len(block) * self.options.templates * times
        if minutes > self.options.minutes:
            raise ModelError(
                f"asking {what or f'the first {len(block)} facts'} would take about {minutes:,.0f} min here; give "
                f"--minutes {2 * minutes:.0f}, a smaller --block, or a GPU"
            )

    def shards(self, side: Side, facts: Sequence[Fact], number: int) -> list[Shard]:
        """The shards of one round over some facts: one for each number of templates that their topics have."""
        shards = []
        for count in sorted({len(self.topics[fact.topic].templates) for fact in facts}):
            order = random.Random(f"{self.options.seed}/{count}").sample(range(count), count)
            chosen = order[number * self.options.templates :][: self.options.templates]
            if chosen:
                same = [fact for fact in facts if len(self.topics[fact.topic].templates) == count]
                shards += self._plan(
                    side, [(f, Statements(self.topics[f.topic], f.subject)) for f in same], "blocks", chosen
                )
        return shards

    def _plan(
        self,
        side: Side,
        statements: Sequence[tuple[Fact, Sequence[str]]],
        name: str,
        templates: Sequence[int] | None = None,
        policy: SamplingPolicy | None = None,
    ) -> list[Shard]:
        return plan_shards(
            statements,
            policy or self.policy,
            side.work / name / digest([fact.id for fact, _ in statements])[:16],
            shard_size=self.options.block,
            keep_texts=policy is not None,
            templates=templates,
        )

    def ask(self, side: Side, shard: Shard, on_done: Callable[[float], object]) -> int:
        """Ask one block of statements, note its hits; returns what counts as done without having been asked now."""
        tallies = read_shard(shard, self.policy, keep_texts=False)
        known = tallies is not None
        if tallies is None:
            tallies = self._sampled(side, shard, self.policy, on_done)
        for tally in tallies:
            side.hits.setdefault(tally.fact_id, {})[tally.template] = tally.hits
        return shard.size if known else 0

    def _sampled(
        self,
        side: Side,
        shard: Shard,
        policy: SamplingPolicy,
        on_done: Callable[[float], object] = lambda count: None,
        *,
        keep_texts: bool = False,
    ) -> list[SampleTally]:
        """Ask a shard and write it. Raises OutOfTimeError where the time of `until` is over before."""
        words = (
            f"{self.limit.minutes:g} min were over before enough was asked; give more --minutes (what was asked is "
            "kept), a smaller --block, or a GPU"
        )
        sampler = TimedSampler(side.sampler, self._over, words)
        tallies = sampler.sample(
            shard.requests, policy, keep_texts=keep_texts, on_done=lambda count: (on_done(count), None)[1]
        )
        write_shard(shard, tallies)
        self.drawn += 1
        return tallies

    def hits(self) -> Hits:
        """What is known so far, of the facts that both models were asked."""
        one, two = self.sides
        return self.hits_of(one, two, self.asked)

    def hits_of(self, one: Side, two: Side, facts: Sequence[Fact]) -> Hits:
        """What two models made of these facts, in the statements that both were asked."""
        most = max(len(self.topics[fact.topic].templates) for fact in self.facts)
        before, after = (np.zeros((len(facts), most), dtype=np.int64) for _ in range(2))
        tries = np.zeros_like(before)
        for row, fact in enumerate(facts):
            for template in one.hits[fact.id].keys() & two.hits[fact.id].keys():
                before[row, template] = one.hits[fact.id][template]
                after[row, template] = two.hits[fact.id][template]
                tries[row, template] = self.options.samples
        return Hits(before=before, after=after, tries=tries)

    def questions(self, side: Side, facts: Sequence[Fact]) -> dict[str, list[str]]:
        """What a model says to the questions, by fact; a question is asked once."""
        new = [(fact, (side.question(fact),)) for fact in facts if fact.id not in side.said]
        side.said |= self.texts(side, new, "questions", self.options.samples)
        return {fact.id: side.said[fact.id] for fact in facts}

    def texts(
        self,
        side: Side,
        statements: Sequence[tuple[Fact, Sequence[str]]],
        name: str,
        samples: int,
        **sampling: Any,
    ) -> dict[str, list[str]]:
        """All that a model says after these texts, by fact; ``sampling`` are further fields of `SamplingPolicy`."""
        if not statements:
            return {}
        policy = replace(self.policy, samples=samples, **sampling)
        shards = self._plan(side, statements, name, policy=policy)
        for shard in unfinished(shards, policy, keep_texts=True):
            self._sampled(side, shard, policy, keep_texts=True)
        said: dict[str, list[str]] = {}
        for tally in kept_tallies(shards, policy):
            said.setdefault(tally.fact_id, []).extend(tally.texts or ())
        return said

    def answers(self, facts: Sequence[Fact], share: float) -> Floats:
        """Rate of right answers to the questions of the facts that were asked, shape [2, facts]; NaN beyond the time.

        Args:
            facts: the first of those that were asked.
            share: of the time that may be used by then.
        """
        right = np.full((2, len(self.asked)), np.nan)
        for start, some in self._in_time(facts, self.options.block, "questions", share):
            for row, side in enumerate(self.sides):
                said = self.questions(side, some)
                for column, fact in enumerate(some, start):
                    matcher = Matcher(fact.answers, RULE)
                    right[row, column] = np.mean([matcher.contains(text) for text in said[fact.id]])
        return right

    def _in_time(
        self, facts: Sequence[Fact], size: int, what: str, share: float
    ) -> Iterator[tuple[int, Sequence[Fact]]]:
        """Slices of facts with the place of their first, until they or the time are over; draws a bar."""
        took = 0.0
        with progress(len(facts), what, unit="facts") as bar:
            for start in range(0, len(facts), size):
                if self.limit.ends(what, start, share=share, needs=took):
                    return
                began, some = self.seconds, facts[start : start + size]
                yield start, some
                bar.update(len(some))
                took = self.seconds - began
                self.limit.reach(what, start + len(some))

    def again(self, lost: Sequence[int], hits: Hits) -> dict[str, tuple[Finding, str]]:
        """Ask facts again that the tuned model lost: with solved examples, as questions, in every statement.

        What the time does not suffice for is left out.
        """
        found: dict[str, tuple[Finding, str]] = {}
        for start, some in self._in_time([self.asked[row] for row in lost], _AGAIN, "asked again", 1.0):
            found |= self._again(lost[start : start + len(some)], hits)
        return found

    def _again(self, lost: Sequence[int], hits: Hits) -> dict[str, tuple[Finding, str]]:
        tuned = self.sides[1]
        facts = [self.asked[row] for row in lost]
        solved = [i for i in range(len(self.asked)) if hits.before[i].sum() and hits.after[i].sum()]
        positions = most_positions(load_config(tuned.model.ref))
        shots: list[tuple[Fact, Sequence[str]]] = []
        for row in lost:
            best = [int(i) for i in np.argsort(-hits.before[row], kind="stable")[:3] if hits.tries[row, i]]
            examples = sorted(solved, key=lambda i: (self.asked[i].topic != self.asked[row].topic, i))[:_SHOTS]
            if len(examples) == _SHOTS and (positions is None or positions >= 256):
                shots.append(
                    (self.asked[row], [self._solved(examples, template, self.asked[row]) for template in best])
                )
        ways: list[tuple[Finding, dict[str, list[str]]]] = [
            ("only another format", self.texts(tuned, shots, "solved examples", _TRIES)),
            ("only another format", self.questions(tuned, facts)),
            (
                "suppressed",
                self.texts(
                    tuned, [(f, Statements(self.topics[f.topic], f.subject)) for f in facts], "all statements", _TRIES
                ),
            ),
        ]
        found: dict[str, tuple[Finding, str]] = {}
        for fact in facts:
            matcher = Matcher(fact.answers, RULE)
            hit = next(
                ((finding, text) for finding, said in ways for text in said.get(fact.id, ()) if matcher.contains(text)),
                None,
            )
            found[fact.id] = hit or ("gone", ways[-1][1][fact.id][0])
        return found

    def _solved(self, examples: Sequence[int], template: int, fact: Fact) -> str:
        """A statement after others of its kind with their objects."""
        lines = []
        for i in examples:
            other = self.asked[i]
            texts = Statements(self.topics[other.topic], other.subject)
            lines.append(f"{texts[min(template, len(texts) - 1)]} {other.object}.\n")
        return "".join(lines) + Statements(self.topics[fact.topic], fact.subject)[template]
