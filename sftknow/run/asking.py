"""Ask two models the same statements, block by block, until enough is known; every block is on disk when it is done."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sftknow.answers import Matcher
from sftknow.artifacts.checks import Finding
from sftknow.artifacts.files import digest, read_json, write_json
from sftknow.checking.kept import Hits, kept_share, plain_already
from sftknow.checking.options import AskingOptions, CheckOptions
from sftknow.errors import ModelError
from sftknow.facts.prompts import Statements
from sftknow.facts.topics import Topic
from sftknow.grading.estimate import seconds_each
from sftknow.grading.options import GradingOptions
from sftknow.grading.sampling import Sampler, SampleRequest
from sftknow.grading.shards import Shard, kept_tallies, plan_shards, read_shard, sample_shards, unfinished, write_shard
from sftknow.models.chat import chat_text, has_template
from sftknow.models.limits import most_positions
from sftknow.models.loading import load_config
from sftknow.models.resolving import BaseModel
from sftknow.progress import progress
from sftknow.records import Fact, SamplingPolicy

Say = Callable[[str], object]

RULE = GradingOptions().rule
"""What a hit is: the paper's."""

_FOR_RETRY = 0.2
"""Share of the time that is kept for asking lost facts again and for the question form."""
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
        *,
        quiet: bool = False,
    ) -> None:
        """Args: quiet: draw no bar for questions, as one is there for all that is asked."""
        self.quiet = quiet
        self.sides, self.facts, self.topics, self.options, self.say = sides, facts, topics, options, say
        self.asked: list[Fact] = []
        self._clock, self._began = work / "seconds.json", time.monotonic()
        self._before = float(read_json(self._clock)["seconds"]) if self._clock.is_file() else 0.0

    def keep_time(self) -> None:
        """Note the seconds for a later start."""
        write_json(self._clock, {"seconds": self.seconds})

    @property
    def seconds(self) -> float:
        """Spent in this start and in earlier ones."""
        return self._before + time.monotonic() - self._began

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
        limit = 60 * options.minutes * (1 - _FOR_RETRY)
        with progress(total, "facts", unit="statements", steady=True) as bar:
            for place, (number, start) in enumerate(work):
                if number == 1 and start == 0 and kept_share(self.hits()) is None:
                    return  # the base completed none of all the facts: other statements of them would not help
                block = self.facts[start : start + options.block]
                if place == 0:
                    self.refuse_days(block)
                for side in self.sides:
                    for shard in self.shards(side, block, number):
                        bar.update(self.ask(side, shard, bar.update))
                if number == 0:
                    self.asked.extend(block)
                self.keep_time()
                hits = self.hits()
                kept = kept_share(hits)
                if kept is not None:
                    reach = f" ± {100 * kept.reach:.1f}" if math.isfinite(kept.reach) else ""
                    bar.set_postfix_str(f"kept {100 * kept.share:.1f}{reach} %")
                    if 100 * kept.reach <= options.precision or plain_already(hits, place + 1, options.margin / 100):
                        return
                if self.seconds > limit:
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
            tallies = side.sampler.sample(shard.requests, self.policy, on_done=lambda count: (on_done(count), None)[1])
            write_shard(shard, tallies)
        for tally in tallies:
            side.hits.setdefault(tally.fact_id, {})[tally.template] = tally.hits
        return shard.size if known else 0

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
        if self.quiet:
            for shard in unfinished(shards, policy, keep_texts=True):
                write_shard(shard, side.sampler.sample(shard.requests, policy, keep_texts=True))
        else:
            sample_shards(shards, side.sampler, policy, keep_texts=True, title=name)
        said: dict[str, list[str]] = {}
        for tally in kept_tallies(shards, policy):
            said.setdefault(tally.fact_id, []).extend(tally.texts or ())
        return said

    def again(self, lost: Sequence[int], hits: Hits) -> dict[str, tuple[Finding, str]]:
        """Ask facts again that the tuned model lost: with solved examples, as questions, in every statement."""
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
