"""The estimate of what is kept: by hand on small cases, by simulation of known truths."""

from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import fisher_exact

from sftknow.artifacts.checks import CheckResult
from sftknow.checking.kept import (
    FEWEST,
    Hits,
    Kept,
    by_level,
    facts_needed,
    kept_share,
    plain_already,
    surely_worse,
    verdict,
)
from sftknow.facts.sources import order_of
from sftknow.stats import bucket_of


def hits(before: list[list[int]], after: list[list[int]], tries: int = 2) -> Hits:
    one, two = np.array(before), np.array(after)
    return Hits(before=one, after=two, tries=np.full_like(one, tries))


def simulated(
    random: np.random.Generator, facts: int, loss: float, *, whole: bool, templates: int = 6, samples: int = 2
) -> Hits:
    """Facts of which half are unknown. Each known one loses that share, or that share of them is lost as a whole."""
    rate = np.where(random.random(facts) < 0.5, random.beta(0.6, 0.8, facts), 0.0)
    before = np.clip(rate[:, None] * random.uniform(0.3, 1.7, (facts, templates)), 0, 1)
    left = (random.random(facts) >= loss)[:, None] if whole else 1 - loss
    tries = np.full((facts, templates), samples)
    return Hits(before=random.binomial(samples, before), after=random.binomial(samples, before * left), tries=tries)


def test_by_hand() -> None:
    # The first fact is known by both halves, the second by the odd statements only, the third by none.
    found = hits([[2, 1, 2, 1], [2, 0, 2, 0], [0, 0, 0, 0]] * 10, [[1, 1, 1, 1], [2, 2, 2, 2], [2, 2, 2, 2]] * 10)
    kept = kept_share(found)
    # Odd statements: 1.0 before, 0.5 after; even: 0.5 before, 0.5 after. The second: even ones, 0 before, 1 after.
    assert kept is not None
    assert kept.share == pytest.approx((0.5 + 0.5 + 1.0) / (1.0 + 0.5 + 0.0))
    assert kept.facts == 20


def test_a_model_against_itself_keeps_all_and_says_no_more_than_its_facts_can() -> None:
    random = np.random.default_rng(0)
    before = random.binomial(2, 0.5, (200, 6))
    kept = kept_share(Hits(before=before, after=before, tries=np.full((200, 6), 2)))
    assert kept is not None
    assert (kept.share, kept.high) == (1, 1)
    assert kept.low == pytest.approx(0.05 ** (1 / kept.facts))  # no loss among n facts excludes one of 3 ÷ n, not of 0


def test_nothing_known_and_too_little_known() -> None:
    nothing = hits([[0, 0]] * 50, [[2, 2]] * 50)
    assert kept_share(nothing) is None
    assert verdict(None, 0.02) == "open"
    few = kept_share(hits([[2, 2]] * (FEWEST - 1), [[0, 0]] * (FEWEST - 1)))
    assert few is not None
    assert few.reach == math.inf
    assert verdict(few, 0.02) == "open"
    assert facts_needed(few, 0.02, 19) is None
    one_statement = hits([[2]] * 50, [[2]] * 50)
    assert kept_share(one_statement) is None  # no half measures what the other chose


@pytest.mark.parametrize(("loss", "whole"), [(0.0, False), (0.1, False), (0.1, True), (0.5, True)])
def test_the_interval_holds_the_truth_and_the_share_has_no_bias(loss: float, whole: bool) -> None:
    random = np.random.default_rng([int(100 * loss), whole])
    found = [kept_share(simulated(random, 400, loss, whole=whole)) for _ in range(400)]
    kept = [one for one in found if one is not None]
    assert len(kept) == 400
    shares = np.array([one.share for one in kept])
    assert abs(shares.mean() - (1 - loss)) < 4 * shares.std() / 20
    held = np.mean([one.low <= 1 - loss <= one.high for one in kept])
    assert held > 0.92  # 0.95, and 0.92 is 2.75 standard errors below


def asked_in_blocks(found: Hits, margin: float, precision: float, block: int = 48) -> str:
    """The verdict of a check that asks in blocks and stops by its rules."""
    for number, end in enumerate(range(block, len(found.tries) + block, block), start=1):
        asked = Hits(before=found.before[:end], after=found.after[:end], tries=found.tries[:end])
        kept = kept_share(asked)
        if kept is not None and (kept.reach <= precision or plain_already(asked, number, margin)):
            break
    return verdict(kept, margin)


def test_at_most_one_alarm_in_twenty_is_false() -> None:
    """Two hundred pairs whose loss is just the margin: the hardest case of a loss that is not beyond it."""
    for whole in (False, True):
        random = np.random.default_rng([7, whole])
        said = Counter(asked_in_blocks(simulated(random, 960, 0.05, whole=whole), 0.05, 0.03) for _ in range(200))
        assert said["lost"] <= 10, said
        assert said["kept"] <= 10, said


def test_large_losses_and_their_absence_are_told() -> None:
    random = np.random.default_rng(1)
    large = Counter(asked_in_blocks(simulated(random, 960, 0.25, whole=True), 0.05, 0.03) for _ in range(50))
    none = Counter(asked_in_blocks(simulated(random, 960, 0.0, whole=True), 0.1, 0.03) for _ in range(50))
    assert large["lost"] == 50
    assert none["kept"] >= 48


def test_by_level_is_measured_apart_from_what_chose_the_level() -> None:
    random = np.random.default_rng(2)
    found = simulated(random, 4000, 0.0, whole=False)
    for bucket, facts, before, after in by_level(found):
        assert abs(before - after) < 6 / math.sqrt(12 * facts), bucket  # the same model measured twice


@given(arrays(np.int64, (6, 3, 4), elements=st.integers(0, 2)))
def test_buckets_and_flow(drawn: np.ndarray) -> None:
    before, after = drawn[:3].reshape(9, 4), drawn[3:].reshape(9, 4)
    tries = np.full((9, 4), 2)
    one, two = (bucket_of(side.sum(1), tries.sum(1)).tolist() for side in (before, after))
    assert one == [bucket_of(int(row.sum()), 8) for row in before]
    expected = Counter(
        (bucket_of(int(a.sum()), 8), bucket_of(int(b.sum()), 8)) for a, b in zip(before, after, strict=True)
    )
    facts = [SimpleNamespace(bucket_before=i, bucket_after=j) for i, j in zip(one, two, strict=True)]
    table = np.array(CheckResult.flow(SimpleNamespace(facts=facts)))
    assert {(i, j): int(table[i, j]) for i in range(5) for j in range(5) if table[i, j]} == dict(expected)


def test_single_facts_by_fisher_and_holm() -> None:
    before, after = np.array([[12], [12], [3]]), np.array([[0], [11], [3]])
    tries = np.full((3, 1), 12)
    assert list(surely_worse(before, after, tries)) == [True, False, False]
    exact = fisher_exact([[12, 0], [5, 7]], alternative="greater").pvalue
    assert list(surely_worse(before[:1], np.array([[5]]), tries[:1], level=exact * 1.001)) == [True]
    assert list(surely_worse(before[:1], np.array([[5]]), tries[:1], level=exact * 0.999)) == [False]


def test_verdicts_and_how_many_more() -> None:
    kept = Kept(share=0.95, low=0.91, high=0.99, facts=100)
    assert [verdict(kept, margin) for margin in (0.1, 0.05, 0.0)] == ["kept", "open", "lost"]
    assert facts_needed(kept, 0.02, 300) == math.ceil(300 * (0.04 / 0.03) ** 2) - 300
    assert facts_needed(kept, 1 - 0.95, 300) is None


def test_every_beginning_is_balanced() -> None:
    relations = ["a"] * 10 + ["b"] * 10 + ["c"] * 2
    ranks = [bytes([i * 37 % 22]) for i in range(22)]
    order = order_of(relations, ranks)
    assert sorted(order) == list(range(22))
    assert Counter(relations[i] for i in order[:6]) == {"a": 2, "b": 2, "c": 2}
    assert Counter(relations[i] for i in order[:10]) == {"a": 4, "b": 4, "c": 2}
