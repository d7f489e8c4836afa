"""Which questions each model got right, read once and kept: what every paired comparison of the report is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sftknow.errors import RunError
from sftknow.records import SPLITS

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Answers:
    """One split's questions as one model answered them: arrays with one entry a question, sorted by fact."""

    fact_ids: npt.NDArray[Any]
    buckets: npt.NDArray[np.int64]
    right: npt.NDArray[np.bool_]
    outputs: npt.NDArray[Any]
    """What the model said, as text."""


class Questions:
    """A model's ``questions.parquet``, read at first use and kept as long as the report is.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, evaluation: Path) -> Questions | None:
        """Those of an evaluation's folder; None where they were not kept."""
        path = evaluation / "questions.parquet"
        return cls(path) if path.is_file() else None

    @cached_property
    def _by_split(self) -> dict[str, Answers]:
        try:
            table = pq.read_table(self.path, columns=["fact_id", "split", "bucket", "acc", "output"])
        except (OSError, KeyError, pa.ArrowException) as error:
            raise RunError(f"{self.path} cannot be read ({error}); delete it and start the run again") from None
        ids = table["fact_id"].to_numpy(zero_copy_only=False)
        splits = table["split"].to_numpy(zero_copy_only=False)
        buckets = table["bucket"].to_numpy(zero_copy_only=False).astype(np.int64)
        right = table["acc"].to_numpy(zero_copy_only=False).astype(np.bool_)
        outputs = table["output"].to_numpy(zero_copy_only=False)
        found: dict[str, Answers] = {}
        for split in SPLITS:
            inside = np.flatnonzero(splits == split)
            order = inside[np.argsort(ids[inside], kind="stable")]
            if order.size:
                found[split] = Answers(ids[order], buckets[order], right[order], outputs[order])
        return found

    def split(self, name: str) -> Answers | None:
        """A split's questions; None where the model was not asked them. Raises RunError where the file is damaged."""
        return self._by_split.get(name)


@dataclass(frozen=True, eq=False)
class Shared:
    """Two groups of models on the questions that all of them answered: arrays with one entry a question."""

    fact_ids: npt.NDArray[Any]
    buckets: npt.NDArray[np.int64]
    first: Floats
    """Share of the first group's models that got it right."""
    second: Floats

    @property
    def gained(self) -> int:
        """Questions that the first answers better."""
        return int(np.count_nonzero(self.first > self.second))

    @property
    def lost(self) -> int:
        """Questions that the second answers better."""
        return int(np.count_nonzero(self.first < self.second))

    def only(self, bucket: int | None) -> Shared:
        """The questions of one bucket; all of them for None."""
        if bucket is None:
            return self
        inside = self.buckets == bucket
        return Shared(self.fact_ids[inside], self.buckets[inside], self.first[inside], self.second[inside])


def shared_outcomes(first: Sequence[Questions | None], second: Sequence[Questions | None], split: str) -> Shared | None:
    """Pair two groups of models question by question; None where a model kept no questions or none are in common."""
    groups = [[q.split(split) if q is not None else None for q in group] for group in (first, second)]
    known = [answers for group in groups for answers in group if answers is not None]
    if not known or len(known) < sum(map(len, groups)):
        return None
    ids = known[0].fact_ids
    for answers in known[1:]:
        if not np.array_equal(ids, answers.fact_ids):
            ids = np.intersect1d(ids, answers.fact_ids)
    if not ids.size:
        return None

    def right(answers: Answers) -> npt.NDArray[np.bool_]:
        same = ids.size == answers.fact_ids.size
        return answers.right if same else answers.right[np.searchsorted(answers.fact_ids, ids)]

    sides: list[Floats] = [
        np.stack([right(a) for a in group if a is not None]).mean(axis=0, dtype=np.float64) for group in groups
    ]
    buckets = known[0].buckets[np.searchsorted(known[0].fact_ids, ids)]
    return Shared(ids, buckets, sides[0], sides[1])
