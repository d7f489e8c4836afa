"""Which candidates go on, which is chosen, and what is called repaired; by simulation how often that is wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sftknow.checking.choice import (
    Standing,
    best_control,
    confirmed,
    hopeless,
    more_facts,
    pick,
    points,
    survivors,
)
from sftknow.checking.kept import Hits, Kept, kept_share, mean_change, share_gained


def kept(share: float, reach: float = 0.01, facts: int = 100) -> Kept:
    return Kept(share=share, low=share - reach, high=share + reach, facts=facts)


def stands(name: str, gain: float, task: float = 0.0, *, control: bool = False, reach: float = 0.01) -> Standing:
    return Standing(name=name, control=control, gain=kept(gain, reach), task=kept(task, reach))


FIELD = [
    stands("a", 0.10, -0.005),
    stands("breaks", 0.50, -0.30),
    stands("b", 0.05),
    stands("over", 0.20, -0.015),
    stands("worse", -0.05),
    stands("c1", 0.01, control=True),
    stands("c2", 0.03, control=True),
]


def test_the_better_half_goes_on() -> None:
    assert survivors(FIELD, 0.01) == ["a", "b", "over", "c2"]
    assert survivors([stands("x", 0.1, -0.5), stands("c", 0.1, -0.5, control=True)], 0.01) == ["c"]


def test_what_is_picked_gains_most_and_keeps() -> None:
    assert pick(FIELD, 0.01) == "a"
    assert pick(FIELD, 0.02) == "over"
    assert pick([stands("x", -0.1), stands("c", 0.2, control=True)], 0.01) is None
    assert best_control(FIELD, 0.01) == "c2"
    assert best_control([stands("c", 0.1, -0.5, control=True)], 0.01) == "c"


def test_hopeless_is_said_of_all_together() -> None:
    assert hopeless([stands("x", 0.0), stands("y", 0.3, -0.5)], 0.02, 0.01)
    assert not hopeless([stands("x", 0.0, reach=0.1), stands("y", 0.3, -0.5)], 0.02, 0.01)


@pytest.mark.parametrize(
    ("gain", "task", "outcome"),
    [
        (kept(0.1), kept(0.0), "repaired"),
        (kept(0.1), None, "repaired"),
        (kept(0.1, 0.2), kept(0.0), "open"),
        (kept(0.1), kept(-0.015), "open"),
        (kept(0.1), kept(-0.05), "no help"),
        (kept(0.0), kept(0.0), "no help"),
        (kept(0.015, 0.002), kept(0.0), "no help"),
        (None, None, "open"),
    ],
)
def test_what_is_confirmed(gain: Kept | None, task: Kept | None, outcome: str) -> None:
    assert confirmed(gain, task, margin=0.02, keep_margin=0.01) == outcome


def test_more_facts_shrink_the_interval_to_the_gain() -> None:
    assert more_facts(kept(0.1, 0.2), 100) == 300
    assert more_facts(kept(-0.1, 0.2), 100) is None
    assert more_facts(Kept(share=0.1, low=-math.inf, high=math.inf, facts=3), 100) is None
    assert points(Kept(share=0.1, low=-math.inf, high=math.inf, facts=3)).low is None  # type: ignore[union-attr]


def world(seed: int, facts: int = 120) -> tuple[Hits, Hits, Hits]:
    """A base and a model that lost a fifth, one that lost a tenth, and the base again."""
    random = np.random.default_rng(seed)
    rates = random.beta(0.5, 0.5, size=(facts, 1))
    tries = np.full((facts, 6), 2)
    before = random.binomial(tries, rates)
    models = [random.binomial(tries, rates * (random.random((facts, 1)) >= lost)) for lost in (0.2, 0.1)]
    return tuple(Hits(before=before, after=after, tries=tries) for after in (*models, before))  # type: ignore[return-value]


def test_a_gain_is_the_difference_of_the_two_shares() -> None:
    first, second, same = world(1)
    found, one, two = share_gained(first, second), kept_share(first), kept_share(second)
    assert found is not None
    assert one is not None
    assert two is not None
    assert found.share == pytest.approx(two.share - one.share)
    none = share_gained(first, first)
    assert none is not None
    assert none.share == 0
    assert none.low == -none.high < 0, "n facts without a change do not exclude one in either direction"
    assert same.after is same.before


def test_its_interval_covers() -> None:
    """Of 400 simulated pairs the 95 % interval holds the mean of all at least 372 times (binomial, 0.4 %)."""
    gains = [share_gained(*world(seed)[:2]) for seed in range(400)]
    truth = np.mean([gain.share for gain in gains if gain])
    assert sum(gain.low <= truth <= gain.high for gain in gains if gain) >= 372


def test_a_mean_of_differences() -> None:
    values = np.array([0.0, 1.0, -1.0, 0.5] * 10)
    found = mean_change(values)
    assert found is not None
    assert found.share == pytest.approx(values.mean())
    assert found.high - found.share == pytest.approx(2.0227 * values.std(ddof=1) / np.sqrt(40), rel=1e-3)
    assert mean_change(np.array([])) is None
    assert mean_change(values[:4]).high == math.inf  # type: ignore[union-attr]


def test_the_pick_of_many_that_do_nothing_is_rarely_called_a_repair() -> None:
    """Twenty candidates that are the fine-tuned model again: the best on one half is measured on the other."""
    wrong = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        rates = random.beta(0.5, 0.5, size=(200, 1))
        tries = np.full((200, 6), 2)
        base, tuned, *others = random.binomial(tries, rates, size=(22, 200, 6))
        halves = [
            [share_gained(*(Hits(before=base[h], after=m[h], tries=tries[h]) for m in (tuned, o))) for o in others]
            for h in (slice(0, 100), slice(100, 200))
        ]
        best = max(range(20), key=lambda i: halves[0][i].share)  # type: ignore[union-attr]
        wrong += confirmed(halves[1][best], None, margin=0.02, keep_margin=0.01) == "repaired"
    assert wrong <= 7, f"{wrong} of 100 (2.5 % are to be expected)"
