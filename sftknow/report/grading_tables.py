"""What a grading gave, as tables for the terminal: the paper's Tables 1 and 8, and over how many tries R stands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from sftknow.artifacts.mastery_data import MasteryData
from sftknow.records import BUCKETS, SPLITS, Split
from sftknow.report.terminal import text_table

_PARTS: Mapping[Split, str] = {
    "train": "training",
    "dev": "in-domain dev",
    "test": "in-domain test",
    "testood": "out-of-domain test",
}


def topic_counts(data: MasteryData) -> dict[Split, dict[str, dict[int, int]]]:
    """Facts by split, topic and bucket, empty buckets included (the paper's Table 8). Topics in the order of names."""
    counts: dict[Split, dict[str, dict[int, int]]] = {split: {} for split in SPLITS}
    for split in SPLITS:
        found = {bucket: Counter(data.columns(split, bucket, ["topic"])["topic"].to_pylist()) for bucket in BUCKETS}
        for topic in sorted(set().union(*found.values()), key=_natural):
            counts[split][topic] = {bucket: found[bucket][topic] for bucket in BUCKETS}
    return counts


def topic_table(data: MasteryData) -> str:
    """Facts for each part, topic and bucket (the paper's Table 8), and the tries that R stands on in each topic."""
    tries = _tries(data)
    rows = []
    for split, topics in topic_counts(data).items():
        for topic, counts in topics.items():
            cells = [f"{count:,}" for count in counts.values()]
            rows.append([f"{_PARTS[split]} {topic}", *cells, f"{sum(counts.values()):,}", _span(tries[split, topic])])
    return text_table(["facts", *(f"bucket {bucket}" for bucket in BUCKETS), "all", "tries"], rows)


def standing(data: MasteryData) -> str:
    """Over how many tries R stands, and how sure the buckets are, in words."""
    tries: Counter[int] = sum(_tries(data).values(), Counter())
    if not tries:
        return "no fact was graded"
    edge = sum(sum(data.columns(split, bucket, ["edge"])["edge"].to_pylist()) for split in SPLITS for bucket in BUCKETS)
    total = tries.total()
    span = f"{_span(tries)} tries a fact"
    if len(tries) > 1:
        parts = [f"{t} for {n:,}{'' if place else ' facts'}" for place, (t, n) in enumerate(tries.most_common(4))]
        span += f" ({', '.join(parts)}{' …' if len(tries) > 4 else ''})"
    return (
        f"R stands on {span}. For {edge:,} of the {total:,} facts ({edge / total:.0%}) its 95 % interval reaches into\n"
        "another bucket, as it always does in bucket 0: a fact without a hit may have a small R above 0."
    )


def _tries(data: MasteryData) -> dict[tuple[Split, str], Counter[int]]:
    found: dict[tuple[Split, str], Counter[int]] = {}
    for split in SPLITS:
        for bucket in BUCKETS:
            table = data.columns(split, bucket, ["topic", "tries"])
            for topic, tries in zip(table["topic"].to_pylist(), table["tries"].to_pylist(), strict=True):
                found.setdefault((split, topic), Counter())[tries] += 1
    return found


def _span(tries: Counter[int]) -> str:
    low, high = min(tries), max(tries)
    return str(low) if low == high else f"{low} to {high}"


def _natural(topic: str) -> tuple[str, int, str]:
    """P36 before P131."""
    head = topic.rstrip("0123456789")
    digits = topic[len(head) :]
    return head, len(digits), digits
