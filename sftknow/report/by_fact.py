"""What a run holds fact by fact: who answered what, whose first token moved, and the questions in words.

Every file is read at first use and once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sftknow.artifacts.choice import BESIDE
from sftknow.artifacts.mastery_data import bucket_file
from sftknow.errors import RunError
from sftknow.records import BUCKETS, SPLITS

Floats = npt.NDArray[np.float64]

SHOWN = 8
"""Facts whose first token moved most that are shown for each model."""

AGAIN = "delete it and start the run again"


def read_columns(path: Path, columns: Sequence[str], *, remedy: str = AGAIN, bucket: int | None = None) -> Any:
    """Columns of a Parquet file as an Arrow table, of all rows or of one bucket's.

    Raises:
        RunError: the file is not there, damaged, or lacks a column; the message names it and says the `remedy`.
    """
    filters = None if bucket is None else [("bucket", "=", bucket)]
    try:
        return pq.read_table(path, columns=list(columns), filters=filters)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise RunError(f"{path} cannot be read ({error}); {remedy}") from None


@dataclass(frozen=True, eq=False)
class Answers:
    """One split's questions as one model answered them: arrays with one entry a question, sorted by fact."""

    fact_ids: npt.NDArray[Any]
    buckets: npt.NDArray[np.int64]
    right: npt.NDArray[np.bool_]
    outputs: npt.NDArray[Any]
    """What the model said, as text."""
    beside: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    """The measures beside containment that were kept, by name."""

    def outcome(self, metric: str) -> npt.NDArray[np.bool_] | None:
        """One a question; None where it was not kept."""
        return self.right if metric == "acc" else self.beside.get(metric)


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
        there = [name for name in BESIDE if name in self._names]
        table = read_columns(self.path, ["fact_id", "split", "bucket", "acc", "output", *there])
        there = [name for name in there if table[name].null_count == 0]
        beside = {name: table[name].to_numpy(zero_copy_only=False).astype(np.bool_) for name in there}
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
                kept = {name: values[order] for name, values in beside.items()}
                found[split] = Answers(ids[order], buckets[order], right[order], outputs[order], kept)
        return found

    @property
    def _names(self) -> list[str]:
        """The file's columns; none where it cannot be read, which `read_columns` tells."""
        try:
            return list(pq.read_schema(self.path).names)
        except (OSError, pa.ArrowException):
            return []

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


def shared_outcomes(
    first: Sequence[Questions | None], second: Sequence[Questions | None], split: str, metric: str = "acc"
) -> Shared | None:
    """Pair two groups of models question by question; None where a model kept no questions or none are in common."""
    groups = [[q.split(split) if q is not None else None for q in group] for group in (first, second)]
    known = [answers for group in groups for answers in group if answers is not None]
    if not known or len(known) < sum(map(len, groups)) or any(a.outcome(metric) is None for a in known):
        return None
    ids = known[0].fact_ids
    for answers in known[1:]:
        if not np.array_equal(ids, answers.fact_ids):
            ids = np.intersect1d(ids, answers.fact_ids)
    if not ids.size:
        return None

    def right(answers: Answers) -> npt.NDArray[np.bool_]:
        outcome = answers.outcome(metric)
        assert outcome is not None
        return outcome if ids.size == answers.fact_ids.size else outcome[np.searchsorted(answers.fact_ids, ids)]

    sides: list[Floats] = [
        np.stack([right(a) for a in group if a is not None]).mean(axis=0, dtype=np.float64) for group in groups
    ]
    buckets = known[0].buckets[np.searchsorted(known[0].fact_ids, ids)]
    return Shared(ids, buckets, sides[0], sides[1])


@dataclass(frozen=True, kw_only=True)
class MovedExample:
    """A fact whose first token moved much under one fine-tuned model."""

    fact_id: str
    prompt: str
    """What the base was shown."""
    completion: str
    """How the base goes on."""
    base_top: str
    """The base's most likely first token, as text."""
    tuned_top: str
    answer_token: str
    """First token of the right answer."""
    base_answer_rank: int
    """Place of that token among all, from 1."""
    tuned_answer_rank: int
    kl: float
    """KL(fine-tuned ‖ base) over the ten likeliest tokens, in nats."""


class FactDivergences:
    """The divergence of each fact of a bucket under one fine-tuned model, read at first use.

    Args:
        folder: the model's divergence.
        bucket: mastery bucket.
    """

    def __init__(self, folder: Path, bucket: int) -> None:
        self._path, self._bucket = folder / "examples.parquet", bucket

    @cached_property
    def values(self) -> Mapping[str, float]:
        """By fact, in nats; empty where single facts were not kept. Raises RunError where the file is damaged."""
        if not self._path.is_file():
            return {}
        table = read_columns(self._path, ["fact_id", "kl"], bucket=self._bucket)
        pairs = zip(table["fact_id"].to_pylist(), table["kl"].to_pylist(), strict=True)
        return {fact_id: kl for fact_id, kl in pairs if kl is not None and np.isfinite(kl)}


_COLUMNS = list(MovedExample.__dataclass_fields__)


def moved_most(folder: Path, bucket: int) -> tuple[MovedExample, ...]:
    """The facts of a bucket with the largest finite divergence, largest first and equals by id.

    Args:
        folder: a model's divergence; empty comes back where it holds no examples.
        bucket: mastery bucket.

    Raises:
        RunError: the file is damaged or lacks a column.
    """
    path = folder / "examples.parquet"
    if not path.is_file():
        return ()
    table = read_columns(path, _COLUMNS, bucket=bucket)
    kl = table["kl"].to_numpy()
    # A file of some thousand facts: only the numbers are sorted, and only what is shown becomes Python objects.
    order = np.lexsort((table["fact_id"].to_numpy(zero_copy_only=False), -np.where(np.isfinite(kl), kl, -np.inf)))
    chosen = order[:SHOWN][np.isfinite(kl[order[:SHOWN]])]
    return tuple(MovedExample(**row) for row in table.take(chosen).to_pylist())


class Texts:
    """Questions and answers of the graded facts, read at first use.

    Args:
        dataset: the graded data set's folder.
        splits: which parts may be asked for.
    """

    def __init__(self, dataset: Path, splits: Sequence[str]) -> None:
        self._dataset, self._splits = dataset, tuple(splits)

    @cached_property
    def _texts(self) -> dict[str, tuple[str, str]]:
        found: dict[str, tuple[str, str]] = {}
        for split in self._splits:
            for bucket in BUCKETS:
                path = self._dataset / bucket_file(split, bucket)
                if not path.is_file():
                    continue
                remedy = "redo the stage that wrote it"
                table = read_columns(path, ["fact_id", "question", "object"], remedy=remedy).to_pydict()
                rows = zip(table["fact_id"], table["question"], table["object"], strict=True)
                found.update((fact_id, (question, answer)) for fact_id, question, answer in rows)
        return found

    def of(self, fact_id: str) -> tuple[str, str] | None:
        """(question, answer); None where the fact is not in the data set."""
        return self._texts.get(fact_id)
