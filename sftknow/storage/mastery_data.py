"""A graded (mastery-split) data set on disk: ``<split>/bucket_<i>.parquet`` and ``sftknow.json``.

The same layout goes to the Hub, where the splits are configurations and the buckets are splits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sftknow.errors import MasteryDataError
from sftknow.records import BUCKETS, SPLITS, Fact, GradedFact, Mastery, Split
from sftknow.storage.artifacts import atomic_folder, digest, file_sha256
from sftknow.storage.manifests import read_manifest, write_manifest

KIND = "mastery-dataset"

SCHEMA = pa.schema(
    [
        ("fact_id", pa.string()),
        ("topic", pa.string()),
        ("subject", pa.string()),
        ("object", pa.string()),
        ("aliases", pa.list_(pa.string())),
        ("question", pa.string()),
        ("split", pa.string()),
        ("bucket", pa.int8()),
        ("rate", pa.float64()),
        ("hits", pa.int32()),
        ("tries", pa.int32()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("edge", pa.bool_()),
        ("template_hits", pa.list_(pa.int32())),
        ("template_tries", pa.list_(pa.int32())),
    ]
)
"""Columns of every Parquet file: see the fields of `Fact` and `Mastery`; ``rate`` is hits ÷ tries."""


def bucket_file(split: str, bucket: int) -> str:
    """Path of a bucket within the data set's folder."""
    return f"{split}/bucket_{bucket}.parquet"


def _row(graded: GradedFact) -> dict[str, Any]:
    fact, mastery = graded.fact, graded.mastery
    return {
        "fact_id": fact.id,
        "topic": fact.topic,
        "subject": fact.subject,
        "object": fact.object,
        "aliases": list(fact.aliases),
        "question": fact.question,
        "split": fact.split,
        "bucket": mastery.bucket,
        "rate": mastery.rate,
        "hits": mastery.hits,
        "tries": mastery.tries,
        "low": mastery.low,
        "high": mastery.high,
        "edge": mastery.edge,
        "template_hits": list(mastery.template_hits),
        "template_tries": list(mastery.template_tries),
    }


def _graded(row: Mapping[str, Any]) -> GradedFact:
    fact = Fact(
        id=row["fact_id"],
        topic=row["topic"],
        subject=row["subject"],
        object=row["object"],
        aliases=tuple(row["aliases"]),
        question=row["question"],
        split=row["split"],
    )
    mastery = Mastery(
        fact_id=row["fact_id"],
        template_hits=tuple(row["template_hits"]),
        template_tries=tuple(row["template_tries"]),
        hits=row["hits"],
        tries=row["tries"],
        bucket=row["bucket"],
        low=row["low"],
        high=row["high"],
        edge=row["edge"],
    )
    return GradedFact(fact=fact, mastery=mastery)


def fingerprint(rows: Iterable[GradedFact]) -> str:
    """SHA-256 (hex) over content, whatever the order of rows: facts, answers, tallies and buckets."""
    return digest(sorted(digest(_row(row)) for row in rows))


def write_mastery_data(folder: Path, rows: Sequence[GradedFact], manifest: Mapping[str, Any]) -> None:
    """Write a graded data set whole or not at all.

    Args:
        folder: replaced where it exists.
        rows: every graded fact; within a bucket their order is kept.
        manifest: what to record besides counts, hashes and the fingerprint: ``graded_by`` (model and revision) and
            ``policy`` are expected by readers.

    Raises:
        MasteryDataError: two facts share an id.
    """
    ids = Counter(row.fact.id for row in rows)
    for fact_id, times in ids.items():
        if times > 1:
            raise MasteryDataError(f"{times} facts have the id {fact_id}; ids must be unique")
    with atomic_folder(folder) as partial:
        counts: dict[str, dict[str, int]] = {}
        files: dict[str, str] = {}
        for split in SPLITS:
            (partial / split).mkdir()
            counts[split] = {}
            for bucket in BUCKETS:
                chosen = [_row(r) for r in rows if r.fact.split == split and r.mastery.bucket == bucket]
                counts[split][f"bucket_{bucket}"] = len(chosen)
                name = bucket_file(split, bucket)
                with pq.ParquetWriter(partial / name, SCHEMA) as writer:
                    # A bucket without a fact gets a schema and no row group: `datasets` stumbles over an empty one.
                    if chosen:
                        writer.write_table(pa.Table.from_pylist(chosen, schema=SCHEMA))
                files[name] = file_sha256(partial / name)
        write_manifest(partial, KIND, {**manifest, "fingerprint": fingerprint(rows), "counts": counts, "sha256": files})


class MasteryData:
    """A graded data set in a local folder, read bucket by bucket.

    Attributes:
        folder: where it lies.
        manifest: the content of its ``sftknow.json``.

    Raises:
        MasteryDataError: the folder is not a whole graded data set.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise MasteryDataError(f"{self.folder} is not there; give the folder that `sftknow grade` wrote")
        manifest = read_manifest(self.folder, KIND)
        if manifest is None:
            raise MasteryDataError(f"{self.folder} has no sftknow.json: it is no graded data set, or not a whole one")
        self.manifest = manifest

    @property
    def fingerprint(self) -> str:
        """Hash of the content, the same wherever the data set lies."""
        return str(self.manifest["fingerprint"])

    @property
    def graded_by(self) -> str:
        """The model that the facts were graded by, as text."""
        return str(self.manifest.get("graded_by", "unknown"))

    def count(self, split: Split, bucket: int) -> int:
        """Number of facts in one bucket."""
        return int(self.manifest["counts"][split][f"bucket_{bucket}"])

    def bucket(self, split: Split, bucket: int) -> list[GradedFact]:
        """The facts of one bucket, in file order.

        Raises:
            MasteryDataError: the file is missing, damaged or has other columns.
        """
        path = self.folder / bucket_file(split, bucket)
        try:
            table = pq.read_table(path)
        except FileNotFoundError:
            raise MasteryDataError(f"{path} is missing: the data set is not whole; grade or pull it again") from None
        except (pa.ArrowException, OSError) as error:
            raise MasteryDataError(f"{path} cannot be read as Parquet ({error}); grade or pull it again") from None
        absent = [name for name in SCHEMA.names if name not in table.column_names]
        if absent:
            raise MasteryDataError(f"{path} lacks the column {', '.join(absent)}")
        return [_graded(row) for row in table.select(SCHEMA.names).to_pylist()]

    def split(self, split: Split) -> list[GradedFact]:
        """All buckets of a split, bucket 0 first."""
        return [row for bucket in BUCKETS for row in self.bucket(split, bucket)]
