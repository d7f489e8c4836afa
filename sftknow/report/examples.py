"""Single facts that the report shows in words, read from the run's Parquet files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sftknow.errors import RunError

SHOWN = 8
"""Facts for each model."""


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
        try:
            table = pq.read_table(self._path, columns=["fact_id", "kl"], filters=[("bucket", "=", self._bucket)])
        except (pa.ArrowException, OSError) as error:
            raise RunError(f"{self._path} cannot be read ({error}); delete it and start the run again") from None
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
    try:
        table = pq.read_table(path, columns=[*_COLUMNS, "bucket"], filters=[("bucket", "=", bucket)])
    except (pa.ArrowException, OSError) as error:
        raise RunError(f"{path} cannot be read ({error}); delete it and start the run again") from None
    kl = table["kl"].to_numpy()
    # A file of some thousand facts: only the numbers are sorted, and only what is shown becomes Python objects.
    order = np.lexsort((table["fact_id"].to_numpy(zero_copy_only=False), -np.where(np.isfinite(kl), kl, -np.inf)))
    chosen = [i for i in order[:SHOWN].tolist() if np.isfinite(kl[i])]
    return tuple(MovedExample(**row) for row in table.select(_COLUMNS).take(chosen).to_pylist())
