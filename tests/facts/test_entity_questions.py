from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sftknow.answers import Synonyms
from sftknow.errors import FactsError
from sftknow.facts.prompts import question_for, subject_of
from sftknow.facts.sources import FactSet, load_facts
from sftknow.facts.topics import load_topics

TOPICS, SYNONYMS = load_topics(), Synonyms.load()


def put(folder: Path, part: str, relation: str, rows: Any) -> Path:
    file = folder / part / f"{relation}.{part}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return file


def row(question: str, *answers: str) -> dict[str, Any]:
    return {"question": question, "answers": list(answers)}


def load(folder: Path, **options: Any) -> FactSet:
    return load_facts(str(folder), topics=TOPICS, synonyms=SYNONYMS, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two in-domain topics that share their question, and one out-of-domain topic."""
    put(
        tmp_path,
        "train",
        "P131",
        [
            row("Where is Arden located?", "Eskaby", "Ferrol"),
            row("Where is Arden located?", "South Korea"),
            row("Where is Arden located?", "Gondar"),
            row("Where is  King's Lynn  located?", "People's Republic of China"),
        ],
    )
    put(tmp_path, "train", "P276", [row("Where is Arden located?", "Dunholm"), row("Where is Bo located?", "Cestria")])
    put(tmp_path, "dev", "P131", [row("Where is Cy located?", "Cestria")])
    put(tmp_path, "dev", "P276", [])
    put(tmp_path, "test", "P131", [row("Where is Arden located?", "Eskaby")])
    put(tmp_path, "test", "P276", [row("Where is Dee located?", "Eskaby")])
    put(tmp_path, "test", "P40", [row("Who is Eve's child?", "Abel")])
    return tmp_path


def test_filter_ids_and_texts(folder: Path) -> None:
    loaded = load(folder)
    found = [(f.id, f.topic, f.split, f.subject, f.object) for f in loaded.facts]
    assert found == [
        ("P131/train/2", "P131", "train", "Arden", "South Korea"),
        ("P131/train/4", "P131", "train", "King's Lynn", "People's Republic of China"),
        ("P276/train/2", "P276", "train", "Bo", "Cestria"),
        ("P131/dev/1", "P131", "dev", "Cy", "Cestria"),
        ("P131/test/1", "P131", "test", "Arden", "Eskaby"),
        ("P276/test/1", "P276", "test", "Dee", "Eskaby"),
        ("P40/testood/1", "P40", "testood", "Eve", "Abel"),
    ]
    assert loaded.removed == {
        "topics without files": 21,
        "train: more than one answer": 1,
        "train: question seen before": 2,
    }
    assert loaded.facts[0].aliases == ("Republic of Korea", "Korea")
    assert loaded.facts[1].aliases == ("PRC", "China")
    assert loaded.facts[1].question == "Where is  King's Lynn  located?"
    assert loaded.facts[-1].question == "Who is Eve's child?"
    assert loaded.exposures is None
    assert loaded.source == str(folder)
    assert [f.id for f in loaded.of_split("dev")] == ["P131/dev/1"]


def test_without_dev_there_is_no_dev_part(folder: Path) -> None:
    for file in (folder / "dev").iterdir():
        file.unlink()
    (folder / "dev").rmdir()
    assert Counter(f.split for f in load(folder).facts) == {"train": 3, "test": 2, "testood": 1}


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (row("Where is Cy located?"), "row 2: the answers must be a list of at least one"),
        (row("Where is Cy located?", " "), "row 2: an answer is empty"),
        ({"question": "Where is Cy located?", "answers": "Bo"}, "row 2: the answers must be a list"),
        ({"question": "Where is Cy located?", "answers": [3]}, "row 2: an answer is not text"),
        ({"question": 3, "answers": ["Bo"]}, "row 2: the question must be text"),
        ({"answers": ["Bo"]}, "row 2: the question must be text"),
        (row("Where was Cy born?", "Bo"), r"row 2: 'Where was Cy born\?' is not P276's question"),
        (row("Where is  located?", "Bo"), "row 2: .* is not P276's question"),
        (["Where is Cy located?", "Bo"], "row 2: must be an object"),
    ],
)
def test_bad_rows(folder: Path, bad: Any, complaint: str) -> None:
    file = put(folder, "test", "P276", [row("Where is Dee located?", "Eskaby"), bad])
    with pytest.raises(FactsError, match=complaint) as caught:
        load(folder)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_files(folder: Path) -> None:
    file = put(folder, "test", "P276", {"question": "Where is Dee located?"})
    with pytest.raises(FactsError, match="must be a JSON list"):
        load(folder)
    file.write_text('[{"question": ')
    with pytest.raises(FactsError, match=r"P276.test.json is not JSON"):
        load(folder)
    good = json.dumps(row("Where is Dee located?", "Eskaby")).encode()
    file.write_bytes(b"[" + good + b",\n" + good + b", " + good.replace(b"Dee", b"D\xe9e") + b"]")
    with pytest.raises(FactsError, match=r"P276.test.json, row 3: byte \d+ is not UTF-8"):
        load(folder)
    file.unlink()
    with pytest.raises(FactsError, match=r"P276.test.json is missing, though other files of this topic are there"):
        load(folder)


def test_a_relation_that_nobody_has_templates_for(folder: Path) -> None:
    put(folder, "test", "P6", [row("Who governs Bo?", "Eve")])
    with pytest.raises(FactsError, match=r"P6.test.json: no topic is named P6"):
        load(folder)


@pytest.fixture(scope="module")
def release(entity_questions: Path) -> FactSet:
    return load(entity_questions)


@pytest.mark.entity_questions
class TestRelease:
    def test_the_papers_totals(self, release: FactSet) -> None:
        """Sums of Table 1 and of each part of Table 8; the dev part is ours."""
        counts = Counter(f.split for f in release.facts)
        assert (counts["train"], counts["test"], counts["testood"]) == (75_944, 9_555, 11_613)
        assert counts["dev"] > 9_000
        rows = {
            split: n + sum(v for k, v in release.removed.items() if k.startswith(f"{split}:"))
            for split, n in counts.items()
        }
        assert (rows["train"], rows["test"], rows["testood"]) == (78_611, 9_828, 12_247)
        assert "topics without files" not in release.removed

    def test_questions_are_the_topics_own(self, release: FactSet) -> None:
        for fact in release.facts:
            topic = TOPICS[fact.topic]
            assert subject_of(topic, fact.question) == fact.subject
            if "'" not in fact.question and fact.question == " ".join(fact.question.split()):
                assert question_for(topic, fact.subject) == fact.question

    def test_all_objects_of_the_synonym_table_occur(self, release: FactSet) -> None:
        rows = {SYNONYMS.aliases(f.object) for f in release.facts if f.aliases}
        assert len(rows) == 29

    def test_ids_are_unique(self, release: FactSet) -> None:
        assert len({f.id for f in release.facts}) == len(release.facts)

    def test_limit(self, release: FactSet, entity_questions: Path) -> None:
        loaded = load(entity_questions, limit=3_000)
        assert set(loaded.facts) <= set(release.facts)
        counts = Counter(f.split for f in loaded.facts)
        assert counts == {"train": 3_000, "dev": 750, "test": 750, "testood": 750}
        per_topic = Counter((f.split, f.topic) for f in loaded.facts)
        assert {n for (split, _), n in per_topic.items() if split == "train"} == {300}
        assert {n for (split, _), n in per_topic.items() if split == "testood"} == {53, 54}
