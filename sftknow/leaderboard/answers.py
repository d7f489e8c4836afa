"""Published answers: which of a data set's questions a model got right, worked out anew from what it said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sftknow.answers import Matcher
from sftknow.artifacts.files import file_sha256
from sftknow.artifacts.mastery_data import MasteryData, bucket_file
from sftknow.artifacts.scores import SCHEMA
from sftknow.errors import MasteryDataError
from sftknow.leaderboard.claims import NotCounted, split_score
from sftknow.leaderboard.standings import SplitScore
from sftknow.models.hub_files import Repo
from sftknow.records import BUCKETS, SPLITS, Split
from sftknow.stats import PairedCounts

LARGEST_TABLE = 512 * 2**20
"""Bytes of a table of answers, unpacked; a larger one is not read."""
_COLUMNS = ("fact_id", "split", "bucket", "output")

Right = Mapping[Split, Mapping[int, npt.NDArray[np.bool_]]]
"""For each split and bucket, in the data set's order, whether the answer was right."""


@dataclass(frozen=True)
class Questions:
    """The data set's questions, read bucket by bucket as they are needed."""

    repo: Repo
    data: MasteryData
    _read: dict[tuple[Split, int], tuple[dict[str, int], list[Matcher]]] = field(default_factory=dict)

    @property
    def counts(self) -> dict[Split, dict[int, int]]:
        """Questions for each split and bucket."""
        return {split: {bucket: self.data.count(split, bucket) for bucket in BUCKETS} for split in SPLITS}

    def bucket(self, split: Split, bucket: int) -> tuple[dict[str, int], list[Matcher]]:
        """Places of the facts by id, and what counts as right for each.

        Raises:
            MasteryDataError: the file is missing or was changed after the data set was published.
            HubError: the Hub refused or could not be reached.
        """
        if (split, bucket) not in self._read:
            name = bucket_file(split, bucket)
            local = self.repo.file(name)
            if local is None or file_sha256(local) != self.data.manifest.get("sha256", {}).get(name):
                raise MasteryDataError(f"{name} of {self.repo.repo_id} is not what its sftknow.json names")
            rows = self.data.bucket(split, bucket)
            places = {row.fact.id: place for place, row in enumerate(rows)}
            self._read[split, bucket] = places, [Matcher(row.fact.answers) for row in rows]
        return self._read[split, bucket]

    def right(self, table: Path) -> Right:
        """Which answers of a published ``questions.parquet`` are right: for every split that was asked whole.

        Raises:
            NotCounted: it is no such table, or of other questions.
            MasteryDataError, HubError: as `bucket`.
        """
        asked = _read_table(table, sum(sum(row.values()) for row in self.counts.values()))
        found: dict[Split, dict[int, npt.NDArray[np.bool_]]] = {}
        for split in SPLITS:
            mine = {bucket: outputs for (s, bucket), outputs in asked.items() if s == split}
            if split == "train" or not mine:
                continue  # each model is asked its own training facts
            found[split] = {}
            for bucket in (bucket for bucket, count in self.counts[split].items() if count):
                places, matchers = self.bucket(split, bucket)
                outputs = mine.get(bucket, {})
                if outputs.keys() != places.keys():
                    known = len(outputs.keys() & places.keys())
                    raise NotCounted(
                        f"it published answers to {known:,} of {len(places):,} questions of {split}, bucket {bucket}"
                    )
                ordered = sorted(outputs, key=lambda fact_id: places[fact_id])
                found[split][bucket] = np.array(
                    [matcher.contains(outputs[fact_id]) for fact_id, matcher in zip(ordered, matchers, strict=True)]
                )
        return found


def _read_table(path: Path, most: int) -> dict[tuple[str, int], dict[str, str]]:
    """Outputs by split and bucket and fact; no more rows than there are questions."""
    try:
        with pq.ParquetFile(path) as file:
            size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
            if file.metadata.num_rows > most or size > LARGEST_TABLE:
                raise NotCounted("its table of answers has more rows than there are questions")
            table = file.read(columns=list(_COLUMNS))
        schema = pa.schema([SCHEMA.field(name) for name in _COLUMNS])
        rows = table.select(_COLUMNS).cast(schema).to_pylist()
    except (pa.ArrowException, OSError, KeyError, ValueError):
        raise NotCounted("its table of answers cannot be read") from None
    found: dict[tuple[str, int], dict[str, str]] = {}
    for row in rows:
        if any(row[name] is None for name in _COLUMNS):
            raise NotCounted("its table of answers has gaps")
        answered = found.setdefault((row["split"], row["bucket"]), {})
        if row["fact_id"] in answered:
            raise NotCounted("its table answers a question twice")
        answered[row["fact_id"]] = row["output"]
    return found


def scores_from(right: Right) -> dict[Split, SplitScore]:
    """The scores that answers have."""
    found = {}
    for split, buckets in right.items():
        shares = {bucket: float(values.mean()) for bucket, values in buckets.items()}
        value = float(np.mean(list(shares.values())))
        found[split] = split_score(value, shares, {bucket: values.size for bucket, values in buckets.items()})
    return found


def paired(first: Right, second: Right, split: Split) -> list[PairedCounts]:
    """What the second model gained and lost against the first, one entry a bucket."""
    pairs = zip(first[split].values(), second[split].values(), strict=True)
    return [PairedCounts(count=a.size, gained=int(np.sum(b & ~a)), lost=int(np.sum(a & ~b))) for a, b in pairs]
