"""What a model of the arena is asked: statements, questions, and the next tokens of what its base says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sftknow.divergence.kl import full_divergence
from sftknow.evaluation.greedy import MAX_NEW_TOKENS
from sftknow.facts.prompts import Statements
from sftknow.grading.sampling import GREEDY, SampleRequest
from sftknow.grading.transformers_sampler import TransformersSampler
from sftknow.records import BUCKETS, EvalRun, Fact, SamplingPolicy
from sftknow.run.token_pairs import next_logits
from sftknow.run.workbench import Workbench
from sftknow.training.draws import draw

Counts = dict[str, tuple[int, int]]
"""(right, asked) by the names of `sftknow.artifacts.arena.Entry.scores`."""
Draw = tuple[int | None, int | None, int]
"""Bucket, size and seed of training facts."""

POLICY = SamplingPolicy(samples=1, temperature=GREEDY, max_new_tokens=MAX_NEW_TOKENS)
"""One completion of each statement, of the likeliest tokens, as long as an answer to a question may be."""


def spread(count: int, wanted: int) -> list[int]:
    """Statements of a topic that are asked: so many of the ``count`` that it has, evenly spread."""
    wanted = min(count, wanted)
    return [i * count // wanted for i in range(wanted)]


def question_scores(run: EvalRun) -> Counts:
    """What an evaluation says of questions: the cbqa_mastery tasks, an answer that contains the object is right."""
    found: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for metric in run.metrics:
        split, _, bucket = metric.task.removeprefix("cbqa_mastery_").partition("_bucket_")
        if metric.metric != "acc" or not bucket:
            continue
        name = {"testood": "ood", "dev": "dev"}.get(split)
        if split == "test":
            name = f"{'kept' if int(bucket) else 'new'}/questions/{bucket}"
        if name is not None:
            found[name] += round(metric.value * metric.count)
            asked[name] += metric.count
    return {name: (found[name], asked[name]) for name in asked}


@dataclass(frozen=True)
class Asked:
    """Which facts are asked in statements, the same for all models: those of the in-domain test split, by bucket."""

    bench: Workbench

    @property
    def test(self) -> Mapping[str, Sequence[Fact]]:
        """The facts whose questions are asked, too, by the name of their score."""
        limit = self.bench.recipe.evaluation.limit
        return {
            f"{'kept' if bucket else 'new'}/statements/{bucket}": [row.fact for row in rows[:limit]]
            for bucket in BUCKETS
            if (rows := self.bench.dataset.bucket("test", bucket))
        }

    def training(self, wanted: Draw) -> list[Fact]:
        """The training facts of a draw."""
        bucket, size, seed = wanted
        return draw(self.bench.dataset.split("train"), bucket=bucket, size=size, seed=seed)[1]


class Examiner:
    """Asks one loaded model, whose weights may be others at the next call.

    Args:
        bench: the run.
        model: in evaluation mode.
        tokenizer: its tokenizer.
    """

    def __init__(self, bench: Workbench, model: Any, tokenizer: Any) -> None:
        self.bench, self.model, self.tokenizer = bench, model, tokenizer
        self._sampler = TransformersSampler(model, tokenizer, rule=bench.recipe.grading.rule)

    def hits(self, facts: Iterable[Fact]) -> dict[str, tuple[int, int]]:
        """By fact: completions of its statements that hold an answer, and all.

        The statements are those that mastery is graded by, and no model is trained on them: training shows questions.
        """
        topics, each = self.bench.topics, self.bench.recipe.arena.statements
        requests = []
        for fact in facts:
            texts = Statements(topics[fact.topic], fact.subject)
            requests += [
                SampleRequest(fact_id=fact.id, template=i, prompt=texts[i], answers=fact.answers)
                for i in spread(len(topics[fact.topic].templates), each)
            ]
        right: Counter[str] = Counter()
        tries: Counter[str] = Counter()
        for tally in self._sampler.sample(requests, POLICY):
            right[tally.fact_id] += tally.hits
            tries[tally.fact_id] += tally.tries
        return {name: (right[name], tries[name]) for name in tries}

    def statements(self, learned: Sequence[Fact]) -> Counts:
        """Training facts and test facts in statements."""
        groups = {"learned": learned, **Asked(self.bench).test}
        return grouped(groups, self.hits(fact for facts in groups.values() for fact in facts))

    def questions(self, *splits: Any, name: str) -> EvalRun:
        """Questions of those splits that have some, as the run's evaluations ask them."""
        return self.bench.asking(splits).score(self.model, self.tokenizer, name=name)

    def divergence(self, base: torch.Tensor) -> float:
        """Mean KL(base ‖ model) in nats over the first tokens that the base says to the divergence's statements.

        Args:
            base: logits of the base there, float32, shape (statements, vocabulary).
        """
        kl = full_divergence(next_logits(self.bench.base_view, self.model), base)[1]
        return float(kl.mean())


def grouped(groups: Mapping[str, Sequence[Fact]], hits: Mapping[str, tuple[int, int]]) -> Counts:
    """Sums over the facts of each group."""
    return {
        name: (sum(hits[fact.id][0] for fact in facts), sum(hits[fact.id][1] for fact in facts))
        for name, facts in groups.items()
    }
