"""SFT data graded by what a model knows: what was found, and the data set that trainers load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from sftknow.artifacts.files import atomic_folder, file_sha256
from sftknow.artifacts.manifests import MANIFEST, read_manifest, write_manifest
from sftknow.errors import RunError, first_line
from sftknow.records import BUCKETS
from sftknow.shown import Shown

KIND = "sft-selection"
DRAW = "draw/train.parquet"
_OWN = {MANIFEST, "README.md", DRAW, *(f"buckets/bucket_{bucket}.parquet" for bucket in BUCKETS)}

Way = Literal["samples", "probability"]
"""How an example was graded: by sampled answers that match, or by the probability of its own answer."""


Form = Literal["solved examples first", "plain", "statements"]
"""How short answers are asked for."""


@dataclass(frozen=True, kw_only=True)
class SelectedExample:
    """One example and what the model makes of it."""

    id: str
    """Of a fact its own; otherwise the example's place in the data, from 1."""
    prompt: str
    """As a model without a chat template is asked."""
    answer: str
    """What SFT would teach."""
    topic: str
    """Relation of a fact; empty for others."""
    way: Way
    bucket: int
    """By samples the mastery bucket of hits ÷ tries (paper, 3.1); by probability the fifth of `logprob` among all
    examples that were graded so, 0 for the least expected."""
    hits: int | None = None
    tries: int | None = None
    logprob: float | None = None
    """By probability: mean ln p of the answer's tokens, in nats a token."""
    says: str = ""
    """By samples: the answer that the model gives most often, where it was asked for answers."""
    says_share: float | None = None
    """Its share of the answers."""
    contradicts: bool = False
    """Whether the model surely says `says`, and never this answer in any form of asking."""
    drawn: bool = False
    """Whether it is in the proposed draw."""


@dataclass(frozen=True, kw_only=True)
class SelectResult(Shown):
    """What `sftknow.select` found."""

    data: str
    """As it was asked for; on the Hub ``org/name@commit``."""
    model: str
    sentence: str
    """What is proposed, in words."""
    examples: tuple[SelectedExample, ...]
    left_out: Mapping[str, int]
    """Rows that were not graded, by reason."""
    form: Form | None
    """In which form of asking short answers were counted; None where there are none."""
    rates: Mapping[Form, float]
    """Mean share of right answers in each form of asking."""
    options: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    out: str | None = None
    """The folder that holds the data set; None where none was written."""

    @property
    def drawn(self) -> tuple[SelectedExample, ...]:
        """The proposed draw."""
        return tuple(example for example in self.examples if example.drawn)

    @property
    def contradicting(self) -> tuple[SelectedExample, ...]:
        """Examples that contradict what the model surely says, the surest first."""
        found = [example for example in self.examples if example.contradicts]
        return tuple(sorted(found, key=lambda example: -(example.says_share or 0)))

    def counts(self, way: Way, *, drawn: bool = False) -> list[int]:
        """Examples of each bucket that were graded in one way; of those that are drawn."""
        found = Counter(e.bucket for e in self.examples if e.way == way and (e.drawn or not drawn))
        return [found[bucket] for bucket in BUCKETS]

    def headline(self) -> str:
        """What is proposed."""
        return self.sentence

    def rows(self) -> list[dict[str, Any]]:
        """One row an example."""
        return [asdict(example) for example in self.examples]


def check_place(folder: Path) -> None:
    """Raise RunError where a selection would take the place of something else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if folder.is_dir() and read_manifest(folder, KIND) is not None:
        there = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir()}
        foreign = sorted(name for name in there - _OWN if not name.startswith("."))
        if not foreign:
            return
        raise RunError(f"{folder} holds {', '.join(foreign[:3])}, which would be lost; move that or give another --out")
    raise RunError(f"{folder} is there already and is no selection of sftknow; give another --out")


def write_selection(
    folder: Path, result: SelectResult, cells: Sequence[Mapping[str, Any]], card: str, manifest: Mapping[str, Any]
) -> list[str]:
    """Write the data set whole or not at all: the draw, the five buckets, a card by which `load_dataset` finds both.

    Args:
        folder: replaced where it holds a selection.
        result: what was found.
        cells: of each of its examples the row for training.
        card: ``README.md``.
        manifest: what to record beside counts and hashes.

    Returns:
        Columns that were left out, as their values have no common type.

    Raises:
        RunError: the folder holds something else.
    """
    check_place(folder)
    table, dropped = _table(result, cells)
    buckets = [example.bucket for example in result.examples]
    parts = {f"buckets/bucket_{b}.parquet": [i for i, at in enumerate(buckets) if at == b] for b in BUCKETS}
    parts[DRAW] = [i for i, example in enumerate(result.examples) if example.drawn]
    with atomic_folder(folder) as partial:
        for name, rows in parts.items():
            (partial / name).parent.mkdir(exist_ok=True)
            with pq.ParquetWriter(partial / name, table.schema) as writer:
                if rows:  # `datasets` stumbles over an empty row group
                    writer.write_table(table.take(rows))
        (partial / "README.md").write_text(card, encoding="utf-8")
        content = {"examples": {name: len(rows) for name, rows in parts.items()}, **manifest}
        write_manifest(
            partial, KIND, {**content, "sha256": {name: file_sha256(partial / name) for name in sorted(parts)}}
        )
    return dropped


_GRADED = pa.schema(
    [
        ("sftknow_id", pa.string()),
        ("sftknow_way", pa.string()),
        ("sftknow_bucket", pa.int8()),
        ("sftknow_hits", pa.int32()),
        ("sftknow_tries", pa.int32()),
        ("sftknow_logprob", pa.float64()),
        ("sftknow_says", pa.string()),
        ("sftknow_says_share", pa.float64()),
        ("sftknow_contradicts", pa.bool_()),
    ]
)
"""What is added to the columns of the data; the names stay clear of theirs."""


def _table(result: SelectResult, cells: Sequence[Mapping[str, Any]]) -> tuple[pa.Table, list[str]]:
    """All examples with one schema, and the columns that have none."""
    columns: dict[str, pa.Array] = {}
    dropped = []
    for name in dict.fromkeys(name for row in cells for name in row):
        if name in _GRADED.names:
            continue  # a selection that is selected from again
        try:
            column = pa.array([row.get(name) for row in cells])
        except (pa.ArrowException, OverflowError) as error:
            dropped.append(f"{name} ({first_line(error)})")
            continue
        if not pa.types.is_null(column.type):
            columns[name] = column
    for field in _GRADED:
        given = [getattr(example, field.name.removeprefix("sftknow_")) for example in result.examples]
        columns[field.name] = pa.array(given, field.type)
    return pa.table(columns), dropped
