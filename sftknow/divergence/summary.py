"""From examples to the numbers of one fine-tuned model: means, intervals, topics, buckets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from sftknow.artifacts.divergence import ExampleDivergence, SkippedFact
from sftknow.divergence.kl import bootstrap_interval
from sftknow.errors import ModelError
from sftknow.records import GroupDivergence, TokenDivergence

INFINITE = "divergence is infinite"
"""Why an example is in no mean (a key of ``skipped``)."""


def is_finite(example: ExampleDivergence) -> bool:
    """Whether an example can enter a mean: a token that one model alone rules out gives an infinite divergence."""
    return bool(np.isfinite([example.kl, example.full, example.full_reverse]).all())


def summarise(
    examples: Sequence[ExampleDivergence],
    *,
    headline: int,
    skipped: Sequence[SkippedFact],
    k: int,
    window: int,
    base_prompt: str,
    tuned_prompt: str,
    bootstrap: int,
    seed: int,
) -> TokenDivergence:
    """Means over the examples of the headline bucket, and beside them each topic and each bucket.

    Args:
        examples: all that were measured, of any bucket.
        headline: the bucket of the summary.
        skipped: facts left out, those with an infinite divergence among them.
        k: largest logits compared.
        window: tokens within which an answer had to start.
        base_prompt: what the base was shown.
        tuned_prompt: what the fine-tuned model was shown.
        bootstrap: resamples behind each interval.
        seed: of the bootstrap.

    Raises:
        ModelError: not one divergence of the headline bucket is finite.
    """
    finite = [e for e in examples if is_finite(e)]
    chosen = [e for e in finite if e.bucket == headline]
    if not chosen:
        raise ModelError(
            "every divergence is infinite: one model rules out tokens (logit -inf) that the other does not"
        )
    left_out = [fact for fact in skipped if fact.bucket == headline]
    low, high = _interval(chosen, bootstrap, seed)

    def mean(name: str) -> float:
        return _mean([float(getattr(e, name)) for e in chosen])

    def group(members: Sequence[ExampleDivergence], missing: Sequence[SkippedFact]) -> GroupDivergence:
        low, high = _interval(members, bootstrap, seed)
        return GroupDivergence(
            mean=_mean([e.kl for e in members]),
            low=low,
            high=high,
            full_mean=_mean([e.full for e in members]),
            top_changed=_mean([float(e.top_changed) for e in members]),
            count=len(members),
            skipped=len(missing),
        )

    return TokenDivergence(
        mean=mean("kl"),
        low=low,
        high=high,
        full_mean=mean("full"),
        full_reverse_mean=mean("full_reverse"),
        base_mass=mean("base_mass"),
        tuned_mass=mean("tuned_mass"),
        top_changed=mean("top_changed"),
        base_answer_probability=mean("base_answer_probability"),
        tuned_answer_probability=mean("tuned_answer_probability"),
        base_answer_first=_mean([float(e.base_answer_rank == 1) for e in chosen]),
        tuned_answer_first=_mean([float(e.tuned_answer_rank == 1) for e in chosen]),
        base_dummy_mass=mean("base_dummy_mass"),
        tuned_dummy_mass=mean("tuned_dummy_mass"),
        count=len(chosen),
        bucket=headline,
        k=k,
        window=window,
        base_prompt=base_prompt,
        tuned_prompt=tuned_prompt,
        skipped=Counter(fact.reason for fact in left_out),
        by_topic={
            topic: group([e for e in chosen if e.topic == topic], [f for f in left_out if f.topic == topic])
            for topic in sorted({e.topic for e in chosen})
        },
        by_bucket={
            str(bucket): group([e for e in finite if e.bucket == bucket], [f for f in skipped if f.bucket == bucket])
            for bucket in sorted({e.bucket for e in finite})
        },
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values, dtype=np.float64))


def _interval(examples: Sequence[ExampleDivergence], bootstrap: int, seed: int) -> tuple[float, float]:
    return bootstrap_interval(np.array([e.kl for e in examples]), resamples=bootstrap, seed=seed)
