"""From tallies to mastery: R, its bucket, its interval. Pure, on integers (paper, 3.1 and 3.3)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from sftknow.errors import MasteryDataError
from sftknow.records import BUCKETS, SPLITS, GradedFact, Mastery, SampleTally
from sftknow.stats import bucket_of, wilson


def grade(fact_id: str, tallies: Iterable[SampleTally]) -> Mastery:
    """Put together what the statements of one fact gave.

    Args:
        fact_id: the fact.
        tallies: one for each statement that was sampled, in any order.

    Returns:
        The fact's mastery. The tallies stand at the index of their template; a template that was left out has
        0 tries. ``edge`` is True where the Wilson interval reaches into another bucket: so always at no hits,
        because the interval then holds rates above 0.

    Raises:
        MasteryDataError: no tally, a tally of another fact, or two of one template.
    """
    by_template: dict[int, SampleTally] = {}
    for tally in tallies:
        if tally.fact_id != fact_id:
            raise MasteryDataError(f"a tally of {tally.fact_id} among those of {fact_id}")
        if tally.template in by_template:
            raise MasteryDataError(f"two tallies of template {tally.template} of {fact_id}")
        by_template[tally.template] = tally
    if not any(tally.tries for tally in by_template.values()):
        raise MasteryDataError(f"no samples of {fact_id}: a fact needs at least one statement to be graded")
    count = max(by_template) + 1
    template_hits = tuple(by_template[i].hits if i in by_template else 0 for i in range(count))
    template_tries = tuple(by_template[i].tries if i in by_template else 0 for i in range(count))
    hits, tries = sum(template_hits), sum(template_tries)
    low, high = wilson(hits, tries)
    bucket = bucket_of(hits, tries)
    return Mastery(
        fact_id=fact_id,
        template_hits=template_hits,
        template_tries=template_tries,
        hits=hits,
        tries=tries,
        bucket=bucket,
        low=low,
        high=high,
        edge=not _bucket_of_rate(low) == bucket == _bucket_of_rate(high),
    )


def distribution(rows: Sequence[GradedFact]) -> dict[str, dict[int, int]]:
    """Facts in each bucket of each split, empty ones included (paper, Table 1).

    Returns:
        {split: {bucket: facts}} in the order of `SPLITS` and `BUCKETS`.
    """
    counts: dict[str, dict[int, int]] = {split: dict.fromkeys(BUCKETS, 0) for split in SPLITS}
    for row in rows:
        counts[row.fact.split][row.mastery.bucket] += 1
    return counts


def _bucket_of_rate(rate: float) -> int:
    """The bucket of a rate that is no count, such as an interval's end."""
    return math.ceil(4 * rate)
