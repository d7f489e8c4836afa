"""What others say of a model's accuracy, read with distrust: only numbers come out, and only such as can be true."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import yaml

from sftknow.leaderboard.standings import SplitScore
from sftknow.records import SPLITS, Split
from sftknow.stats import NORMAL_95

LARGEST_FILE = 64 * 1024
"""Bytes of a results file; a longer one is none."""

_TASK = re.compile(r"cbqa_mastery_(?P<split>dev|test|testood)(?:_bucket_(?P<bucket>[0-4]))?")
_COUNT = re.compile(r"percent of (\d{1,9}) questions")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class NotCounted(Exception):  # noqa: N818 - no error: results that are told among those left out
    """Results that cannot be ranked. Its text is our own: nothing of what was read stands in it as it is."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """An accuracy that somebody tells."""

    percent: float
    digits: int
    """Decimal places that it was told with."""
    count: int | None
    """Questions behind it; None where that is not told."""
    revision: str | None = None
    """Commit of the data set; None where that is not told, or is no commit."""

    def agrees(self, share: float) -> bool:
        """True where a share, rounded as this was, is this."""
        return abs(self.percent - 100 * share) <= 0.5 * 10.0**-self.digits + 1e-9


Place = tuple[Split, int | None]
"""A split, and one of its buckets or None for the mean over them."""


def place_of(task: Any) -> Place | None:
    """What a task's name stands for; None for what is none of this data set's."""
    found = _TASK.fullmatch(task) if isinstance(task, str) else None
    if found is None:
        return None
    return cast(Split, found["split"]), int(found["bucket"]) if found["bucket"] else None


def read_claims(files: Iterable[bytes], dataset: str) -> dict[Place, Told]:
    """The results for one data set in a model's ``.eval_results`` files.

    Raises:
        NotCounted: a file is no YAML of the documented form, or tells two numbers for one thing.
    """
    told: dict[Place, Told] = {}
    for content in files:
        for entry in _entries(content):
            of = entry.get("dataset")
            if not isinstance(of, dict) or of.get("id") != dataset:
                continue
            place = place_of(of.get("task_id"))
            if place is None:
                continue
            value, notes, revision = entry.get("value"), entry.get("notes"), of.get("revision")
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 100:
                raise NotCounted("a value is no percentage between 0 and 100")
            found = _COUNT.search(notes) if isinstance(notes, str) else None
            known = revision if isinstance(revision, str) and _COMMIT.fullmatch(revision) else None
            digits = len(repr(float(value)).partition(".")[2].removesuffix("0"))
            new = Told(percent=float(value), digits=digits, count=int(found[1]) if found else None, revision=known)
            if told.setdefault(place, new).percent != new.percent:
                raise NotCounted("its results files tell two numbers for the same questions")
    return told


def _entries(content: bytes) -> list[dict[str, Any]]:
    try:
        found = yaml.safe_load(content.decode("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError):
        raise NotCounted("a results file of it is no YAML") from None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise NotCounted("a results file of it is not a list of results")
    return found


def scores_of(told: Mapping[Place, Told], counts: Mapping[Split, Mapping[int, int]]) -> dict[Split, SplitScore]:
    """The scores that were told, of every split with all its buckets or its mean.

    Args:
        told: the accuracies.
        counts: questions of the data set for each split and bucket.

    Raises:
        NotCounted: they are of a part of the questions, or cannot be: no number of right answers gives them, or the
            mean is not that of the buckets.
    """
    found = {}
    for split in SPLITS:
        sizes = {bucket: count for bucket, count in counts[split].items() if count}
        mean = told.get((split, None))
        buckets = {bucket: told[split, bucket] for bucket in sizes if (split, bucket) in told}
        whole = len(buckets) == len(sizes)
        if not sizes or (mean is None and not (buckets and whole)):
            continue
        parts = [(one, sizes[bucket]) for bucket, one in buckets.items()]
        for one, size in [*parts, (mean, sum(sizes.values()))]:
            if one is not None and one.count not in (None, size):
                raise NotCounted(f"scored on {one.count:,} of {size:,} questions of {split}")
        shares = {bucket: _share(one, sizes[bucket], split) for bucket, one in buckets.items()}
        if (
            whole
            and mean
            and not Told(percent=mean.percent, digits=min(mean.digits, 2), count=None).agrees(_mean(shares.values()))
        ):
            raise NotCounted(f"its mean on {split} is not that of its buckets")
        value = _mean(shares.values()) if whole else cast(Told, mean).percent / 100
        found[split] = split_score(value, shares if whole else {}, sizes)
    return found


def _share(told: Told, count: int, split: str) -> float:
    """The share of right answers that was rounded. A number that no count of answers gives is told for what it is."""
    right = round(told.percent / 100 * count)
    if not told.agrees(right / count):
        raise NotCounted(f"a value on {split} is impossible: no number of right answers out of {count:,} gives it")
    return right / count


def split_score(value: float, shares: Mapping[int, float], sizes: Mapping[int, int]) -> SplitScore:
    """The score with its 95 % interval.

    Args:
        value: plain mean over the buckets.
        shares: accuracy of each bucket; empty where they are not known. The standard error is then the largest that
            buckets of these sizes can give a mean of this value.
        sizes: questions of each bucket that has any.
    """
    if shares:
        variances = [p * (1 - p) / max(1, sizes[bucket] - 1) for bucket, p in shares.items()]
    else:
        variances = [value * (1 - value) / max(1, min(sizes.values()) - 1)] * len(sizes)
    stderr = math.sqrt(math.fsum(variances)) / len(sizes)
    return SplitScore(
        value=value,
        stderr=stderr,
        low=max(0.0, value - NORMAL_95 * stderr),
        high=min(1.0, value + NORMAL_95 * stderr),
        buckets=dict(shares),
    )


def _mean(shares: Iterable[float]) -> float:
    values = list(shares)
    return math.fsum(values) / len(values)
