from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sftknow.answers import Synonyms
from sftknow.artifacts.mastery_data import write_mastery_data
from sftknow.errors import FactsError
from sftknow.facts.sources import FactSet, load_facts
from sftknow.facts.tabular import Exposure, split_in_name
from sftknow.facts.topics import load_topics
from sftknow.records import SampleTally
from tests.tiny import graded, tiny_facts

TOPICS, SYNONYMS = load_topics(), Synonyms.load()
ROW: dict[str, Any] = {"subject": "Seoul Tower", "relation": "P17", "object": "South Korea"}


def load(source: Path) -> FactSet:
    return load_facts(str(source), topics=TOPICS, synonyms=SYNONYMS)


def jsonl(tmp_path: Path, *rows: Any, name: str = "facts.jsonl") -> Path:
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def parquet(tmp_path: Path, rows: Sequence[Mapping[str, Any]], name: str = "facts.parquet") -> Path:
    file = tmp_path / name
    pq.write_table(pa.Table.from_pylist(list(rows)), file)
    return file


def test_three_formats_give_the_same_facts(tmp_path: Path) -> None:
    rows = [
        ROW | {"aliases": ["ROK", "South Korea", "Korea"], "question": "Where is the Tower?", "split": "train",
               "id": "x"},
        {"subject": "“L’Œuvre”, a\nhouse", "relation": "P40", "object": "Ann", "aliases": [], "question": "",
         "split": "testood", "id": "y"},
    ]  # fmt: skip
    csv_file = tmp_path / "facts.csv"
    csv_file.write_text(
        "\ufeffsubject,relation,object,aliases,question,split,id\r\n"
        "Seoul Tower,P17,South Korea,ROK|South Korea|Korea,Where is the Tower?,train,x\r\n"
        '"“L’Œuvre”, a\nhouse",P40,Ann,,,testood,y\r\n',
        encoding="utf-8",
        newline="",
    )
    loaded = [load(jsonl(tmp_path, *rows)), load(csv_file), load(parquet(tmp_path, rows))]
    assert loaded[0].facts == loaded[1].facts == loaded[2].facts
    assert len({one.sha256 for one in loaded}) == 1
    first, second = loaded[0].facts
    assert first.aliases == ("Republic of Korea", "Korea", "ROK")
    assert (first.id, first.topic, first.question, first.split) == ("x", "P17", "Where is the Tower?", "train")
    assert second.question == "Who is “L’Œuvre”, a\nhouse’s child?"
    assert second.aliases == ()


def test_without_a_split_facts_are_cut_by_what_they_are(tmp_path: Path) -> None:
    rows = [ROW | {"subject": f"Tower {i}"} for i in range(400)]
    rows += [{"subject": f"Ann {i}", "topic": "P40", "object": "Bo"} for i in range(20)]
    loaded = load(jsonl(tmp_path, *rows))
    counts = Counter(f.split for f in loaded.facts)
    assert counts["testood"] == 20
    assert 290 < counts["train"] < 350
    assert 20 < counts["dev"] < 60
    assert 20 < counts["test"] < 60
    split = {f.subject: f.split for f in loaded.facts}
    fewer = load(jsonl(tmp_path, *rows[::-3]))
    assert all(split[f.subject] == f.split for f in fewer.facts)
    assert loaded.removed == {}


def test_ids_tell_topic_split_and_place(tmp_path: Path) -> None:
    rows = [ROW | {"split": "train"}, ROW | {"split": "validation", "subject": "B"}]
    assert [f.id for f in load(jsonl(tmp_path, *rows)).facts] == ["P17/train/1", "P17/dev/2"]


def test_numbers_may_be_ids(tmp_path: Path) -> None:
    assert [f.id for f in load(jsonl(tmp_path, ROW | {"id": 17})).facts] == ["17"]


def test_a_folder_of_tables(tmp_path: Path) -> None:
    jsonl(tmp_path, ROW, {"subject": "Ann", "topic": "P40", "object": "Bo"}, name="data/train.jsonl")
    jsonl(tmp_path, ROW, {"subject": "Ann", "topic": "P40", "object": "Bo"}, name="data/test-00000-of-00001.jsonl")
    jsonl(tmp_path, ROW, name="validation/part.jsonl")
    jsonl(tmp_path, ROW | {"split": "testood"}, name="train_more.jsonl")
    jsonl(tmp_path, {"no": "facts"}, name=".hidden/train.jsonl")
    loaded = load(tmp_path)
    assert [(f.split, f.topic) for f in loaded.facts] == [
        ("test", "P17"),
        ("testood", "P40"),
        ("train", "P17"),
        ("testood", "P17"),
        ("dev", "P17"),
    ]
    assert loaded.removed == {"train: topic is out-of-domain": 1}


def test_a_graded_data_set_serves_as_facts(tiny_dataset: Path) -> None:
    loaded = load(tiny_dataset)
    assert Counter(f.split for f in loaded.facts) == {"train": 20, "dev": 20, "test": 20, "testood": 20}
    assert loaded.exposures is None


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train.jsonl", "train"),
        ("data/validation-00000-of-00002.parquet", "dev"),
        ("testood/bucket_0.parquet", "testood"),
        ("test_ood/x.csv", "test"),
        ("dev/training_notes.csv", "dev"),
        ("data/facts.csv", None),
        ("contest.csv", None),
    ],
)
def test_split_in_name(path: str, split: str | None) -> None:
    assert split_in_name(Path(path)) == split


SEEN = {"exposures": 12, "templates_seen": [0, 20], "wrong_share": 0.25, "question_exposures": 3}


def test_exposures(tmp_path: Path) -> None:
    unseen = dict.fromkeys(SEEN)
    rows = [ROW | {"fact_id": "a", "split": "train"} | SEEN, ROW | {"fact_id": "b", "split": "test"} | unseen]
    loaded = load(parquet(tmp_path, rows))
    assert loaded.exposures == {
        "a": Exposure(exposures=12, templates_seen=(0, 20), wrong_share=0.25, question_exposures=3)
    }
    other = load(parquet(tmp_path, [rows[0] | {"exposures": 13}, rows[1]]))
    assert other.facts == loaded.facts
    assert other.sha256 != loaded.sha256


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"exposures": None}, "row 2: .*all or none; exposures is missing"),
        ({"templates_seen": [21]}, "row 2: templates_seen names a template that P17 does not have"),
        ({"wrong_share": "much"}, "row 2: .*do not hold numbers"),
    ],
)
def test_bad_exposures(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(FactsError, match=complaint):
        load(jsonl(tmp_path, ROW | SEEN, ROW | SEEN | change))


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        ({"subject": "A", "relation": "P17"}, "row 3: there is no 'object', only 'subject', 'relation'"),
        ({"subject": "A", "object": "B"}, "row 3: there is no 'relation'"),
        (ROW | {"object": "\u200b "}, "row 3: the object is empty"),
        (ROW | {"subject": None}, "row 3: the subject is empty"),
        (ROW | {"object": 1984}, "row 3: the object must be text, not 1984"),
        (ROW | {"relation": "P6"}, "row 3: no topic is named 'P6'"),
        (ROW | {"split": "evaluation"}, "row 3: the split is 'evaluation', not one of train, dev, test, testood"),
        (ROW | {"split": None}, "row 3: the split is empty"),
        (ROW | {"id": "P17/train/1"}, r"row 3: the id 'P17/train/1' was already used in facts.jsonl, row 1"),
        (ROW | {"aliases": [""]}, "row 3: an alias is empty"),
        (ROW | {"aliases": "ROK||Korea"}, "row 3: an alias is empty"),
        (ROW | {"aliases": {"a": 1}}, "row 3: the aliases must be a list"),
        (ROW | {"question": 5}, "row 3: the question must be text"),
        ([1, 2], "row 3: must be an object"),
        (ROW | {"object": float("nan")}, "row 3: the object must be text, not nan"),
        (ROW | {"aliases": float("nan")}, "row 3: the aliases must be a list .* not nan"),
        (ROW | {"aliases": 3}, "row 3: the aliases must be a list"),
        (ROW | {"aliases": ["ROK", 3]}, "row 3: the aliases must be a list"),
        (ROW | {"aliases": [["ROK"]]}, "row 3: the aliases must be a list"),
        (ROW | {"aliases": "[1, 2]"}, "row 3: the aliases must be a list"),
        (ROW | {"aliases": '["ROK", ""]'}, "row 3: an alias is empty"),
        (ROW | {"object": "Se\ud800oul"}, "row 3: the object holds half a character at place 3"),
        (ROW | {"aliases": ["\udc00"]}, "row 3: the aliases holds half a character"),
        (ROW | {"question": "\udfff?"}, "row 3: the question holds half a character"),
        (ROW | {"id": None}, "row 3: the id is empty"),
        (ROW | {"id": True}, "row 3: the id must be text, not True"),
        (ROW | {"relation": ["P17"]}, "row 3: the relation must be text"),
    ],
)
def test_bad_rows(tmp_path: Path, bad: Any, complaint: str) -> None:
    file = jsonl(tmp_path, ROW | {"split": "train"})
    file.write_text(file.read_text() + "\n" + json.dumps(bad) + "\n")
    with pytest.raises(FactsError, match=complaint) as caught:
        load(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.jsonl", b'{"subject": "A"\n', "row 1: not JSON"),
        ("a.jsonl", b'\n{"subject": "\xe9"}\n', "row 2: byte 14 is not UTF-8"),
        ("a.csv", b"subject,relation,object\nA,P17,B\nA,P17\n", "row 3: 2 fields under a header of 3"),
        ("a.csv", b"subject,relation,object\nA,P17,B, C\n", "row 2: 4 fields under a header of 3; quote commas"),
        ("a.csv", b"subject,relation,object\nA,P17,\n", "row 2: the object is empty"),
        ("a.csv", b"subject,relation\nA,P17\n", "row 2: there is no 'object'"),
        ("a.csv", b"subject,subject\nA,P17\n", "row 1: a column's name stands twice"),
        ("a.csv", b'subject,relation,object\n"A,P17,B\n', "row 2: not CSV"),
        ("a.csv", b"subject,relation,object\nA,P17,\xff\n", "row 2: byte 30 is not UTF-8"),
        ("a.csv", b"subject,relation,object\n", "not a single fact"),
        ("a.jsonl", b"", "not a single fact"),
        ("a.parquet", b"PAR1 and no more", "is not a Parquet file"),
        (
            "a.csv",
            b"subject;relation;object\nA;P17;B\n",
            "row 2: there is no 'relation', only 'subject;relation;object'",
        ),
        ("a.csv", b"\n\n", "not a single fact"),
        ("a.csv", b'subject,relation,object\n"A\nB",P17,C\nD,P17,\n', "row 3: the object is empty"),
        ("a.csv", "subject,relation,object\nA,P17,B\n".encode("utf-16"), "row 1: byte 0 is not UTF-8"),
        ("a.csv", b"subject,relation,object\nA,P17,B\x00\n", "row 2: the object holds a NUL character"),
        ("a.jsonl", b'{"subject": 1' + b"0" * 5000 + b"}\n", "row 1: not JSON that can be read"),
        ("a.jsonl", b"[" * 100_000 + b"\n", "row 1: not JSON"),
        (
            "a.jsonl",
            b'{"Subject": "A", "Relation": "P17", "Object": "B"}',
            "row 1: there is no 'relation', only 'Subject'",
        ),
        ("a.jsonl", b"null\n", "row 1: must be an object"),
        ("a.parquet", b"", "is not a Parquet file"),
        ("a.txt", b"facts", "is not a .jsonl, .csv, .parquet or .zip file"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(FactsError, match=complaint) as caught:
        load(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_line_separators_within_a_text_end_no_row(tmp_path: Path) -> None:
    loaded = load(jsonl(tmp_path, ROW | {"subject": "A\u2028B"}, ROW | {"subject": "C"}))
    assert [f.subject for f in loaded.facts] == ["A\u2028B", "C"]


@pytest.mark.parametrize(
    ("aliases", "names"),
    [
        ("ROK|Hanguk", ("ROK", "Hanguk")),
        ('["ROK", "Hanguk|s"]', ("ROK", "Hanguk|s")),
        ("['ROK', \"H'anguk\"]", ("ROK", "H'anguk")),
        ("[]", ()),
        ("[Sic]", ("[Sic]",)),
        (["ROK", " Hanguk "], ("ROK", "Hanguk")),
        (None, ()),
        ("", ()),
        ([], ()),
    ],
)
def test_forms_of_aliases(tmp_path: Path, aliases: Any, names: tuple[str, ...]) -> None:
    loaded = load(jsonl(tmp_path, ROW | {"object": "Seoul", "aliases": aliases}))
    assert loaded.facts[0].aliases == names
    assert loaded.own_aliases == ({loaded.facts[0].id: names} if names else {})


@pytest.mark.parametrize(
    "column",
    [
        pa.array([["ROK"], None]),
        pa.array([["ROK"], None], pa.large_list(pa.large_string())),
        pa.array([["ROK"], []], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
        pa.array(["ROK", None]).dictionary_encode(),
        pa.array(["ROK", ""], pa.large_string()),
        pa.array(["['ROK']", "[]"]),
    ],
    ids=str,
)
def test_aliases_of_any_parquet_type(tmp_path: Path, column: pa.Array) -> None:
    table = pa.table({"subject": ["A", "B"], "topic": ["P17", "P17"], "object": ["Seoul", "Bo"], "aliases": column})
    pq.write_table(table, tmp_path / "facts.parquet")
    assert [fact.aliases for fact in load(tmp_path / "facts.parquet").facts] == [("ROK",), ()]


@pytest.mark.parametrize(
    ("column", "complaint"),
    [
        (pa.array([b"ROK", None]), "row 1: the aliases must be a list of texts"),
        (pa.array([[b"ROK"], None]), "row 1: the aliases must be a list of texts"),
        (pa.array([float("nan"), None]), "row 1: the aliases must be a list of texts, .* not nan"),
        (pa.array([{"en": "ROK"}, None]), "row 1: the aliases must be a list of texts"),
        (pa.array([[None], None], pa.list_(pa.string())), "row 1: the aliases must be a list of texts"),
    ],
    ids=str,
)
def test_aliases_of_odd_parquet_types(tmp_path: Path, column: pa.Array, complaint: str) -> None:
    table = pa.table({"subject": ["A", "B"], "topic": ["P17", "P17"], "object": ["Seoul", "Bo"], "aliases": column})
    pq.write_table(table, tmp_path / "facts.parquet")
    with pytest.raises(FactsError, match=complaint):
        load(tmp_path / "facts.parquet")


def test_what_a_table_has_besides_is_named(tmp_path: Path) -> None:
    loaded = load(jsonl(tmp_path, ROW | {"alias": "ROK", "note": 1}, ROW | {"subject": "B", "price": None}))
    assert loaded.notes == ("columns not used: alias, note, price",)
    assert load(jsonl(tmp_path, ROW, name="b.jsonl")).notes == ()


def test_a_graded_data_set_with_kept_continuations_serves_as_facts(tmp_path: Path) -> None:
    rows = [graded(fact, 2) for fact in tiny_facts(4)]
    texts = [SampleTally(fact_id=row.fact.id, template=0, tries=1, hits=0, texts=("x",)) for row in rows]
    write_mastery_data(tmp_path / "graded", rows, {"graded_by": "x"}, continuations=texts)
    loaded = load(tmp_path / "graded")
    assert [fact.id for fact in loaded.facts] == [row.fact.id for row in rows]
    assert loaded.notes == ()
