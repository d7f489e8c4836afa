"""Draws: balance, nesting, seeds, and what happens when facts run short."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given, settings, strategies as st

from sftknow.errors import MasteryDataError
from sftknow.records import GradedFact
from sftknow.training.draws import draw
from tests.tiny import graded, tiny_facts


def rows_of(counts: dict[str, int], bucket: int = 2) -> list[GradedFact]:
    """That many facts of each topic, all in one bucket."""
    return [graded(fact, bucket) for topic, n in counts.items() for fact in tiny_facts(n, topics=(topic,))]


def brute_force_shares(counts: dict[str, int], size: int) -> list[int]:
    """Deal places one by one to a topic with the fewest places that still has facts; sorted."""
    places = dict.fromkeys(counts, 0)
    for _ in range(size):
        topic = min((t for t in counts if places[t] < counts[t]), key=lambda t: places[t])
        places[topic] += 1
    return sorted(places.values())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=6), st.data())
def test_places_are_those_of_dealing_them_out_one_by_one(counts: list[int], data: st.DataObject) -> None:
    capacity = {f"P{i}": count for i, count in enumerate(counts)}
    if sum(counts) == 0:
        return
    size = data.draw(st.integers(1, sum(counts)))
    rows = rows_of(capacity)
    manifest, facts = draw(rows, bucket=2, size=size, seed=data.draw(st.integers(0, 5)))
    present = {t: n for t, n in capacity.items() if n}
    drawn = {t: sum(f.topic == t for f in facts) for t in present}
    assert len(facts) == len({f.id for f in facts}) == size == manifest.size
    assert dict(manifest.per_topic) == drawn
    assert sorted(drawn.values()) == brute_force_shares(present, size)


def test_topics_that_run_short_leave_their_places_to_the_others() -> None:
    rows = rows_of({"P17": 3, "P36": 40, "P19": 40}) + rows_of({"P20": 10}, bucket=0)
    manifest, _ = draw(rows, bucket=2, size=40, seed=0)
    assert manifest.per_topic["P17"] == 3
    assert manifest.per_topic["P20"] == 0
    assert sorted([manifest.per_topic["P36"], manifest.per_topic["P19"]]) == [18, 19]
    assert manifest.short_topics == ("P17", "P20")
    assert draw(rows, bucket=2, size=8, seed=0)[0].short_topics == ("P20",)


def test_a_draw_contains_the_smaller_draws_of_its_seed() -> None:
    rows = rows_of({"P17": 9, "P36": 40, "P19": 23})
    previous: set[str] = set()
    for size in range(1, 73):
        ids = set(draw(rows, bucket=2, size=size, seed=3)[0].fact_ids)
        assert previous < ids
        previous = ids
    assert previous == set(draw(rows, bucket=2, size=None, seed=3)[0].fact_ids)


def test_the_draw_depends_on_the_seed_and_not_on_the_order_of_rows() -> None:
    rows = rows_of({"P17": 30, "P36": 30})
    shuffled = random.Random(1).sample(rows, len(rows))
    first, facts = draw(rows, bucket=2, size=20, seed=0)
    again, same = draw(shuffled, bucket=2, size=20, seed=0)
    assert first == again
    assert facts == same
    other, _ = draw(rows, bucket=2, size=20, seed=1)
    assert set(other.fact_ids) != set(first.fact_ids)
    assert other.sha256 != first.sha256


def test_the_manifest_lists_the_facts_in_training_order_and_topics_are_mixed() -> None:
    manifest, facts = draw(rows_of({"P17": 30, "P36": 30}), bucket=2, size=40, seed=0)
    assert manifest.fact_ids == tuple(f.id for f in facts)
    assert [f.topic for f in facts] != sorted(f.topic for f in facts)
    assert len({f.topic for f in facts[:8]}) == 2


def test_the_hash_covers_questions_answers_and_order() -> None:
    rows = rows_of({"P17": 4})
    manifest, _ = draw(rows, bucket=2, size=None, seed=0)
    changed = [dataclasses.replace(rows[0], fact=dataclasses.replace(rows[0].fact, object="Elsewhere")), *rows[1:]]
    assert draw(changed, bucket=2, size=None, seed=0)[0].sha256 != manifest.sha256
    assert draw(rows, bucket=2, size=None, seed=1)[0].sha256 != manifest.sha256


def test_only_the_bucket_asked_for_is_drawn_from_and_none_means_all() -> None:
    facts = tiny_facts(50)
    rows = [graded(fact, i % 5) for i, fact in enumerate(facts)]
    for bucket in range(5):
        manifest, chosen = draw(rows, bucket=bucket, size=None, seed=0)
        assert {f.id for f in chosen} == {r.fact.id for r in rows if r.mastery.bucket == bucket}
        assert manifest.bucket == bucket
    mixed, chosen = draw(rows, bucket=None, size=30, seed=0)
    buckets = {r.fact.id: r.mastery.bucket for r in rows}
    assert {buckets[f.id] for f in chosen} == {0, 1, 2, 3, 4}
    assert mixed.bucket is None
    assert draw(rows, bucket=None, size=None, seed=0)[0].size == 50


@pytest.mark.parametrize(
    ("bucket", "size", "message"),
    [
        (2, 11, r"11 facts .* 10 in bucket 2"),
        (0, None, "no fact in bucket 0"),
        (7, 1, "no bucket 7"),
        (2, 0, "0 facts"),
    ],
)
def test_draws_that_cannot_be_made_say_why(bucket: int, size: int | None, message: str) -> None:
    with pytest.raises(MasteryDataError, match=message):
        draw(rows_of({"P17": 5, "P36": 5}), bucket=bucket, size=size, seed=0)


def test_a_fact_that_comes_twice_is_refused() -> None:
    rows = rows_of({"P17": 3})
    with pytest.raises(MasteryDataError, match="P17/train/0 comes more than once"):
        draw([*rows, rows[0]], bucket=2, size=2, seed=0)
