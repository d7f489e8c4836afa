from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sftknow.answers import Synonyms
from sftknow.artifacts.mastery_data import write_mastery_data
from sftknow.errors import FactsError
from sftknow.facts.cells import NOTHING
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
        (ROW | {"relation": "P6"}, "row 3: no topic is named 'P6'"),
        (ROW | {"split": "evaluation"}, "row 3: the split is 'evaluation', not one of train, dev, test, testood"),
        (ROW | {"id": "P17/train/1"}, r"row 3: the id 'P17/train/1' was already used in facts.jsonl, row 1"),
        (ROW | {"aliases": [""]}, "row 3: an alias is empty"),
        (ROW | {"aliases": "ROK||Korea"}, "row 3: an alias is empty"),
        (ROW | {"aliases": {"a": 1}}, "row 3: the aliases must be a list"),
        (ROW | {"question": 5}, "row 3: the question must be text"),
        ([1, 2], "row 3: must be an object"),
        (ROW | {"object": float("nan")}, "row 3: the object is empty"),
        (ROW | {"object": True}, "row 3: the object must be text, not True"),
        (ROW | {"object": ["Seoul"]}, "row 3: the object must be text"),
        (ROW | {"aliases": "ROK; Hanguk"}, "row 3: the aliases 'ROK; Hanguk' may be one name or several"),
        (ROW | {"aliases": "['a' 'b' ... 'z']"}, "row 3: the aliases .* were shortened"),
        (ROW | {"aliases": "[ROK, Hanguk]"}, "row 3: the aliases .* look like a list"),
        (ROW | {"aliases": "{'en': 'ROK'}"}, "row 3: the aliases .* look like a list"),
        (ROW | {"aliases": [["ROK"]]}, "row 3: the aliases must be a list"),
        (ROW | {"aliases": '["ROK", ""]'}, "row 3: an alias is empty"),
        (ROW | {"object": "Se\ud800oul"}, "row 3: the object holds half a character at place 3"),
        (ROW | {"aliases": ["\udc00"]}, "row 3: the aliases holds half a character"),
        (ROW | {"question": "\udfff?"}, "row 3: the question holds half a character"),
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
        ("a.csv", b"\n\n", "not a single fact"),
        ("a.csv", "subject,relation,object\n".encode("utf-16-le"), "UTF-16 without a byte-order mark"),
        ("a.csv", b"subject,Subject,object,relation\nA,B,C,P17\n", "row 2: the columns 'subject' and 'Subject' have"),
        ("a.csv", b"subject,relation,object\nA,P17,NaN\n", "row 2: the object is 'NaN', as a missing value"),
        ("a.json", b'[{"subject": "A"},\n', "row 2: not JSON"),
        (
            "a.jsonl",
            b'{"subject":"Q142","relation":"P36","object":"Q90"}',
            "row 1: the subject 'Q142' is a Wikidata id",
        ),
        ("a.csv", b"question,answer\nWho?,Ann\n", "row 2: questions without a relation .* --topics questions"),
        ("a.csv", b'subject,relation,object\n"A\nB",P17,C\nD,P17,\n', "row 3: the object is empty"),
        ("a.csv", b"subject,relation,object\nA,P17,B\x00\n", "row 2: the object holds a NUL character"),
        ("a.jsonl", b'{"subject": 1' + b"0" * 5000 + b"}\n", "row 1: not JSON that can be read"),
        ("a.jsonl", b"[" * 100_000 + b"\n", "row 1: not JSON"),
        ("a.jsonl", b"null\n", "row 1: must be an object"),
        ("a.parquet", b"", "is not a Parquet file"),
        ("a.txt", b"facts", "is not a .jsonl, .ndjson, .json, .csv, .tsv, .parquet or .zip file"),
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


PLAIN = [("France", "P36", "Paris"), ("Japan", "P36", "Tokyo")]
DICTS = [{"Subject": subject, "topic": topic, "Object": object_} for subject, topic, object_ in PLAIN]


def facts_of(source: Path, **options: Any) -> list[tuple[str, ...]]:
    loaded = load_facts(str(source), topics=TOPICS, synonyms=SYNONYMS, **options)
    return [(fact.subject, fact.topic, fact.object) for fact in loaded.facts]


@pytest.mark.parametrize(
    ("name", "text", "encoding"),
    [
        ("a.csv", "subject;relation;object\nFrance;P36;Paris\nJapan;P36;Tokyo\n", "utf-8"),
        ("a.csv", "sep=;\nsubject;relation;object\nFrance;P36;Paris\nJapan;P36;Tokyo\n", "utf-8"),
        ("a.csv", "subject\trelation\tobject\nFrance\tP36\tParis\nJapan\tP36\tTokyo\n", "utf-8"),
        ("a.tsv", "subject\trelation\tobject\nFrance\tP36\tParis\nJapan\tP36\tTokyo", "utf-8"),
        ("a.tsv", "subject,relation,object\nFrance,P36,Paris\nJapan,P36,Tokyo", "utf-8"),
        ("a.csv", "subject|relation|object\nFrance|P36|Paris\nJapan|P36|Tokyo", "utf-8"),
        ("A.CSV", "\n SUBJECT , Relation,object,,\n\nFrance,P36,Paris\n , ,\nJapan,P36,Tokyo,,\n\n  \n", "utf-8"),
        ("a.csv", "subject,relation,object\r\nFrance,P36,Paris\r\nJapan,P36,Tokyo\r\n", "utf-16"),
        ("a.csv", "\ufeffsubject;relation;object\nFrance;P36;Paris\nJapan;P36;Tokyo\n", "utf-16-be"),
        ("a.csv", "subject,relation,object\nFrance,P36,Paris\nJapan,P36,Tokyo\n", "utf-32"),
        ("a.csv", ",subject,relation,object\n0,France,P36,Paris\n1,Japan,P36,Tokyo\n", "utf-8"),
        ("a.csv", "object,subject,Topic\nParis,France,capital\nTokyo,Japan,Capital\n", "utf-8"),
        ("a.csv", "relation,subject,object\nwdt:P36,France,Paris\np36,Japan,Tokyo\n", "utf-8"),
        (
            "a.csv",
            "subject,relation,object\nFrance,http://www.wikidata.org/prop/direct/P36,Paris\n"
            "Japan,https://www.wikidata.org/wiki/Property:P36,Tokyo\n",
            "utf-8",
        ),
        ("a.json", json.dumps(DICTS), "utf-8"),
        ("a.jsonl", json.dumps(DICTS), "utf-8"),
        ("a.json", json.dumps({"Data": DICTS}), "utf-8"),
        ("a.json", "".join(json.dumps(row) + "\n" for row in DICTS), "utf-8"),
        ("a.ndjson", "".join(json.dumps(row) + "\n\n" for row in DICTS), "utf-16"),
        ("a.json", pd.DataFrame(DICTS).to_json(), "utf-8"),
    ],
)  # fmt: skip
def test_dialects(tmp_path: Path, name: str, text: str, encoding: str) -> None:
    (tmp_path / name).write_text(text, encoding=encoding, newline="")
    assert facts_of(tmp_path / name) == PLAIN


@pytest.mark.parametrize("name", ["null.jsonl", "empty.csv"])
def test_optional_cells_may_say_nothing(tmp_path: Path, name: str) -> None:
    empty = dict.fromkeys(("aliases", "question", "split", "id"))
    file = tmp_path / name
    if name.endswith("jsonl"):
        jsonl(tmp_path, *({"subject": s, "relation": r, "object": o} | empty for s, r, o in PLAIN), name=name)
    else:
        pd.DataFrame([row + (None,) * 4 for row in PLAIN], columns=["subject", "relation", "object", *empty]).to_csv(
            file
        )
    loaded = load(file)
    assert facts_of(file) == PLAIN
    assert [fact.aliases for fact in loaded.facts] == [(), ()]
    assert loaded.facts[0].question == "What is the capital of France?"
    assert (
        "an empty split is a cut by a hash of relation and subject: 80 % train, 10 % dev, 10 % test (2 rows)"
        in loaded.notes
    )


@pytest.mark.parametrize("how", [str, repr, lambda a: np.array(a, dtype=object), lambda a: np.array(a), tuple, set])
def test_aliases_as_pandas_writes_them(tmp_path: Path, how: Any) -> None:
    names = ["Lutetia", "City of Light", 'L\'"Œuvre"', "A, B"]
    pd.DataFrame([{"subject": "France", "relation": "P36", "object": "Paris", "aliases": how(names)}]).to_csv(
        tmp_path / "a.csv", index=False
    )
    (fact,) = load(tmp_path / "a.csv").facts
    assert sorted(fact.aliases) == sorted(names)


@pytest.mark.parametrize("nothing", ["nan", "NaN", "None", "null", "<NA>", "['nan']", "[nan None]", "nan|None", ""])
def test_what_means_nothing_is_no_alias(tmp_path: Path, nothing: str) -> None:
    pd.DataFrame([{"subject": "France", "relation": "P36", "object": "Paris", "aliases": nothing}]).to_csv(
        tmp_path / "a.csv", index=False
    )
    loaded = load(tmp_path / "a.csv")
    assert loaded.facts[0].answers == ("Paris",)
    assert loaded.notes == ((f"aliases {nothing!r} are taken for none (1 row)",) if nothing in NOTHING else ())


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (8848, "8848"), (1984.0, "1984"), (2.5, "2.5"), (Decimal("1.50"), "1.50"), (date(1969, 7, 20), "1969-07-20"),
        (datetime(1969, 7, 20), "1969-07-20"),
    ],
)  # fmt: skip
def test_numbers_and_dates_are_answers(tmp_path: Path, cell: Any, text: str) -> None:
    loaded = load(parquet(tmp_path, [ROW | {"object": cell}]))
    assert loaded.facts[0].object == text


def test_spellings_of_numbers_on_request(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("subject,relation,object\nA,P36,1000.0\nB,P36,20 July 1969\nC,P36,Paris\n")
    asked = load_facts(str(tmp_path / "a.csv"), topics=TOPICS, synonyms=Synonyms.load(numbers=True))
    assert [fact.object for fact in asked.facts] == ["1000", "20 July 1969", "Paris"]
    assert asked.facts[0].aliases == ("1,000", "1 000")
    assert {"1969-07-20", "July 20, 1969"} < set(asked.facts[1].aliases)
    assert "2 of 3 objects are numbers or dates: other spellings (1,000 for 1000) are accepted too" in asked.notes
    plain = load(tmp_path / "a.csv")
    assert [fact.aliases for fact in plain.facts] == [(), (), ()]
    assert (
        "2 of 3 objects are numbers or dates: other spellings (1,000 for 1000) count as wrong; --numbers accepts them"
        in plain.notes
    )


def test_a_wikidata_id_among_names_is_said(tmp_path: Path) -> None:
    rows = [ROW | {"subject": name} for name in ("Q50", "A", "B")]
    note = "subjects like 'Q50' (row 1) look like Wikidata ids and are taken for names (1 row)"
    assert note in load(jsonl(tmp_path, *rows)).notes


POPQA = (
    "id\tsubj\tprop\tobj\tsubj_id\tquestion\tpossible_answers\n"
    '1\tJane\toccupation\tpolitician\t9\tWhat is Jane\'s occupation?\t"[""politician"", ""statesman""]"\n'
    '2\tAnn\tfather\tBo\t9\tWho is Ann\'s father?\t["Bo"]\n'
    '3\tFrance\tcapital\tParis\t9\tWhat is the capital of France?\t["Paris", "Lutetia"]\n'
)


@pytest.mark.parametrize("columns", [None, "popqa", "PopQA"])
@pytest.mark.parametrize("name", ["test.tsv", "popqa.csv"])
def test_popqa(tmp_path: Path, name: str, columns: str | None) -> None:
    (tmp_path / name).write_text(POPQA)
    loaded = load_facts(str(tmp_path), topics=TOPICS, synonyms=SYNONYMS, columns=columns)
    assert [(f.id, f.topic, f.subject, f.answers, f.question, f.split) for f in loaded.facts] == [
        ("1", "P106", "Jane", ("politician", "statesman"), "What is Jane's occupation?", "testood"),
        ("3", "P36", "France", ("Paris", "Lutetia"), "What is the capital of France?", "train"),
    ]
    assert loaded.removed == {"no topic for father": 1}
    assert any(note.startswith(f"{name} is read as popqa (subject=subj, ") for note in loaded.notes)
    assert "the relation 'occupation' is P106" in loaded.notes


def test_triviaqa_as_released_and_as_on_the_hub(tmp_path: Path) -> None:
    answer = {"Aliases": ["Sunset Blvd", "None"], "Value": "Sunset Boulevard"}
    row = {"Question": "Which musical?", "QuestionId": "tc_2", "Answer": answer}
    (tmp_path / "a.json").write_text(json.dumps({"Data": [row], "Domain": "unfiltered-web", "Version": 1.0}))
    hub = {"question": "Which musical?", "question_id": "tc_2"}
    hub["answer"] = {"aliases": ["Sunset Blvd"], "value": "Sunset Boulevard", "type": "WikipediaEntity"}
    both = [tmp_path / "a.json", parquet(tmp_path, [hub], name="validation.parquet")]
    topics = load_topics(Path("questions"))
    for columns in (None, "triviaqa"):
        for file in both:
            (fact,) = load_facts(str(file), topics=topics, synonyms=SYNONYMS, columns=columns).facts
            assert (fact.id, fact.topic, fact.subject, fact.question) == (
                "tc_2", "QUESTION", "Which musical?", "Which musical?"
            )  # fmt: skip
            assert fact.answers == ("Sunset Boulevard", "Sunset Blvd")


def test_questions_with_lists_of_answers(tmp_path: Path) -> None:
    file = jsonl(tmp_path, {"question": "Who?", "answer": ["Ann", "Anna"]})
    (fact,) = load_facts(str(file), topics=load_topics(Path("questions")), synonyms=SYNONYMS).facts
    assert fact.answers == ("Ann", "Anna")


def test_columns_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Land;Hauptstadt;relation;Namen;subject\nFrance;Paris;P36;['Lutetia'];x\n")
    columns = "subject=Land, object=hauptstadt, aliases=Namen"
    loaded = load_facts(str(tmp_path / "a.csv"), topics=TOPICS, synonyms=SYNONYMS, columns=columns)
    assert [(f.subject, f.answers) for f in loaded.facts] == [("France", ("Paris", "Lutetia"))]
    assert "a.csv is read as subject=Land, object=hauptstadt, aliases=Namen" in loaded.notes
    assert "columns not used: subject" in loaded.notes
    for wrong, said in (
        ("subject=Stadt", "row 2: there is no column 'Stadt', only 'Land'"),
        ("subjekt=Land", "'subjekt=Land' is neither popqa, triviaqa, questions nor NAME=COLUMN"),
        ("subject", "'subject' is neither"),
    ):
        with pytest.raises(FactsError, match=said):
            facts_of(tmp_path / "a.csv", columns=wrong)
    with pytest.raises(FactsError, match="lab is no table"):
        load_facts("lab", topics=TOPICS, synonyms=SYNONYMS, columns="popqa")


@pytest.mark.parametrize(
    ("name", "split"), [("Train", "train"), ("validation", "dev"), ("TEST", "test"), ("Test-OOD", "testood")]
)
def test_spellings_of_splits(tmp_path: Path, name: str, split: str) -> None:
    assert load(jsonl(tmp_path, ROW | {"split": name})).facts[0].split == split


def test_a_folder_of_json_alone_is_read_and_beside_tables_it_is_about_them(tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_text(json.dumps([ROW]))
    assert len(load(tmp_path).facts) == 1
    jsonl(tmp_path, ROW, ROW | {"subject": "B"})
    (tmp_path / "facts.json").write_text('{"about": "these tables"}')
    assert len(load(tmp_path).facts) == 2
