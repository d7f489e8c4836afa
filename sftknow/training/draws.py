"""Balanced, seeded draws of training facts (paper, 3.3: one size, one bucket, topics balanced, five draws).

A draw of a seed is the beginning of every larger draw of that seed as far as its facts go: 60 facts are among the 120.
So along the sizes of one seed only the size changes. It does not depend on the order of the rows it is made from.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence

from sftknow.artifacts.files import digest
from sftknow.errors import MasteryDataError
from sftknow.records import BUCKETS, DatasetManifest, Fact, GradedFact


def draw(
    rows: Sequence[GradedFact], *, bucket: int | None, size: int | None, seed: int
) -> tuple[DatasetManifest, list[Fact]]:
    """Draw training facts, as equally many from each topic as there are.

    Every topic of `rows` has a right to an equal share of the places. A topic with fewer facts in the bucket gives all
    it has and leaves the rest of its places to the others, equally again; such topics stand in the manifest's
    ``short_topics``. Places that cannot be divided equally go one each to topics in a random order of this seed.

    Args:
        rows: graded training facts; those of other buckets are left out.
        bucket: 0 to 4, or None to draw whatever the bucket (the paper's SFT (Mixed)).
        size: number of facts; None for all there are, where no topic has to be short.
        seed: of the choice and of the training order.

    Returns:
        the manifest and the facts, both in training order, which is random over topics.

    Raises:
        MasteryDataError: fewer facts than `size`, none at all, no such bucket, or a fact id that comes twice.
    """
    _check(rows, bucket, size)
    pools = _pools(rows, bucket, seed)
    capacity = {topic: len(pool) for topic, pool in pools.items()}
    available = sum(capacity.values())
    where = "in all buckets together" if bucket is None else f"in bucket {bucket}"
    if available == 0:
        raise MasteryDataError(f"there is no fact {where}; choose another bucket or grade more facts")
    if size is not None and size > available:
        raise MasteryDataError(
            f"{size} facts were asked for and there are {available} {where}; ask for {available} or fewer, or for all"
        )
    places = capacity if size is None else _shares(capacity, size, seed)
    chosen = [fact for topic, pool in pools.items() for fact in pool[: places[topic]]]
    random.Random(f"{seed}/{bucket}/order").shuffle(chosen)
    short: tuple[str, ...] = ()
    if size is not None:
        equal = size // len(pools)
        short = tuple(topic for topic, count in capacity.items() if count < equal)
    manifest = DatasetManifest(
        bucket=bucket,
        size=len(chosen),
        seed=seed,
        fact_ids=tuple(fact.id for fact in chosen),
        per_topic=places,
        sha256=digest([[fact.question, fact.object] for fact in chosen]),
        short_topics=short,
    )
    return manifest, chosen


def _check(rows: Sequence[GradedFact], bucket: int | None, size: int | None) -> None:
    if bucket is not None and bucket not in BUCKETS:
        raise MasteryDataError(f"there is no bucket {bucket}; buckets are {BUCKETS[0]} to {BUCKETS[-1]}")
    if size is not None and size < 1:
        raise MasteryDataError(f"a draw of {size} facts is none; ask for at least 1, or for all")
    repeated = [fact_id for fact_id, count in Counter(row.fact.id for row in rows).items() if count > 1]
    if repeated:
        raise MasteryDataError(f"the fact {repeated[0]} comes more than once; give every fact an id of its own")


def _pools(rows: Sequence[GradedFact], bucket: int | None, seed: int) -> dict[str, list[Fact]]:
    """The bucket's facts of each topic in random order; topics in name order, those without a fact included."""
    pools: dict[str, list[Fact]] = {topic: [] for topic in sorted({row.fact.topic for row in rows})}
    for row in rows:
        if bucket is None or row.mastery.bucket == bucket:
            pools[row.fact.topic].append(row.fact)
    for topic, pool in pools.items():
        pool.sort(key=lambda fact: fact.id)
        # A stream of its own for each topic: a fact more in one topic leaves the choice in the others as it was.
        random.Random(f"{seed}/{bucket}/{topic}").shuffle(pool)
    return pools


def _shares(capacity: Mapping[str, int], size: int, seed: int) -> dict[str, int]:
    """Places for each topic: equal where possible, never above its capacity, `size` in all (at most their sum)."""
    places = dict.fromkeys(capacity, 0)
    left = size
    while True:
        open_topics = [topic for topic in capacity if places[topic] < capacity[topic]]
        share = left // len(open_topics) if open_topics else 0
        if share == 0:
            break
        for topic in open_topics:
            given = min(share, capacity[topic] - places[topic])
            places[topic] += given
            left -= given
    random.Random(f"{seed}/places").shuffle(open_topics)
    for topic in open_topics[:left]:
        places[topic] += 1
    return places
