"""A graded data set written and read again."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sftknow.artifacts.files import file_sha256, read_json
from sftknow.artifacts.mastery_data import (
    SCHEMA,
    MasteryData,
    bucket_file,
    check_place,
    fingerprint,
    write_mastery_data,
)
from sftknow.errors import MasteryDataError, RunError
from sftknow.records import BUCKETS, SPLITS, GradedFact, SampleTally
from tests.tiny import graded, tiny_facts

ABOUT = {"graded_by": "org/base@abc", "policy": {"samples": 10}}


def some_rows(*, without: tuple[tuple[str, int], ...] = (("test", 3),)) -> list[GradedFact]:
    """Three facts in every bucket of every split, but none in the buckets left out."""
    rows = []
    for split in SPLITS:
        facts = tiny_facts(3 * len(BUCKETS), split=split)
        rows += [graded(fact, i // 3) for i, fact in enumerate(facts) if (split, i // 3) not in without]
    first = rows[0]
    rows[0] = GradedFact(
        fact=replace(first.fact, aliases=("Arden’s", "Ardén"), subject='"S", \n{s}'),
        mastery=replace(first.mastery, low=0.1 + 0.2, high=1 / 3, edge=True),
    )
    return rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_mastery_data(tmp_path / "graded", some_rows(), ABOUT)
    return tmp_path / "graded"


def test_what_is_read_is_what_was_written(folder: Path) -> None:
    data = MasteryData(folder)
    rows = some_rows()
    for split in SPLITS:
        for bucket in BUCKETS:
            expected = [r for r in rows if (r.fact.split, r.mastery.bucket) == (split, bucket)]
            assert data.bucket(split, bucket) == expected
            assert data.count(split, bucket) == len(expected)
        assert data.split(split) == [r for b in BUCKETS for r in rows if (r.fact.split, r.mastery.bucket) == (split, b)]
    assert data.graded_by == "org/base@abc"
    assert data.manifest["policy"] == {"samples": 10}


def test_an_empty_bucket_is_there_and_empty(folder: Path) -> None:
    assert (folder / bucket_file("test", 3)).is_file()
    assert MasteryData(folder).bucket("test", 3) == []
    assert MasteryData(folder).count("test", 3) == 0
    # Whoever reads the Parquet file itself finds its columns.
    assert pq.read_table(folder / "test" / "bucket_3.parquet").schema.equals(SCHEMA)


def test_a_data_set_without_a_single_fact_is_a_data_set(tmp_path: Path) -> None:
    write_mastery_data(tmp_path / "graded", [], ABOUT)
    assert all(MasteryData(tmp_path / "graded").split(split) == [] for split in SPLITS)


def test_layout_and_hashes(folder: Path) -> None:
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    expected = [bucket_file(split, bucket) for split in SPLITS for bucket in BUCKETS]
    assert files == sorted(["README.md", *expected, "sftknow.json"])
    manifest = read_json(folder / "sftknow.json")
    assert manifest["sha256"] == {name: file_sha256(folder / name) for name in expected}
    rates = pq.read_table(folder / "train" / "bucket_2.parquet").to_pylist()
    assert all(row["rate"] == row["hits"] / row["tries"] for row in rates)


def test_the_fingerprint_does_not_depend_on_the_order(tmp_path: Path, folder: Path) -> None:
    rows = some_rows()
    shuffled = random.Random(0).sample(rows, len(rows))
    assert shuffled != rows
    assert fingerprint(shuffled) == fingerprint(rows) == MasteryData(folder).fingerprint
    write_mastery_data(tmp_path / "other", shuffled, {"graded_by": "somebody else"})
    assert MasteryData(tmp_path / "other").fingerprint == MasteryData(folder).fingerprint


def test_the_fingerprint_is_that_of_what_is_read(folder: Path) -> None:
    data = MasteryData(folder)
    assert fingerprint([row for split in SPLITS for row in data.split(split)]) == data.fingerprint


def test_the_fingerprint_sees_every_change() -> None:
    rows = some_rows()
    first = rows[0]
    changes = [
        GradedFact(fact=replace(first.fact, object="Other"), mastery=first.mastery),
        GradedFact(fact=replace(first.fact, aliases=()), mastery=first.mastery),
        GradedFact(fact=replace(first.fact, question="Else?"), mastery=first.mastery),
        GradedFact(fact=replace(first.fact, split="dev"), mastery=first.mastery),
        GradedFact(fact=first.fact, mastery=replace(first.mastery, bucket=4)),
        GradedFact(fact=first.fact, mastery=replace(first.mastery, hits=first.mastery.hits + 1)),
        GradedFact(fact=first.fact, mastery=replace(first.mastery, template_hits=(1,) * 21)),
    ]
    prints = {fingerprint([changed, *rows[1:]]) for changed in changes} | {fingerprint(rows), fingerprint(rows[1:])}
    assert len(prints) == len(changes) + 2
    assert fingerprint([*rows, rows[0]]) != fingerprint(rows), "a fact that is there twice counts twice"


def test_content_cannot_be_overruled_by_the_manifest(tmp_path: Path) -> None:
    write_mastery_data(tmp_path / "graded", some_rows(), {**ABOUT, "fingerprint": "x", "counts": {}, "sha256": {}})
    assert MasteryData(tmp_path / "graded").fingerprint == fingerprint(some_rows())


def test_a_write_that_fails_leaves_the_old_data_set(folder: Path) -> None:
    before = MasteryData(folder).fingerprint
    row = some_rows()[0]
    bad = [*some_rows(), GradedFact(fact=replace(row.fact, id="another"), mastery=replace(row.mastery, tries=0))]
    with pytest.raises(ZeroDivisionError):
        write_mastery_data(folder, bad, ABOUT)
    assert MasteryData(folder).fingerprint == before
    assert MasteryData(folder).split("test") == [r for r in some_rows() if r.fact.split == "test"]
    assert [p.name for p in folder.parent.iterdir()] == ["graded"]


def test_ids_are_unique(tmp_path: Path) -> None:
    with pytest.raises(MasteryDataError, match="2 facts have the id P17/train/0"):
        write_mastery_data(tmp_path / "graded", [*some_rows(), some_rows()[0]], ABOUT)
    assert not (tmp_path / "graded").exists()


def test_what_is_no_whole_data_set_is_one_line(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(MasteryDataError, match=r"is not there; give the folder that `sftknow grade` wrote"):
        MasteryData(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MasteryDataError, match=r"has no sftknow\.json"):
        MasteryData(tmp_path / "empty")
    (folder / "sftknow.json").write_text("{")
    with pytest.raises(RunError, match="is damaged"):
        MasteryData(folder)


def test_a_missing_a_damaged_and_a_foreign_file_are_named(folder: Path) -> None:
    data = MasteryData(folder)
    path = folder / "test" / "bucket_2.parquet"
    whole = path.read_bytes()

    path.unlink()
    with pytest.raises(MasteryDataError, match=r"bucket_2\.parquet is missing"):
        data.bucket("test", 2)
    for broken in (b"", b"no Parquet", whole[: len(whole) // 2], whole[:40] + bytes(200) + whole[240:]):
        path.write_bytes(broken)
        with pytest.raises(MasteryDataError, match=r"bucket_2\.parquet cannot be read as Parquet"):
            data.bucket("test", 2)
    pq.write_table(pa.table({"fact_id": ["x"], "topic": ["P36"]}), path)
    with pytest.raises(MasteryDataError, match="lacks the column subject"):
        data.bucket("test", 2)


def test_other_columns_are_no_hindrance(folder: Path) -> None:
    path = folder / "test" / "bucket_2.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("note", pa.array(["x"] * len(table))), path)
    assert len(MasteryData(folder).bucket("test", 2)) == 3


def test_many_rows_are_streamed_and_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sftknow.artifacts.mastery_data._CHUNK", 3)
    monkeypatch.setattr("sftknow.artifacts.mastery_data._ROW_GROUP", 12)
    rows = [graded(fact, 2 if i % 5 else 4) for i, fact in enumerate(tiny_facts(50))]
    held: list[int] = []

    def stream() -> Iterator[GradedFact]:
        for i, row in enumerate(rows):
            held.append(i)
            yield row

    write_mastery_data(tmp_path / "graded", stream(), ABOUT)
    data = MasteryData(tmp_path / "graded")
    assert data.bucket("train", 2) == [row for row in rows if row.mastery.bucket == 2]
    assert data.bucket("train", 4) == [row for row in rows if row.mastery.bucket == 4]
    assert data.fingerprint == fingerprint(rows)
    assert held == list(range(50)), "the rows are gone through once"
    groups = pq.ParquetFile(tmp_path / "graded" / bucket_file("train", 2)).metadata
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [12, 12, 12, 4]


def test_single_columns(folder: Path) -> None:
    assert MasteryData(folder).columns("train", 1, ["topic", "tries"]).to_pylist() == [
        {"topic": row.fact.topic, "tries": row.mastery.tries} for row in MasteryData(folder).bucket("train", 1)
    ]
    with pytest.raises(MasteryDataError, match="lacks the column price"):
        MasteryData(folder).columns("train", 1, ["topic", "price"])


TALLIES = [
    SampleTally(fact_id=f"f{i}", template=t, tries=3, hits=1, texts=(" b\n", " a", "Zürich\u2028 \U0001f642"))
    for i in range(3)
    for t in range(2)
]


class TestContinuations:
    @pytest.fixture
    def kept(self, tmp_path: Path) -> Path:
        write_mastery_data(
            tmp_path / "kept", some_rows(), ABOUT, continuations=iter(TALLIES), own_aliases={"f1": ("A", "B")}
        )
        return tmp_path / "kept"

    def test_what_is_read_is_what_was_kept(self, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data = MasteryData(kept)
        assert data.has_continuations
        assert [replace(t, texts=tuple(sorted(t.texts or ()))) for t in TALLIES] == list(data.continuations())
        assert data.own_aliases() == {"f1": ("A", "B")}
        about = data.manifest["continuations"]
        assert about["count"] == 18
        assert about["bytes"] == sum((kept / name).stat().st_size for name in about["sha256"])

    def test_they_change_nothing_else(self, kept: Path, folder: Path) -> None:
        assert MasteryData(kept).fingerprint == MasteryData(folder).fingerprint
        assert MasteryData(kept).manifest["sha256"] == MasteryData(folder).manifest["sha256"]

    def test_where_none_were_kept(self, folder: Path) -> None:
        data = MasteryData(folder)
        assert not data.has_continuations
        assert data.own_aliases() == {}
        with pytest.raises(MasteryDataError, match="holds no continuations; grade with --keep-texts"):
            data.continuations()

    def test_missing_and_damaged_files(self, kept: Path) -> None:
        texts = kept / "continuations" / "texts.parquet"
        raw = bytearray(texts.read_bytes())
        raw[len(raw) // 2] ^= 1
        texts.write_bytes(raw)
        with pytest.raises(MasteryDataError, match=r"texts.parquet is damaged"):
            list(MasteryData(kept).continuations())
        texts.unlink()
        assert MasteryData(kept).has_continuations
        with pytest.raises(MasteryDataError, match=r"texts.parquet is missing, though .* --keep-texts"):
            list(MasteryData(kept).continuations())

    def test_a_published_data_set_comes_without_them(self, kept: Path) -> None:
        shutil.rmtree(kept / "continuations")
        assert not MasteryData(kept).has_continuations
        with pytest.raises(MasteryDataError, match="holds no continuations"):
            MasteryData(kept).continuations()


def test_nothing_but_a_data_set_is_replaced(folder: Path, tmp_path: Path) -> None:
    check_place(folder)
    check_place(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    check_place(tmp_path / "empty")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    (tmp_path / "file").write_text("too")
    for place in ("thesis", "file"):
        with pytest.raises(MasteryDataError, match=f"{place} is there already and is no graded data set"):
            check_place(tmp_path / place)


def test_types_that_others_write_fit_or_are_refused(folder: Path) -> None:
    path = folder / bucket_file("test", 4)
    table, rows = pq.read_table(path), MasteryData(folder).bucket("test", 4)
    assert rows
    wide = {
        "fact_id": pa.large_string(),
        "hits": pa.int64(),
        "bucket": pa.int64(),
        "aliases": pa.large_list(pa.string()),
    }
    fields = [pa.field(field.name, wide.get(field.name, field.type)) for field in table.schema]
    pq.write_table(table.cast(pa.schema(fields)), path)
    assert MasteryData(folder).bucket("test", 4) == rows
    for name, values in (
        ("hits", pa.array(["many"] * len(rows))),
        ("hits", pa.array([2**40] * len(rows))),
        ("bucket", pa.array([{"a": 1}] * len(rows))),
        ("template_hits", pa.array([1] * len(rows))),
        ("object", pa.array([None] * len(rows), pa.string())),
        ("aliases", pa.array([None] * len(rows), pa.list_(pa.string()))),
    ):
        pq.write_table(table.set_column(table.schema.get_field_index(name), name, values), path)
        with pytest.raises(MasteryDataError, match="grade or pull it again") as caught:
            MasteryData(folder).bucket("test", 4)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("drop", ["fingerprint", "counts"])
def test_a_manifest_that_tells_too_little_is_refused(folder: Path, drop: str) -> None:
    manifest = read_json(folder / "sftknow.json")
    for content in (
        {k: v for k, v in manifest.items() if k != drop},
        {**manifest, "counts": {"test": {"bucket_0": 1}}},
    ):
        (folder / "sftknow.json").write_text(json.dumps(content))
        with pytest.raises(MasteryDataError, match="does not tell its facts"):
            MasteryData(folder)
