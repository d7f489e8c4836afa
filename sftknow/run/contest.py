"""Candidates of a repair against one another: one loaded model is moved from each to the next, all asked the same."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sftknow.artifacts.files import digest
from sftknow.checking.choice import Standing, survivors
from sftknow.checking.kept import FEWEST, Kept, kept_share, mean_change, plain_already, share_gained, verdict
from sftknow.checking.options import RepairOptions
from sftknow.errors import CheckpointError
from sftknow.parameters.candidates import Candidate, Candidates, Maker, move_
from sftknow.parameters.in_memory import loaded_parameters
from sftknow.parameters.pairs import CheckpointPair
from sftknow.progress import progress
from sftknow.records import Fact
from sftknow.run.asking import Asking, Side
from sftknow.run.keeping import Keep, Part, part_of
from sftknow.run.time_limit import OutOfTimeError

_TO_KNOW, _TO_CHOOSE = 0.35, 0.8
"""Shares of the time by which the two models have been asked what they know, and by which the choice has been made."""
_FIRST = 0.6
"""Share of the time for the choice that its first round, with all candidates, may take."""
_HARDLY = 0.02

TUNED = "the fine-tuned model"


class Mover:
    """The fine-tuned model, loaded once, at whichever weights are asked for.

    Args:
        sampler: with the loaded model.
        pair: all its tensors beside the base's.

    Raises:
        CheckpointError: the model does not hold every tensor in one stretch, so that it cannot be moved.
    """

    def __init__(self, sampler: Any, pair: CheckpointPair) -> None:
        try:
            loaded_parameters(sampler.model, pair)
        except CheckpointError as error:
            what = str(error).partition(" (transformers")[0]
            raise CheckpointError(
                f"{what}, so that it cannot be moved from candidate to candidate; write levels to folders with "
                "`sftknow restore --top` and ask each with `sftknow check`"
            ) from None
        self.loaded, self._pair, self._at = sampler, pair, TUNED

    def at(self, name: str, maker: Callable[[], Maker | None], pair: CheckpointPair | None = None) -> Moved:
        """A sampler of the model at the weights of that name.

        Args:
            name: of the weights.
            maker: gives what makes them, once they are needed; None for those of the pair's fine-tuned side.
            pair: in place of the fine-tuned model's.
        """
        return Moved(self, name, maker, pair)

    def sampler(self, name: str, maker: Callable[[], Maker | None], pair: CheckpointPair | None) -> Any:
        if self._at != name:
            self._at = "between two candidates"
            move_(self.loaded.model, pair or self._pair, maker())
            self._at = name
        return self.loaded


@dataclass(frozen=True)
class Moved:
    """A `sftknow.grading.sampling.Sampler` that moves the model when it has something to say, and not before."""

    mover: Mover
    name: str
    maker: Callable[[], Maker | None]
    pair: CheckpointPair | None

    @property
    def model(self) -> Any:
        """The loaded model, moved."""
        return self.mover.sampler(self.name, self.maker, self.pair).model

    @property
    def stops(self) -> bool:
        """Whether the sampler may be left amid its work; see `sftknow.grading.estimate.seconds_each`."""
        return bool(getattr(self.mover.loaded, "stops", False))

    def sample(self, *given: Any, **more: Any) -> Any:
        """See `sftknow.grading.sampling.Sampler.sample`."""
        return self.mover.sampler(self.name, self.maker, self.pair).sample(*given, **more)


@dataclass
class Runner:
    """One candidate in the contest."""

    name: str
    control: bool
    side: Side
    scores: dict[str, float] = field(default_factory=dict)
    """On what is to be kept, by row."""
    standing: Standing | None = None
    rounds: int = 0


class Contest:
    """Who is asked what, and how the candidates stand. Everything asked is on disk as soon as it is finished.

    Args:
        asking: with base and fine-tuned model, and all facts in their order.
        candidates: of the same two.
        keep: what is not to be lost.
        options: how long, and the margins.
        work: folder of what is asked.
    """

    def __init__(
        self, asking: Asking, candidates: Candidates, keep: Keep, options: RepairOptions, work: Path, key: str
    ) -> None:
        self.asking, self.candidates, self.keep, self.options = asking, candidates, keep, options
        self._work, self._key = work, key
        base, tuned = asking.sides
        self._base = base
        mover = Mover(tuned.sampler, candidates.pair)
        self._mover = mover
        tuned.sampler = mover.at(TUNED, lambda: None)
        self.tuned = Runner(name=TUNED, control=False, side=tuned)
        self.known: list[Fact] = []
        self.untried: tuple[str, ...] = ()
        """Candidates that the time did not suffice for."""
        self._pace = 0.0
        """Seconds that a fact takes of one model, as measured last."""
        self.runners = [self._runner(candidate) for candidate in candidates.wanted]

    def _runner(self, candidate: Candidate) -> Runner:
        kept: list[Maker] = []

        def maker() -> Maker:
            if not kept:
                kept.append(self.candidates.maker(candidate))
            return kept[0]

        sampler = self._mover.at(candidate.name, maker)
        return Runner(name=candidate.name, control=candidate.how.control, side=self._side(candidate.name, sampler))

    def _side(self, name: str, sampler: Moved) -> Side:
        tuned = self.tuned.side
        folder = self._work / "candidates" / digest([self._key, name, self.candidates.seed])[:16]
        return Side(tuned.model, sampler, tuned.tokenizer, folder)

    def stand_in(self, name: str, pair: CheckpointPair) -> Runner:
        """A runner with the weights of the fine-tuned side of another pair, such as a re-factored adapter's."""
        return Runner(name=name, control=False, side=self._side(name, self._mover.at(name, lambda: None, pair)))

    # ---- what the two models know -----------------------------------------------------------------------------------

    def know(self) -> Kept | None:
        """Ask the base all facts, and the fine-tuned model those that the base completes at least once.

        Ends early where it is beyond doubt that nothing is lost, or a share of the time is used. Returns the share of
        knowledge that is kept.
        """
        asking, options, took = self.asking, self.options, 0.0
        total = sum(shard.size for shard in asking.shards(self._base, asking.facts, 0))
        with progress(total, "base and tuned", unit="statements") as bar:
            for place, start in enumerate(range(0, len(asking.facts), options.block)):
                block = asking.facts[start : start + options.block]
                if place == 0:
                    least = f"{FEWEST} known facts of each of {len(self.runners)} candidates"
                    asking.refuse_days(block, 1 + len(self.runners) * FEWEST / (2 * len(block)), least)
                elif asking.limit.ends("knowing", place, share=_TO_KNOW, needs=took):
                    break
                began = asking.seconds
                try:
                    with asking.until(_TO_KNOW if place else 1.0):
                        for shard in asking.shards(self._base, block, 0):
                            asking.ask(self._base, shard, lambda _: None)
                            bar.update(shard.size)
                        known = [fact for fact in block if sum(self._base.hits[fact.id].values())]
                        self._statements(self.tuned, known)
                except OutOfTimeError:
                    if place == 0:
                        raise
                    asking.limit.end("knowing", place)
                    break
                took = asking.seconds - began
                asking.asked.extend(block)
                self.known += known
                asking.limit.reach("knowing", place + 1)
                hits = asking.hits_of(self._base, self.tuned.side, self.known)
                kept = kept_share(hits)
                bar.set_postfix_str(f"{len(self.known):,} known facts")
                margin = options.margin / 100
                if kept is not None and plain_already(hits, place + 1, margin) and verdict(kept, margin) == "kept":
                    break
        self._pace = asking.seconds / (len(asking.asked) + len(self.known))
        self._base.sampler = None  # type: ignore[assignment]  # one model is enough from here on
        gc.collect()
        return kept_share(asking.hits_of(self._base, self.tuned.side, self.known))

    def half(self, part: Part) -> list[Fact]:
        """The known facts of a part, in their order."""
        return [fact for fact in self.known if part_of(self.options.seed, fact.id) == part]

    @property
    def enough(self) -> bool:
        """Whether both halves hold as many known facts as an interval needs."""
        return min(len(self.half("choosing")), len(self.half("confirming"))) >= FEWEST

    # ---- the choice -------------------------------------------------------------------------------------------------

    def choose(self) -> list[Runner]:
        """Round after round ask those that are left further facts; returns those of the last round.

        A round that the time does not suffice for is cut to fewer facts, or left out; in the first one, candidates are
        left out (`untried`).

        Raises:
            OutOfTimeError: not a single candidate and control could be asked.
        """
        facts, asked = self.half("choosing"), 0
        alive = last = [runner for _, runner in sorted(enumerate(self.runners), key=self._turn)]
        while asked < len(facts):
            number = alive[0].rounds
            size = self._size("choosing", number, len(alive), _TO_CHOOSE)
            if not size:
                break
            block = facts[asked : asked + size]
            done = self._round_of(alive, number, facts[: asked + len(block)], block)
            if number and len(done) < len(alive):
                break
            if not number:
                self.untried = tuple(runner.name for runner in alive[len(done) :])
                self.runners = [runner for runner in self.runners if runner.name not in self.untried]
            asked += len(block)
            for runner in done:
                runner.rounds += 1
                runner.standing = self.standing(runner, facts[:asked], "choosing")
            last = done
            names = survivors([self.stands(runner) for runner in done], self.options.keep_margin / 100)
            alive = [runner for runner in done if runner.name in names]
            if sum(not runner.control for runner in alive) < 2:
                break
        return [runner for runner in self.runners if runner in last]

    def _turn(self, placed: tuple[int, Runner]) -> tuple[int, int]:
        """Where a runner stands in the first round: the middle strength of every method, then the other ones."""
        place, runner = placed
        same = [i for i, other in enumerate(self.runners) if other.name.split()[0] == runner.name.split()[0]]
        return abs(same.index(place) - len(same) // 2), place if not runner.control else 0

    def _round_of(
        self, alive: list[Runner], number: int, so_far: Sequence[Fact], block: Sequence[Fact]
    ) -> list[Runner]:
        """Ask all of them a block; returns those that were, before the time was over."""
        limit, every = self.asking.limit, [self.tuned, *alive]
        with progress(len(alive), f"round {number + 1}", unit="candidates") as bar:
            for place, runner in enumerate(every):
                # The first round is cut to fewer candidates, of which one and a control are asked whatever it takes;
                # a later one is of all of them or of none.
                part, done = ("choosing", number) if number else ("candidates", place)
                needs = self._pace * len(block) * (len(every) - place if number else 1)
                if (number or place > 2) and limit.ends(part, done, share=_TO_CHOOSE, needs=needs):
                    return every[1:place]
                try:
                    with self.asking.until(_TO_CHOOSE):
                        self._round(runner, "choosing", so_far, block)
                except OutOfTimeError:
                    if not number and place <= 2:
                        raise
                    limit.end(part, done)
                    return every[1:place]
                bar.update(runner is not self.tuned)
                if not number:
                    limit.reach(part, place + 1)
        limit.reach("choosing", number + 1)
        return alive

    def _size(self, part: Part, number: int, runners: int, share: float) -> int:
        """Facts of a round: as many as wanted, or as the time has room for; a later start takes the same. 0 ends."""
        limit, block = self.asking.limit, self.options.block
        if number and limit.ends(part, number, share=share):
            return 0
        sizes = limit.sizes.setdefault(part, [])
        if number == len(sizes):
            room = int(limit.left(share) / (max(self._pace, 1e-9) * (1 + runners)))
            if part == "confirming":
                size = min(max(block, -(-len(self.half(part)) // 3)), room)
            else:
                size = min(2**number * sizes[0], room) if number else min(block, int(_FIRST * room))
            if number and size < FEWEST:
                limit.end(part, number)
                return 0
            sizes.append(max(FEWEST, size))
        return sizes[number]

    @staticmethod
    def stands(runner: Runner) -> Standing:
        """How a runner stood after its last round."""
        assert runner.standing is not None, "every runner is in the first round"
        return runner.standing

    def confirm(self, runners: Sequence[Runner]) -> list[Fact]:
        """Ask runners the facts of the other part, as many as the time allows; returns those that all were asked."""
        facts, limit = self.half("confirming"), self.asking.limit
        done: list[Fact] = []
        number = 0
        with progress(len(facts) * len(runners), "confirming", unit="facts") as bar:
            while len(done) < len(facts) and (size := self._size("confirming", number, len(runners), 1.0)):
                block = facts[len(done) : len(done) + size]
                try:
                    with self.asking.until(1.0):
                        for runner in (self.tuned, *runners):
                            self._round(runner, "confirming", facts[: len(done) + len(block)], block)
                            bar.update(len(block) * (runner is not self.tuned))
                except OutOfTimeError:
                    limit.end("confirming", number)
                    break
                done, number = facts[: len(done) + len(block)], number + 1
                limit.reach("confirming", number)
        return done

    def _round(self, runner: Runner, part: Part, so_far: Sequence[Fact], block: Sequence[Fact]) -> None:
        """Ask one runner a block, and the rows of what is to be kept; measures how long a fact takes."""
        began, drawn = self.asking.seconds, self.asking.drawn
        self._statements(runner, block)
        rows = [row for row in self.keep.rows(part, so_far) if row not in runner.scores]
        runner.scores |= self.keep.scores(self.asking, runner.side, rows)
        if self.asking.drawn > drawn:
            self._pace = (self.asking.seconds - began) / len(block)

    def _statements(self, runner: Runner, facts: Sequence[Fact]) -> None:
        new = [fact for fact in facts if fact.id not in runner.side.hits]
        for shard in self.asking.shards(runner.side, new, 0) if new else ():
            self.asking.ask(runner.side, shard, lambda _: None)

    # ---- what it comes to -------------------------------------------------------------------------------------------

    def standing(self, runner: Runner, facts: Sequence[Fact], part: Part) -> Standing:
        """A runner against the fine-tuned model on facts that both were asked."""
        hits = self.asking.hits_of
        gain = share_gained(hits(self._base, self.tuned.side, facts), hits(self._base, runner.side, facts))
        return Standing(name=runner.name, control=runner.control, gain=gain, task=self.task(runner, facts, part))

    def task(self, runner: Runner, facts: Sequence[Fact], part: Part) -> Kept | None:
        """How its score on what is to be kept differs from the fine-tuned model's."""
        rows = self.keep.rows(part, facts)
        return mean_change(np.array([runner.scores[row] - self.tuned.scores[row] for row in rows]))

    def beyond(self, runner: Runner, other: Runner, facts: Sequence[Fact]) -> Kept | None:
        """What one keeps more than another."""
        hits = self.asking.hits_of
        return share_gained(hits(self._base, other.side, facts), hits(self._base, runner.side, facts))

    def kept(self, runner: Runner, facts: Sequence[Fact]) -> Kept | None:
        """The share of the base's knowledge that a runner keeps."""
        return kept_share(self.asking.hits_of(self._base, runner.side, facts))

    @property
    def answers_nothing(self) -> bool:
        """Whether the fine-tuned model is right on hardly a row of what is to be kept, so that nothing can be lost."""
        return bool(self.tuned.scores) and float(np.mean(list(self.tuned.scores.values()))) < _HARDLY

    def free(self) -> None:
        """Let go of the loaded model: what is written is written in bounded memory."""
        for runner in (self.tuned, *self.runners):
            runner.side.sampler = None  # type: ignore[assignment]
        del self._mover
        gc.collect()
