"""Two evaluations compared question by question: which are the same, who answered what, and how sure the difference is.

The first model is called ``a``, the second ``b``; every difference is b − a.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from sftknow.artifacts.comparisons import Comparison, PairedDifference, PairedQuestion
from sftknow.artifacts.scores import METRICS
from sftknow.errors import MasteryDataError
from sftknow.records import BUCKETS, SPLITS, EvalRun, Fact, QuestionResult, Split
from sftknow.stats import (
    PairedCounts,
    bootstrap_differences,
    mcnemar,
    percentile_interval,
    stratified_mcnemar,
)


def compare(
    a: EvalRun,
    b: EvalRun,
    *,
    facts: Mapping[tuple[str, str], Fact] | None = None,
    splits: Sequence[Split] | None = None,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare two evaluations on the same questions of the same graded data set.

    A split that only one of them has is left out and named; so is the split ``train`` where the models were trained on
    different facts, since each is asked its own.

    Args:
        a: an evaluation with its questions.
        b: another.
        facts: by split and id, for the questions' texts and answers; None leaves them empty.
        splits: compare these only, and take it for an error where one cannot be.
        resamples: of the bootstrap.
        level: of the intervals, between 0 and 1.
        seed: of the bootstrap.

    Raises:
        MasteryDataError: the evaluations are of different data sets, or of different questions in a split, or have no
            split in common; or a question was asked twice.
    """
    if a.dataset_fingerprint != b.dataset_fingerprint:
        raise MasteryDataError(
            f"{a.model} and {b.model} were scored on different graded data sets (fingerprints "
            f"{a.dataset_fingerprint[:12]} and {b.dataset_fingerprint[:12]}); evaluate both on the same one (--mastery)"
        )
    paired, left_out = _pair(a, b, splits)
    differences: list[PairedDifference] = []
    for split, pairs in paired.items():
        differences += _split_differences(split, pairs, resamples=resamples, level=level, seed=seed)
    return Comparison(
        a=a.model,
        b=b.model,
        dataset_fingerprint=a.dataset_fingerprint,
        graded_by=a.graded_by,
        level=level,
        resamples=resamples,
        seed=seed,
        differences=tuple(differences),
        missing=tuple(
            f"cbqa_mastery_{split}_bucket_{bucket}"
            for split, pairs in paired.items()
            for bucket in BUCKETS
            if all(first.bucket != bucket for first, _ in pairs)
        ),
        left_out=left_out,
        questions=tuple(_question(one, two, facts) for pairs in paired.values() for one, two in pairs),
    )


Pairs = list[tuple[QuestionResult, QuestionResult]]


def _pair(a: EvalRun, b: EvalRun, splits: Sequence[Split] | None) -> tuple[dict[Split, Pairs], dict[str, str]]:
    """The questions of each split side by side in a's order, and the splits left out."""
    paired: dict[Split, Pairs] = {}
    left_out: dict[str, str] = {}
    for split in SPLITS:
        first, second = _by_id(a, split), _by_id(b, split)
        if not (first or second) or (splits is not None and split not in splits):
            continue
        reason = ""
        if not (first and second):
            reason = f"only {a.model if first else b.model} was scored on it"
        elif split == "train" and first.keys() != second.keys():
            reason = "the models were trained on different facts"
        if reason:
            left_out[split] = reason
            continue
        _same_questions(a.model, b.model, split, first, second)
        paired[split] = [(question, second[fact_id]) for fact_id, question in first.items()]
    unscored = [split for split in splits or () if split not in paired and split not in left_out]
    left_out |= dict.fromkeys(unscored, "neither model was scored on it")
    if splits is not None and left_out:
        name, reason = next(iter(left_out.items()))
        raise MasteryDataError(f"{a.model} and {b.model} cannot be compared on {name}: {reason}")
    if not paired:
        reasons = "; ".join(f"{split}: {reason}" for split, reason in left_out.items()) or "no question was kept"
        raise MasteryDataError(f"{a.model} and {b.model} have no split in common that can be compared ({reasons})")
    return paired, left_out


def _by_id(run: EvalRun, split: Split) -> dict[str, QuestionResult]:
    asked = [question for question in run.questions if question.split == split]
    found = {question.fact_id: question for question in asked}
    if len(found) != len(asked):
        raise MasteryDataError(f"{run.model} was asked {len(asked) - len(found)} questions of {split} twice")
    return found


def _same_questions(
    a: str, b: str, split: str, first: Mapping[str, QuestionResult], second: Mapping[str, QuestionResult]
) -> None:
    """Raise MasteryDataError, bucket by bucket, where the two were not asked the same."""
    for bucket in BUCKETS:
        one = {fact_id for fact_id, question in first.items() if question.bucket == bucket}
        two = {fact_id for fact_id, question in second.items() if question.bucket == bucket}
        if one != two:
            raise MasteryDataError(
                f"{a} and {b} were not asked the same questions: in bucket {bucket} of {split} {len(one - two)} were "
                f"put to {a} alone and {len(two - one)} to {b} alone; evaluate both whole (without --limit)"
            )


def _question(a: QuestionResult, b: QuestionResult, facts: Mapping[tuple[str, str], Fact] | None) -> PairedQuestion:
    fact = (facts or {}).get((a.split, a.fact_id))
    if fact is None:
        return PairedQuestion(a=a, b=b)
    return PairedQuestion(a=a, b=b, question=fact.question, answers=fact.answers)


def _split_differences(
    split: Split, pairs: Pairs, *, resamples: int, level: float, seed: int
) -> Iterable[PairedDifference]:
    """The group's difference and then each bucket's, in every metric."""
    group = f"cbqa_mastery_{split}"
    by_bucket = {bucket: [pair for pair in pairs if pair[0].bucket == bucket] for bucket in BUCKETS}
    by_bucket = {bucket: found for bucket, found in by_bucket.items() if found}
    groups: list[PairedDifference] = []
    leaves: list[PairedDifference] = []
    for metric in METRICS:
        counts = [_counts(found, metric) for found in by_bucket.values()]
        drawn = bootstrap_differences(counts, resamples=resamples, seed=seed)
        shares = []
        for (bucket, found), count, draws in zip(by_bucket.items(), counts, drawn, strict=True):
            shares.append((_share(found, 0, metric), _share(found, 1, metric)))
            leaves.append(
                _difference(
                    f"{group}_bucket_{bucket}",
                    metric,
                    [count],
                    shares[-1],
                    percentile_interval(draws, level),
                    mcnemar(count.gained, count.lost),
                )
            )
        means = (_mean([one for one, _ in shares]), _mean([two for _, two in shares]))
        interval = percentile_interval(drawn.mean(axis=0), level)
        groups.append(_difference(group, metric, counts, means, interval, stratified_mcnemar(counts)))
    return [*groups, *leaves]


def _difference(
    task: str,
    metric: str,
    counts: Sequence[PairedCounts],
    shares: tuple[float, float],
    interval: tuple[float, float],
    p_value: float,
) -> PairedDifference:
    return PairedDifference(
        task=task,
        metric=metric,
        count=sum(count.count for count in counts),
        a=shares[0],
        b=shares[1],
        # From the counts and not from the shares: equal numbers of gains and losses give 0 and not a rounding error.
        difference=_mean([count.difference for count in counts]),
        low=interval[0],
        high=interval[1],
        gained=sum(count.gained for count in counts),
        lost=sum(count.lost for count in counts),
        p_value=p_value,
    )


def _counts(pairs: Pairs, metric: str) -> PairedCounts:
    before = [getattr(one, metric) for one, _ in pairs]
    after = [getattr(two, metric) for _, two in pairs]
    return PairedCounts(
        count=len(pairs),
        gained=sum(two and not one for one, two in zip(before, after, strict=True)),
        lost=sum(one and not two for one, two in zip(before, after, strict=True)),
    )


def _share(pairs: Pairs, side: Literal[0, 1], metric: str) -> float:
    return sum(bool(getattr(pair[side], metric)) for pair in pairs) / len(pairs)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
