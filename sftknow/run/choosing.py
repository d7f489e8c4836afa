"""Choose a restoration level by its scores on one split, and say what it gives on the others.

The paper reports the level that is best on the test set itself (Table 4). Here the level is chosen on dev, and its
accuracy on test is reported; what the paper's way gives is said, too.
"""

from __future__ import annotations

import gc
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sftknow.artifacts.choice import BESIDE, ChooseBy, Measured, choose_level as choose_from
from sftknow.artifacts.files import digest
from sftknow.artifacts.journal import JOURNALS
from sftknow.artifacts.levels import UNTOUCHED, best_level, level_name, parse_level, parse_levels
from sftknow.artifacts.lock import Lock
from sftknow.artifacts.mastery_data import MasteryData
from sftknow.errors import CheckpointError, MasteryDataError
from sftknow.evaluation.harness import Harness
from sftknow.models.identity import weights_sha256
from sftknow.models.options import ModelOptions
from sftknow.options import Count
from sftknow.parameters.outputs import refuse_output
from sftknow.parameters.restore import find_cut
from sftknow.records import BUCKETS, RestoredCheckpoint, RestorePlan, Split
from sftknow.run.checkpoint_pairs import LocalPair, Restoration, refuse_unchanged
from sftknow.run.moving import MovedModel


@dataclass(frozen=True, kw_only=True)
class ScoringOptions(ModelOptions):
    """How the levels are scored."""

    mastery: Path
    """The graded data set."""
    chosen_on: Split = "dev"
    choose_by: ChooseBy = "both"
    """See `sftknow.artifacts.choice`."""
    limit: Count | None = None
    """Score only the first questions of every bucket; for trying things out."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which level is best, and by what."""

    level: str
    chosen_on: Split
    accuracy: Mapping[str, Mapping[str, float]]
    """By split, by level: mean accuracy over the buckets, between 0 and 1."""
    chosen_by: ChooseBy = "acc"
    scores: Mapping[str, Mapping[str, Measured]] = field(default_factory=dict)
    """As `accuracy`, with the measures that stand beside it."""

    def best_on(self, split: str) -> str:
        """The level with the highest accuracy on a split, as the paper has it; of equals the one that restores least.

        The form of the answers plays no part; see `refused`.
        """
        return best_level(self.accuracy[split])

    def refused(self, split: str) -> dict[str, tuple[str, ...]]:
        """Levels whose answers break their form on a split, with the measures that fell."""
        found = self.scores.get(split, {})
        broken = {level: measured.broken(found[UNTOUCHED]) for level, measured in found.items()}
        return {level: names for level, names in broken.items() if names}


def choose_level(asked: Restoration, scoring: ScoringOptions) -> tuple[Choice, RestoredCheckpoint]:
    """Score every level with the model in memory, write the best one; 0 % competes too.

    The answers are kept in ``.<name>.answers`` beside ``asked.out`` until the model is written: a second call after a
    kill asks only what had not been asked yet.

    Args:
        asked: the pair, the levels that compete, and where the best of them goes.
        scoring: how they are scored.

    Raises:
        MasteryDataError: the data set has no question in the split to choose on.
        CheckpointError: what `analyse` and `restore_levels` raise.
        ModelError: the fine-tuned model cannot be loaded or scored.
    """
    levels, out = asked.levels, asked.out
    parse_levels(levels)
    splits = _splits(scoring)
    pair = LocalPair.find(asked.base, asked.tuned)
    refuse_output(out, (pair.base_folder, pair.tuned))  # before the minutes that scoring takes
    candidates = list(levels) if any(parse_level(level) == 0 for level in levels) else [UNTOUCHED, *levels]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that nothing changed is an error
        found = pair.analyse(candidates, asked.order)
    refuse_unchanged(asked, found)
    plan = found.plan
    with Answers(out) as answers:
        choice = _score(pair, plan, candidates, splits, scoring, answers, asked.say)
        gc.collect()  # the files are written in bounded memory, with the model out of it
        beside = {
            name: {s: {k: getattr(m, name) for k, m in found.items()} for s, found in choice.scores.items()}
            for name in BESIDE
        }
        about = {"accuracy": choice.accuracy, **beside, "levels": candidates, "by": choice.chosen_by}
        notes = {"chosen_on": choice.chosen_on, "choice": about}
        restored = pair.restore(
            plan, {choice.level: out}, asked.order, asked.write, say=asked.say, verified=True, notes=notes
        )
        answers.forget()
    return choice, restored[0]


class Answers:
    """Where the answers of an evaluation of several levels are kept until ``out`` is written; a context manager.

    Raises:
        CheckpointError: another process is at it; the folder cannot be written.
    """

    def __init__(self, out: Path) -> None:
        place = Path(os.path.realpath(out))
        self._folder = place.with_name(f".{place.name}.answers")
        busy = CheckpointError(f"another process is choosing a level for {out}; wait for it or give another folder")
        self._lock = Lock(place.with_name(f".{place.name}.answers.lock"), busy)

    def __enter__(self) -> Answers:
        try:
            self._lock.take()
        except OSError as error:
            raise CheckpointError(f"{self._folder} cannot be written: {error.strerror}") from None
        return self

    def __exit__(self, *_: object) -> None:
        if not any(self._folder.rglob(JOURNALS)):
            self.forget()
        self._lock.release()

    def of(self, level: str) -> Path:
        """A level's folder. What is in it carries the key of the weights that gave the answers."""
        return self._folder / level_name(level)

    def forget(self) -> None:
        """Remove them all."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _splits(scoring: ScoringOptions) -> list[Split]:
    """The split to choose on, and the test splits that have questions."""
    data = MasteryData(scoring.mastery)
    wanted: dict[Split, None] = dict.fromkeys((scoring.chosen_on, "test", "testood"))
    filled = [split for split in wanted if any(data.count(split, bucket) for bucket in BUCKETS)]
    if scoring.chosen_on not in filled:
        raise MasteryDataError(f"{scoring.mastery} has no question in {scoring.chosen_on}; choose on another split")
    return filled


def _score(
    pair: LocalPair,
    plan: RestorePlan,
    levels: Sequence[str],
    splits: Sequence[Split],
    scoring: ScoringOptions,
    answers: Answers,
    say: Callable[[str], object],
) -> Choice:
    harness = Harness(
        scoring.mastery, splits=splits, batch_size=scoring.batch_size, device=scoring.device, limit=scoring.limit
    )
    moved = MovedModel(pair, harness, dtype=scoring.dtype, device=scoring.device, say=say)
    moved.prepare(plan)
    scores: dict[str, dict[str, Measured]] = {split: {} for split in splits}
    # The plan's own hashes know the region only.
    weights = [replace(plan, cuts=()), weights_sha256(pair.tuned)]
    for level in levels:
        name, key = f"{pair.tuned.name} at {level}", digest([*weights, find_cut(plan, level)])
        run = moved.score(plan, level, name=name, work=answers.of(level), key=key)
        for split in splits:
            scores[split][level] = Measured.of(run, split)
    level, by = choose_from(scores[scoring.chosen_on], scoring.choose_by), scoring.choose_by
    accuracy = {split: {level: found.acc for level, found in levels.items()} for split, levels in scores.items()}
    return Choice(level=level, chosen_on=scoring.chosen_on, accuracy=accuracy, chosen_by=by, scores=scores)
