"""A graded (mastery-split) data set on disk: ``<split>/bucket_<i>.parquet`` and ``sftknow.json``.

The same layout goes to the Hub, where the splits are configurations and the buckets are splits. Where continuations
were kept they lie beside it, in ``continuations/`` (`sftknow.artifacts.continuations`), and stay on this machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sftknow.artifacts.continuations import (
    FOLDER as CONTINUATIONS,
    read_continuations,
    read_own_aliases,
    write_continuations,
)
from sftknow.artifacts.files import atomic_folder, digest, file_sha256
from sftknow.artifacts.manifests import MANIFEST, read_manifest, write_manifest
from sftknow.artifacts.tables import to_record
from sftknow.errors import MasteryDataError
from sftknow.records import BUCKETS, SPLITS, Fact, GradedFact, Mastery, SampleTally, Split
from sftknow.shown import Shown
from sftknow.untrusted import markdown_text

KIND = "mastery-dataset"
EVERYTHING = "default"
"""The configuration of `datasets` with all splits whole."""
_CHUNK, _ROW_GROUP = 256, 4096
_BESIDE = {MANIFEST, CONTINUATIONS, "README.md", "LICENSE", "NOTICE", "eval.yaml", ".cache", ".gitattributes"}
"""What else lies in a data set's folder: of ours, and of one that was pulled."""
"""Rows turned into a table at once, and rows of a row group: what is in memory for each bucket."""

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

_FACT_COLUMNS = SCHEMA.names[1:7]


def _columns(names: Iterable[str]) -> pa.Schema:
    return pa.schema([SCHEMA.field(name) for name in names])


def bucket_file(split: str, bucket: int) -> str:
    """Path of a bucket within the data set's folder."""
    return f"{split}/bucket_{bucket}.parquet"


def configurations(counts: Mapping[Split, Mapping[int, int]]) -> list[dict[str, Any]]:
    """What ``load_dataset`` of a folder or a repository is told of a graded data set, in the head of its README.md.

    ``default`` has the splits whole, and each split is a configuration whose splits are its buckets. Buckets without a
    fact are left out: `datasets` loads neither an empty split nor a configuration that has one.

    Args:
        counts: facts by split, by bucket.
    """
    files = {
        split: [{"split": f"bucket_{b}", "path": bucket_file(split, b)} for b, count in row.items() if count]
        for split, row in counts.items()
    }
    filled = {split: parts for split, parts in files.items() if parts}
    whole = [{"split": split, "path": [part["path"] for part in parts]} for split, parts in filled.items()]
    configs = [{"config_name": EVERYTHING, "data_files": whole}]
    return configs + [{"config_name": split, "data_files": parts} for split, parts in filled.items()]


_README = """---
configs: {configs}
---

# Facts graded by {model}

How well the model knows each fact, in five buckets (0: not at all). Each split is a configuration whose splits are the
buckets: `load_dataset(folder)` has all, `load_dataset(folder, "testood", split="bucket_3")` one bucket. `sftknow
publish` puts a full card in this one's place.
"""


def fact_row(fact: Fact) -> dict[str, Any]:
    """A fact's columns, here and in the lab's table of facts."""
    row = dict(vars(fact))
    return {"fact_id": row.pop("id"), **row}


def _row(graded: GradedFact) -> dict[str, Any]:
    return {**fact_row(graded.fact), **vars(graded.mastery), "rate": graded.mastery.rate}


def _graded(row: dict[str, Any]) -> GradedFact:
    del row["rate"]
    fact = {"id": row["fact_id"], **{name: row.pop(name) for name in _FACT_COLUMNS}}
    return GradedFact(fact=to_record(Fact, fact), mastery=to_record(Mastery, row))


def fingerprint(rows: Iterable[GradedFact]) -> str:
    """SHA-256 (hex) over content, whatever the order of rows: facts, answers, tallies and buckets."""
    return _fingerprint(bytes.fromhex(digest(_row(row))) for row in rows)


def _fingerprint(digests: Iterable[bytes]) -> str:
    """The digest of the sorted list of the rows' digests, without ever spelling the list out."""
    whole = hashlib.sha256(b"[")
    for place, one in enumerate(sorted(digests)):
        whole.update(f'{"," if place else ""}"{one.hex()}"'.encode())
    whole.update(b"]")
    return whole.hexdigest()


def write_mastery_data(
    folder: str | Path,
    rows: Iterable[GradedFact],
    manifest: Mapping[str, Any],
    *,
    continuations: Iterable[SampleTally] | None = None,
    own_aliases: Mapping[str, Iterable[str]] | None = None,
) -> None:
    """Write a graded data set whole or not at all, in memory that does not grow with the rows (but for 0.2 KB each).

    Args:
        folder: replaced where it exists.
        rows: every graded fact; within a bucket their order is kept.
        manifest: what to record besides counts, hashes and the fingerprint: ``graded_by`` (model and revision) and
            ``policy`` are expected by readers.
        continuations: tallies with their texts, to be kept for grading by other rules.
        own_aliases: by fact id the names that the source itself accepts, synonyms apart; kept beside the continuations.

    Raises:
        MasteryDataError: two facts share an id.
    """
    folder = Path(folder)
    with atomic_folder(folder) as partial:
        counts = {split: {f"bucket_{bucket}": 0 for bucket in BUCKETS} for split in SPLITS}
        ids: set[str] = set()
        digests: list[bytes] = []
        with ExitStack() as stack:
            writers = {}
            for split in SPLITS:
                (partial / split).mkdir()
                for bucket in BUCKETS:
                    writers[split, bucket] = stack.enter_context(_BucketWriter(partial / bucket_file(split, bucket)))
            for graded in rows:
                if graded.fact.id in ids:
                    raise MasteryDataError(f"2 facts have the id {graded.fact.id}; ids must be unique")
                ids.add(graded.fact.id)
                row = _row(graded)
                digests.append(bytes.fromhex(digest(row)))
                writers[graded.fact.split, graded.mastery.bucket].write(row)
                counts[graded.fact.split][f"bucket_{graded.mastery.bucket}"] += 1
        names = [bucket_file(split, bucket) for split in SPLITS for bucket in BUCKETS]
        content = {
            **manifest,
            "fingerprint": _fingerprint(digests),
            "counts": counts,
            "sha256": {name: file_sha256(partial / name) for name in names},
        }
        configs = configurations({split: {b: counts[split][f"bucket_{b}"] for b in BUCKETS} for split in SPLITS})
        model = markdown_text(str(manifest.get("graded_by", "an unknown model")))
        (partial / "README.md").write_text(_README.format(configs=json.dumps(configs), model=model), encoding="utf-8")
        if continuations is not None:
            content["continuations"] = write_continuations(partial, continuations, own_aliases or {})
        write_manifest(partial, KIND, content)


def check_place(folder: Path) -> None:
    """Refuse to put a data set in the place of something else.

    Raises:
        MasteryDataError: the place holds a file, a folder with anything but a graded data set, or one with files of
            somebody's in it.
    """
    if folder.is_dir() and (not any(folder.iterdir()) or read_manifest(folder, KIND) is not None):
        own = {bucket_file(split, bucket) for split in SPLITS for bucket in BUCKETS}
        there = {file.relative_to(folder) for file in folder.rglob("*") if not file.is_dir()}
        names = sorted(str(file) for file in there if file.parts[0] not in _BESIDE and file.as_posix() not in own)
        if names:
            raise MasteryDataError(
                f"{folder} holds {', '.join(names[:3])}, which sftknow did not write and would be lost; move that "
                "elsewhere or give another --out"
            )
        return
    if folder.exists():
        raise MasteryDataError(f"{folder} is there already and is no graded data set; give another --out")


class _BucketWriter:
    """A Parquet file that is written a row group at a time."""

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, SCHEMA)
        self._rows: list[dict[str, Any]] = []
        self._tables: list[pa.Table] = []

    def __enter__(self) -> _BucketWriter:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        if failed is None:
            self._pack()
            self._flush()
        self._writer.close()

    def write(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) == _CHUNK:
            self._pack()
        if len(self._tables) * _CHUNK == _ROW_GROUP:
            self._flush()

    def _pack(self) -> None:
        if self._rows:
            self._tables.append(pa.Table.from_pylist(self._rows, schema=SCHEMA))
        self._rows = []

    def _flush(self) -> None:
        # A bucket without a fact gets a schema and no row group: `datasets` stumbles over an empty one.
        if self._tables:
            self._writer.write_table(pa.concat_tables(self._tables), row_group_size=_ROW_GROUP)
        self._tables = []


class MasteryData(Shown):
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
        counts = manifest.get("counts") or {}
        if "fingerprint" not in manifest or any(
            f"bucket_{bucket}" not in (counts.get(split) or {}) for split in SPLITS for bucket in BUCKETS
        ):
            raise MasteryDataError(f"the sftknow.json of {self.folder} does not tell its facts; grade or pull it again")
        self.manifest = manifest

    @property
    def fingerprint(self) -> str:
        """Hash of the content, the same wherever the data set lies."""
        return str(self.manifest["fingerprint"])

    @property
    def graded_by(self) -> str:
        """The model that the facts were graded by, as text."""
        return str(self.manifest.get("graded_by", "unknown"))

    def headline(self) -> str:
        """How many facts, and who graded them."""
        counts = {split: sum(self.count(split, bucket) for bucket in BUCKETS) for split in SPLITS}
        parts = ", ".join(f"{count:,} {split}" for split, count in counts.items() if count)
        return f"{sum(counts.values()):,} facts graded by {self.graded_by} ({parts})"

    def rows(self) -> list[dict[str, Any]]:
        """One row a fact, in the columns of the files."""
        return [_row(fact) for split in SPLITS for fact in self.split(split)]

    def to_json(self) -> str:
        """The manifest: what was graded, by whom and how."""
        return json.dumps(self.manifest, ensure_ascii=False, indent=2)

    def count(self, split: Split, bucket: int) -> int:
        """Number of facts in one bucket."""
        return int(self.manifest["counts"][split][f"bucket_{bucket}"])

    def bucket(self, split: Split, bucket: int) -> list[GradedFact]:
        """The facts of one bucket, in file order.

        Raises:
            MasteryDataError: the file is missing, damaged or has other columns.
        """
        return [_graded(row) for row in self._table(split, bucket, SCHEMA.names).to_pylist()]

    def _table(self, split: Split, bucket: int, names: list[str]) -> pa.Table:
        path = self.folder / bucket_file(split, bucket)
        try:
            # Not `read_table`, which would take the folder's name for a partition.
            with pq.ParquetFile(path) as file:
                absent = [name for name in names if name not in file.schema_arrow.names]
                # Files that others wrote may have wider types, which fit where the values do.
                table = None if absent else file.read(columns=names).select(names).cast(_columns(names))
        except FileNotFoundError:
            raise MasteryDataError(f"{path} is missing: the data set is not whole; grade or pull it again") from None
        except (pa.ArrowException, OSError) as error:
            raise MasteryDataError(f"{path} cannot be read as Parquet ({error}); grade or pull it again") from None
        if table is None:
            raise MasteryDataError(f"{path} lacks the column {', '.join(absent)}")
        blank = [name for name in names if table[name].null_count]
        if blank:
            raise MasteryDataError(f"{path} has rows without {blank[0]}; grade or pull it again")
        return table

    def split(self, split: Split) -> list[GradedFact]:
        """All buckets of a split, bucket 0 first."""
        return [row for bucket in BUCKETS for row in self.bucket(split, bucket)]

    def columns(self, split: Split, bucket: int, names: Iterable[str]) -> pa.Table:
        """Some columns of one bucket, for counting without the rest.

        Raises:
            MasteryDataError: as `bucket` does.
        """
        return self._table(split, bucket, list(names))

    @property
    def has_continuations(self) -> bool:
        """Whether the continuations were kept, and are here: they are not published."""
        return bool(self.manifest.get("continuations")) and (self.folder / CONTINUATIONS).is_dir()

    def continuations(self) -> Iterator[SampleTally]:
        """The tallies with their continuations, those of a fact one after the other.

        Raises:
            MasteryDataError: they were not kept, or the file is missing or damaged.
        """
        if not self.has_continuations:
            raise MasteryDataError(
                f"{self.folder} holds no continuations; grade with --keep-texts to be able to rescore without the model"
            )
        return read_continuations(self.folder, self.manifest["continuations"])

    def own_aliases(self) -> dict[str, tuple[str, ...]]:
        """By fact id the names that the facts' source itself accepts, where it has any; kept with the continuations."""
        return read_own_aliases(self.folder, self.manifest["continuations"]) if self.has_continuations else {}
