"""Repairs of models whose knowledge is known: the contest as it is, over samplers that draw with given rates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from sftknow.artifacts.repairs import RepairResult
from sftknow.checking.options import RepairOptions
from sftknow.facts.topics import load_topics
from sftknow.grading.sampling import SampleRequest
from sftknow.parameters.candidates import Candidate, grid
from sftknow.records import Fact, SampleTally, SamplingPolicy
from sftknow.run import asking as asking_module
from sftknow.run.asking import Asking, Side
from sftknow.run.contest import TUNED, Contest
from sftknow.run.keeping import Questions
from sftknow.run.repairing import _Found, _Repair

Rates = Mapping[str, tuple[float, float]]
"""By fact: the rates at which its statements and its question are answered rightly."""


@dataclass
class Clock:
    """Time that passes as it is told."""

    now: float = 0.0
    each: Callable[[float], float] = lambda now: 0.0
    """Seconds that a request takes, by the time at which it is asked."""

    def monotonic(self) -> float:
        return self.now


@dataclass
class Draws:
    """A sampler that answers with known rates."""

    rates: Rates
    clock: Clock
    random: np.random.Generator
    stops: bool = True
    asked: int = 0
    model: Any = None

    def sample(
        self,
        requests: Sequence[SampleRequest],
        policy: SamplingPolicy,
        *,
        keep_texts: bool = False,
        on_done: Callable[[float], object] | None = None,
    ) -> list[SampleTally]:
        tallies = []
        for request in requests:
            rate = self.rates[request.fact_id][keep_texts]
            # Questions of all models have their random numbers in common, statements here have not: the harder case.
            stream = np.random.default_rng([*request.fact_id.encode()]) if keep_texts else self.random
            hits = int((stream.random(policy.samples) < rate).sum())
            texts = tuple(request.answers[0] if i < hits else "?" for i in range(policy.samples))
            tallies.append(
                SampleTally(
                    fact_id=request.fact_id,
                    template=request.template,
                    tries=policy.samples,
                    hits=hits,
                    texts=texts if keep_texts else None,
                )
            )
            self.asked += 1
            self.clock.now += self.clock.each(self.clock.now)
            if on_done is not None:
                on_done(1)
        return tallies


@dataclass
class World:
    """A base, what fine-tuning lost, and what candidates bring back.

    Args:
        count: facts, of which the base knows half.
        lost: share of the known facts that fine-tuning lost.
        candidates: by name the share of the lost ones that it brings back, below 0 for one that loses more, and the
            points of its answers that it gains or loses. Others of the grid bring back nothing.
    """

    seed: int
    folder: Path
    count: int = 240
    lost: float = 0.2
    candidates: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    options: RepairOptions = field(default_factory=RepairOptions)
    wanted: Sequence[Candidate] = field(default_factory=grid)
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.random = random = np.random.default_rng([self.seed, 7])
        self.facts = [
            Fact(id=f"f{i}", topic="P36", subject=f"s{i}", object=f"o{i}", question=f"q{i}?", split="train")
            for i in range(self.count)
        ]
        base = np.where(random.random(self.count) < 0.5, random.beta(0.6, 0.8, self.count), 0.0)
        gone = random.random(self.count) < self.lost
        self.base = base
        self.rates: dict[str, Rates] = {"base": self._rates(base, 0.0), TUNED: self._rates(base * ~gone, 0.0)}
        for candidate in self.wanted:
            back, points = self.candidates.get(candidate.name, (0.0, 0.0))
            now = np.where(gone, max(back, 0.0), 1 + min(back, 0.0))
            self.rates[candidate.name] = self._rates(base * now, points)

    def _rates(self, statements: Any, points: float) -> Rates:
        answers = np.clip(self.base + points, 0, 1)
        return {f.id: (float(s), float(a)) for f, s, a in zip(self.facts, statements, answers, strict=True)}

    def side(self, name: str) -> Side:
        model: Any = SimpleNamespace(name=name, ref=SimpleNamespace(path="nowhere"), sha256=name)
        draws = Draws(self.rates[name], self.clock, np.random.default_rng([self.seed, len(self.rates), *name.encode()]))
        return Side(model, draws, SimpleNamespace(chat_template=None), self.folder / name.replace(" ", "-"))

    @contextmanager
    def time(self) -> Iterator[None]:
        """Time passes as the clock says; nothing is measured beforehand."""
        with mock.patch("sftknow.run.time_limit.time", self.clock), mock.patch.object(Asking, "refuse_days"):
            yield

    def repair(self) -> RepairResult:
        """As `sftknow.run.repairing.repair` does it, from the loaded models on."""
        world = self

        class Mover:
            def __init__(self, *given: object) -> None:
                self.loaded = None

            def at(self, name: str, maker: object) -> Draws:
                sampler = world.side(name).sampler
                assert isinstance(sampler, Draws)
                return sampler

        self.folder.mkdir(parents=True, exist_ok=True)
        candidates: Any = SimpleNamespace(wanted=self.wanted, seed=0, pair=None, maker=lambda candidate: None)
        with mock.patch("sftknow.run.contest.Mover", Mover), self.time():
            sides = [self.side("base"), self.side(TUNED)]
            asking = Asking(sides, self.facts, load_topics(), self.options, self.folder, lambda _: None)
            self.contest = Contest(asking, candidates, Questions(self.facts), self.options, self.folder, "key")
            found = _Found("base", "tuned", "facts", self.options, [])
            models: Any = [side.model for side in sides]
            return _Repair(self.contest, candidates, models, found, None, "model", self.folder).run(lambda _: None)


@contextmanager
def without_disk() -> Iterator[None]:
    """Nothing that is asked is kept, for many contests that no second start is made of."""
    with (
        mock.patch.object(asking_module, "read_shard", return_value=None),
        mock.patch.object(asking_module, "write_shard"),
        mock.patch.object(asking_module, "unfinished", side_effect=lambda shards, *_, **__: shards),
        mock.patch.object(Asking, "texts", _texts),
        mock.patch("sftknow.run.time_limit.write_json"),
    ):
        yield


def _texts(
    self: Asking, side: Side, statements: Sequence[tuple[Fact, Sequence[str]]], name: str, samples: int, **more: Any
) -> dict[str, list[str]]:
    requests = [
        SampleRequest(fact_id=fact.id, template=0, prompt=text, answers=fact.answers)
        for fact, texts in statements
        for text in texts
    ]
    tallies = side.sampler.sample(requests, self.policy, keep_texts=True)
    return {tally.fact_id: list(tally.texts or ()) for tally in tallies}


KINDS: dict[str, str] = {
    "nothing helps": "every candidate is as good as the fine-tuned model",
    "half of them harm": "every other candidate loses a tenth more, the others are as good as the fine-tuned model",
    "half of them help": "every other candidate brings back half of what was lost",
}


def outcomes(kind: str, contests: int, folder: Path) -> Counter[str]:
    """What is said in so many simulated repairs of a kind."""
    said: Counter[str] = Counter()
    names = [candidate.name for candidate in grid() if not candidate.how.control]
    what = {"nothing helps": (0.0, 0.0), "half of them harm": (-0.1, 0.0), "half of them help": (0.5, 0.0)}[kind]
    options = RepairOptions(minutes=1e6)
    with without_disk():
        for seed in range(contests):
            world = World(seed, folder, candidates=dict.fromkeys(names[::2], what), options=options)
            said[world.repair().verdict] += 1
    return said
