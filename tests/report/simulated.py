"""Reports of made-up experiments whose truth is known: accuracies drawn with effects that are set, nothing on disk.

Every question has a difficulty that all models share, every training draw (seed) a luck of its own that falls on all
questions, and a restored model mostly answers as the same model unrestored: what makes real comparisons hard.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from sftknow.artifacts.levels import best_level, level_name
from sftknow.records import BUCKETS, TokenDivergence
from sftknow.report.by_fact import Answers, Questions, Texts
from sftknow.report.cells import Cell
from sftknow.report.contents import BASE, Choice, Model, Report
from sftknow.report.frame import Score
from sftknow.report.paper import Beside
from sftknow.run.controls import control_names
from sftknow.stats import NORMAL_95

SIZES = (60, 240, 960)
LEVELS = ("5%", "20%", "60%")
PER_BUCKET = 80
LUCK = 0.015
"""Standard deviation of a training draw's luck: what three draws of the lab's trainings show."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What is true of a made-up experiment, in accuracy (1 is everything) or nats."""

    seeds: int = 3
    training: float = 0.0
    """What any training adds to the base."""
    data: float = 0.0
    """What 960 facts add to 240 (in-domain and out, whatever the bucket); 60 facts are as good as 240."""
    unknown: float = 0.0
    """What bucket 0 adds to another bucket at 960 facts; half of it at 240."""
    restoring: float = 0.0
    """What restoring 20 % adds after 240 facts; 5 % adds half of it, 60 % nothing."""
    ranking: float = 0.0
    """What of that the ranking adds beyond its controls."""
    after_more: float = 0.0
    """What it adds beyond that after 960 facts, and after bucket 0 instead of bucket 4."""
    nats: tuple[float, float, float] = (0.3, 0.3, 0.3)
    """Mean divergence after each size."""
    forgetting: float = 0.0
    """Bucket-4 accuracy lost for each tenth of a nat."""


class Drawn(Questions):
    def __init__(self, answers: dict[str, Answers]) -> None:
        self._answers = answers

    def split(self, name: str) -> Answers | None:
        return self._answers.get(name)


class _Facts:
    def __init__(self, values: dict[str, float]) -> None:
        self.values = values


class Experiment:
    """Draws the models of one experiment.

    Args:
        truth: what is true.
        seed: of the draw.
    """

    def __init__(self, truth: Truth, seed: int) -> None:
        self.truth = truth
        self.random = np.random.default_rng(seed)
        self.buckets = np.repeat(np.array(BUCKETS), PER_BUCKET)
        self.ids = {s: np.array([f"{s}/{i:04d}" for i in range(self.buckets.size)]) for s in ("dev", "test", "testood")}
        # Difficulties: a share that most models get right, around a mean that grows with the bucket.
        self.ease = {s: self.random.beta(1.2, 1.2, self.buckets.size) * 0.6 + 0.08 * self.buckets for s in self.ids}

    def right(self, effect: float, known: float = 0.0) -> dict[str, npt.NDArray[np.bool_]]:
        """Outcomes of a model by split; `known` falls on bucket 4 alone."""
        shift = effect + known * (self.buckets == BUCKETS[-1])
        return {s: self.random.random(ease.size) < np.clip(ease + shift, 0, 1) for s, ease in self.ease.items()}

    def moved(
        self, before: dict[str, npt.NDArray[np.bool_]], gain: float, changed: float = 0.12
    ) -> dict[str, npt.NDArray[np.bool_]]:
        """Outcomes of a restored model: some answers change either way, more for the better where it gains."""
        found = {}
        for split, right in before.items():
            share = right.mean()
            flips = np.where(right, changed / 2 / share, changed / 2 / (1 - share))
            flips += np.where(right, -min(gain, 0.0) / share, max(gain, 0.0) / (1 - share))
            found[split] = right ^ (self.random.random(right.size) < flips)
        return found

    def model(self, name: str, right: dict[str, npt.NDArray[np.bool_]]) -> Model:
        """As the report holds it."""
        scores = {}
        for split, found in right.items():
            leaves = found.reshape(len(BUCKETS), PER_BUCKET).astype(float)
            errors = leaves.std(axis=1, ddof=1) / PER_BUCKET**0.5
            for bucket in BUCKETS:
                scores[split, bucket, "acc"] = Score(leaves[bucket].mean(), errors[bucket], PER_BUCKET)
            scores[split, None, "acc"] = Score(leaves.mean(), float((errors**2).sum() ** 0.5) / 5, found.size)
        answers = {s: Answers(self.ids[s], self.buckets, found, found) for s, found in right.items()}
        return Model(name=name, scores=scores, questions=Drawn(answers))

    def restored(
        self, name: str, right: dict[str, npt.NDArray[np.bool_]], more: bool, unknown: bool
    ) -> dict[str, Model]:
        """A model restored at every level, and the controls of the one that is best on dev."""
        truth, found, gains = self.truth, {}, {}
        for level, part in zip(LEVELS, (0.5, 1.0, 0.0), strict=True):
            gains[level] = part * (truth.restoring + truth.after_more * (more + unknown)) + self.random.normal(
                0, LUCK / 3
            )
            found[level] = self.model(f"{name}@{level_name(level)}", self.moved(right, gains[level]))
        dev = {level: model.scores["dev", None, "acc"].value for level, model in found.items()}
        chosen = best_level({"0%": right["dev"].mean(), **dev})
        made = {model.name: model for model in found.values()}
        if chosen != "0%":
            gain = gains[chosen] - truth.ranking * (1.0 if chosen == "20%" else 0.5 if chosen == "5%" else 0.0)
            for control, _, _ in control_names(chosen, 3):
                made[f"{name}@{control}"] = self.model(f"{name}@{control}", self.moved(right, gain))
        return made

    def divergence(self, name: str, mean: float) -> tuple[TokenDivergence, Any]:
        """Of one model, with the facts behind it."""
        kl = self.random.gamma(2.0, mean / 2, 60)
        facts = {f"f{i}": float(v) for i, v in enumerate(kl)}
        half = NORMAL_95 * float(kl.std(ddof=1)) / 60**0.5
        about: dict[str, Any] = {f.name: 0.5 for f in fields(TokenDivergence) if f.default is f.default_factory}
        about |= {
            "base_prompt": "statement",
            "tuned_prompt": "question",
            "bucket": 4,
            "count": 60,
            "mean": kl.mean(),
            "low": kl.mean() - half,
            "high": kl.mean() + half,
        }
        found = TokenDivergence(**about)
        return found, _Facts(facts)


def simulated_report(truth: Truth, seed: int) -> Report:
    """One experiment: five buckets, three sizes; the trainings on 240 and 960 facts of buckets 0, 2 and 4 restored."""
    made = Experiment(truth, seed)
    cells, models, divergences, facts = {}, {BASE: made.model(BASE, made.right(0.0))}, {}, {}
    luck = made.random.normal
    for bucket in BUCKETS:
        for place, size in enumerate(SIZES):
            for draw in range(truth.seeds):
                name = f"b{bucket}-n{size}-s{draw}"
                effect = truth.training + truth.data * (size == 960) + luck(0, LUCK)
                effect += truth.unknown * (bucket == 0) * {60: 0.0, 240: 0.5, 960: 1.0}[size]
                nats = truth.nats[place] * (1 + 0.1 * bucket) * float(np.exp(luck(0, 0.05)))
                right = made.right(effect, known=-truth.forgetting * nats / 0.1)
                cells[name] = Cell(name=name, source=f"b{bucket}", size=size, all=False, seed=draw)
                models[name] = made.model(name, right)
                divergences[name], facts[name] = made.divergence(name, nats)
                if size >= 240 and bucket in (0, 2, 4):
                    models |= made.restored(name, right, size == 960, bucket == 0)
    best = max(cells, key=lambda n: models[n].scores["dev", None, "acc"].value)
    owner = best if f"{best}@5pct" in models else "b4-n240-s0"
    levels = {"0%": models[owner]} | {lv: models[f"{owner}@{lv.replace('%', 'pct')}"] for lv in LEVELS}
    level = max(levels, key=lambda lv: levels[lv].scores["dev", None, "acc"].value)
    return Report(
        name="simulated", recipe=None, provenance=None, graded=None, exposed=None, frame=pd.DataFrame(), models=models,
        cells=cells, manifests={}, losses={}, divergences=divergences, fact_divergences=facts, moved={}, changes={},
        plans={}, choice=Choice(cell=owner, level=level, chosen_on="dev"), seconds={}, ability={}, base_name=None,
        beside=Beside(model=None), texts=Texts(Path(), ()),
    )  # fmt: skip
