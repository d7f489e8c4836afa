"""Kept continuations of a graded data set: ``continuations/texts.parquet`` and ``continuations/aliases.parquet``.

One row a statement. The continuations of a statement are sorted, since nothing depends on their order and neighbours
then begin alike; they are packed with zstd.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sftknow.artifacts.files import file_sha256
from sftknow.errors import MasteryDataError
from sftknow.records import SampleTally

FOLDER = "continuations"
_TEXTS, _ALIASES = f"{FOLDER}/texts.parquet", f"{FOLDER}/aliases.parquet"
_ROW_GROUP = 2048

SCHEMA = pa.schema(
    [
        ("fact_id", pa.string()),
        ("template", pa.int32()),
        ("hits", pa.int32()),
        ("texts", pa.list_(pa.string())),
    ]
)
"""Columns of ``texts.parquet``: fact, statement template from 0, hits by the rule that graded, continuations."""

_ALIAS_SCHEMA = pa.schema([("fact_id", pa.string()), ("aliases", pa.list_(pa.string()))])


def write_continuations(
    folder: Path, tallies: Iterable[SampleTally], own_aliases: Mapping[str, Iterable[str]]
) -> dict[str, Any]:
    """Write them into a data set's folder.

    Args:
        folder: of the data set; not yet in its place.
        tallies: with texts, those of a fact one after the other; never more than a row group of them is in memory.
        own_aliases: by fact id, names that the source itself accepts; without them other synonyms could not be put in
            the place of the old ones.

    Returns:
        What the data set's manifest says of them: ``count`` (continuations), ``bytes`` and ``sha256`` by file.
    """
    (folder / FOLDER).mkdir()
    count = 0
    rest = iter(tallies)
    with pq.ParquetWriter(
        folder / _TEXTS,
        SCHEMA,
        compression="zstd",
        compression_level=9,
        use_dictionary=["fact_id"],
    ) as writer:
        while group := list(islice(rest, _ROW_GROUP)):
            rows = [
                {"fact_id": t.fact_id, "template": t.template, "hits": t.hits, "texts": sorted(t.texts or ())}
                for t in group
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
            count += sum(len(t.texts or ()) for t in group)
    names = [{"fact_id": fact_id, "aliases": list(aliases)} for fact_id, aliases in own_aliases.items()]
    pq.write_table(pa.Table.from_pylist(names, schema=_ALIAS_SCHEMA), folder / _ALIASES, compression="zstd")
    files = (_TEXTS, _ALIASES)
    return {
        "count": count,
        "bytes": sum((folder / name).stat().st_size for name in files),
        "sha256": {name: file_sha256(folder / name) for name in files},
    }


def read_continuations(folder: Path, about: Mapping[str, Any]) -> Iterator[SampleTally]:
    """The tallies, a row group in memory at a time.

    Args:
        folder: of the data set.
        about: what `write_continuations` returned.

    Raises:
        MasteryDataError: a file is missing or is not the one that was written.
    """
    with pq.ParquetFile(_checked(folder, _TEXTS, about)) as file:
        for batch in file.iter_batches(batch_size=_ROW_GROUP):
            for row in batch.to_pylist():
                yield SampleTally(
                    fact_id=row["fact_id"],
                    template=row["template"],
                    tries=len(row["texts"]),
                    hits=row["hits"],
                    texts=tuple(row["texts"]),
                )


def read_own_aliases(folder: Path, about: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """By fact id; raises as `read_continuations` does."""
    table = pq.ParquetFile(_checked(folder, _ALIASES, about)).read()
    return {row["fact_id"]: tuple(row["aliases"]) for row in table.to_pylist()}


def _checked(folder: Path, name: str, about: Mapping[str, Any]) -> Path:
    path = folder / name
    if not path.is_file():
        raise MasteryDataError(f"{path} is missing, though the data set was graded with --keep-texts; grade it again")
    if file_sha256(path) != about["sha256"][name]:
        raise MasteryDataError(f"{path} is damaged: it is not the file that sftknow.json names; grade it again")
    return path
