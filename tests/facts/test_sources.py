from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants
from hypothesis import given, strategies as st

from sftknow import resources
from sftknow.answers import Synonyms
from sftknow.errors import FactsError, HubError
from sftknow.facts import sources
from sftknow.facts.sources import FactSet, load_facts
from sftknow.facts.topics import load_topics
from tests.hub_server import Fault, HubServer

TOPICS, SYNONYMS = load_topics(), Synonyms.load()


def load(source: Path | str, **options: Any) -> FactSet:
    return load_facts(str(source), topics=TOPICS, synonyms=SYNONYMS, **options)


def table(tmp_path: Path, counts: dict[tuple[str, str], int]) -> Path:
    """A JSONL file with so many facts of each (split, topic), the topics mixed."""
    rows = [
        {
            "subject": f"{split} {topic} {i}",
            "topic": topic,
            "object": "Arden",
            "split": split,
            "id": f"{topic}/{split}/{i}",
        }
        for i in range(max(counts.values()))
        for (split, topic), count in counts.items()
        if i < count
    ]
    file = tmp_path / "facts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


class TestLimit:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        train = {("train", "P17"): 50, ("train", "P19"): 4, ("train", "P36"): 50}
        return table(tmp_path, train | {("dev", "P17"): 30, ("test", "P17"): 3, ("testood", "P40"): 30})

    def test_is_balanced_over_topics_and_small_ones_give_way(self, file: Path) -> None:
        loaded = load(file, limit=30)
        counts = Counter((f.split, f.topic) for f in loaded.facts)
        assert counts == {
            ("train", "P17"): 13,
            ("train", "P19"): 4,
            ("train", "P36"): 13,
            ("dev", "P17"): 8,
            ("test", "P17"): 3,
            ("testood", "P40"): 8,
        }
        assert loaded.removed == {
            "train: beyond the limit": 74,
            "dev: beyond the limit": 22,
            "testood: beyond the limit": 22,
        }

    def test_keeps_the_order_of_the_source(self, file: Path) -> None:
        order = [f.id for f in load(file).facts]
        kept = [f.id for f in load(file, limit=30).facts]
        assert kept == [i for i in order if i in set(kept)]

    def test_is_seeded(self, file: Path) -> None:
        assert load(file, limit=30, seed=1).sha256 == load(file, limit=30, seed=1).sha256
        assert load(file, limit=30, seed=1).sha256 != load(file, limit=30, seed=2).sha256
        assert load(file, seed=1).sha256 == load(file, seed=2).sha256

    def test_a_larger_limit_keeps_what_a_smaller_one_kept(self, file: Path) -> None:
        kept = [{f.id for f in load(file, limit=limit, seed=5).facts} for limit in (1, 7, 30, 31, 104, 1000)]
        assert all(few <= more for few, more in itertools.pairwise(kept))
        assert kept[-1] == {f.id for f in load(file).facts}

    @pytest.mark.parametrize("limit", [0, -3])
    def test_nothing_is_not_a_limit(self, file: Path, limit: int) -> None:
        with pytest.raises(FactsError, match="leaves nothing"):
            load(file, limit=limit)

    @given(st.dictionaries(st.text(max_size=2), st.integers(1, 40), max_size=6), st.integers(0, 200))
    def test_shares_are_as_even_as_can_be(self, available: dict[str, int], size: int) -> None:
        shares = sources.even_shares(available, size)
        assert sum(shares.values()) == min(size, sum(available.values()))
        assert all(0 <= shares[t] <= available[t] for t in available)
        open_topics = [shares[t] for t in available if shares[t] < available[t]]
        # Nobody has more than one beyond a topic that could still give.
        assert all(max(shares.values()) - share <= 1 for share in open_topics)


def test_questions_that_are_training_questions_too(tmp_path: Path) -> None:
    file = table(tmp_path, {("train", "P17"): 3, ("test", "P17"): 4, ("dev", "P17"): 1})
    twice = [json.loads(line) for line in file.read_text().splitlines()]
    for row in twice:
        if (row["split"], row["subject"][-1]) in (("test", "0"), ("test", "2"), ("dev", "0")):
            row["subject"] = f"train P17 {row['subject'][-1]}"
    file.write_text("".join(json.dumps(row) + "\n" for row in twice))
    found = load(file)
    assert len(found.facts) == 8
    assert found.notes == (
        "training questions too are 1 of 1 dev, 2 of 4 test questions; facts.disjoint (--disjoint) leaves them out",
    )
    apart = load(file, disjoint=True)
    assert [fact.id for fact in apart.facts if fact.split != "train"] == ["P17/test/1", "P17/test/3"]
    assert apart.counts()["train"] == 3
    assert apart.removed == {"dev: a training question too": 1, "test: a training question too": 2}
    assert apart.notes == ()
    assert len(load(file, disjoint=True, limit=1).of_split("test")) == 1, "what is left fills the limit"


def test_hash_covers_every_field(tmp_path: Path) -> None:
    row = {
        "subject": "A",
        "topic": "P17",
        "object": "B",
        "aliases": ["C"],
        "question": "D?",
        "split": "train",
        "id": "i",
    }
    changes = [{}, *({key: "dev" if key == "split" else "P19" if key == "topic" else "new"} for key in row)]
    hashes = set()
    for change in changes:
        file = tmp_path / "facts.jsonl"
        file.write_text(json.dumps(row | change))
        hashes.add(load(file).sha256)
    assert len(hashes) == len(changes)


def test_own_synonyms_change_the_facts(tmp_path: Path) -> None:
    file = table(tmp_path, {("train", "P17"): 2})
    with_names = load_facts(str(file), topics=TOPICS, synonyms=Synonyms({"Arden": ["Ardenia"]}))
    assert with_names.facts[0].answers == ("Arden", "Ardenia")
    assert with_names.sha256 != load(file).sha256


@pytest.mark.parametrize(
    "source", ["labb", "../entity_questions", "facts/missing.jsonl", "a/b/c", "data/facts.zip", ""]
)
def test_what_is_no_source(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FactsError, match="no facts at"):
        load(source)


def test_a_folder_named_like_a_source_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "quick").mkdir()
    table(tmp_path / "quick", {("train", "P17"): 2})
    monkeypatch.chdir(tmp_path)
    loaded = load("quick")
    assert (loaded.source, len(loaded.facts)) == ("./quick", 2)
    assert load("./quick").source == "./quick"


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(FactsError, match="holds neither"):
        load(tmp_path)


class TestLab:
    def test_reads_the_shipped_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = [
            {
                "fact_id": f"P17/{split}/{i}",
                "topic": "P17",
                "subject": f"Tower {split} {i}",
                "object": "Arden",
                "aliases": ["Ardenia"],
                "question": f"Which country is Tower {split} {i} located in?",
                "split": split,
                "exposures": i,
                "templates_seen": [0, 3],
                "wrong_share": 0.5,
                "question_exposures": 2 * i,
            }
            for split in ("train", "test")
            for i in range(8)
        ]
        kinds = {"exposures": pa.int32(), "templates_seen": pa.list_(pa.int8()), "question_exposures": pa.int32()}
        texts = {"aliases": pa.list_(pa.string()), "wrong_share": pa.float32()}
        schema = pa.schema([(name, (kinds | texts).get(name, pa.string())) for name in rows[0]])
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "facts.parquet")
        monkeypatch.setattr(sources, "lab_folder", lambda: tmp_path)
        loaded = load("lab", limit=4)
        assert loaded.source == "lab"
        assert Counter(f.split for f in loaded.facts) == {"train": 4, "test": 1}
        assert loaded.exposures is not None
        assert list(loaded.exposures) == [f.id for f in loaded.facts]
        for fact in loaded.facts:
            assert loaded.exposures[fact.id].exposures == int(fact.id.split("/")[-1])
            assert loaded.exposures[fact.id].templates_seen == (0, 3)

    def test_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sources, "lab_folder", lambda: tmp_path)
        with pytest.raises(FactsError, match="sftknow lab pretrain"):
            load("lab")

    @pytest.mark.skipif(not (resources.lab_folder() / "facts.parquet").is_file(), reason="the lab is not built yet")
    def test_what_ships(self) -> None:
        loaded = load("lab")
        assert loaded.exposures is not None
        assert set(loaded.exposures) == {f.id for f in loaded.facts}
        assert {f.topic for f in loaded.facts} == set(TOPICS)


class TestHub:
    ROW = json.dumps({"subject": "A", "topic": "P17", "object": "B"}).encode()

    def named(self, source: str) -> list[Any]:
        """What `load_facts` says that it read."""
        found = load(source)
        return [found.source, [fact.id for fact in found.facts]]

    def refused(self, source: str) -> str:
        with pytest.raises(HubError) as caught:
            load(source)
        assert caught.value.repo_id == source.partition("@")[0]
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_the_cache_is_used_offline_only_when_asked(self) -> None:
        assert "org/nowhere is not in the cache; unset HF_HUB_OFFLINE" in self.refused("org/nowhere")

    def test_tables_revisions_and_cache(self, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        old = hub.put("dataset", "org/facts", {"data/train.jsonl": self.ROW, "README.md": b"# facts\n"})
        new = hub.put("dataset", "org/facts", {"data/test.jsonl": self.ROW})
        both = [f"org/facts@{new}", ["P17/test/1", "P17/train/2"]]
        assert self.named("org/facts") == both
        assert self.named(f"org/facts@{old}") == [f"org/facts@{old}", ["P17/train/1"]]
        assert self.named("org/facts@main") == both
        assert hub.count("GET", "README.md") == 0
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert self.named("org/facts") == both
        assert self.named(f"org/facts@{old}")[1] == ["P17/train/1"]

    def test_a_stumble_is_survived(self, hub: HubServer, naps: list[float]) -> None:
        hub.put("dataset", "org/facts", {"train.jsonl": self.ROW})
        for path in ("/api/datasets/", "/tree/"):
            hub.faults.append(Fault("error", "GET", path, status=503))
        hub.faults.append(Fault("rate_limit", "GET", "/resolve/", retry_after=2))
        hub.faults.append(Fault("flip", "GET", "/resolve/"))
        assert self.named("org/facts")[1] == ["P17/train/1"]
        assert not hub.faults
        assert naps

    def test_a_stale_cache_is_not_used_silently(self, hub: HubServer) -> None:
        old = hub.put("dataset", "org/facts", {"train.jsonl": self.ROW})
        assert self.named("org/facts") == [f"org/facts@{old}", ["P17/train/1"]]
        new = hub.put("dataset", "org/facts", {"train.jsonl": self.ROW + b"\n"})
        hub.faults.append(Fault("error", "GET", "/api/datasets/org/facts", times=99, status=503))
        assert "the Hub answers 503 for the data set org/facts" in self.refused("org/facts")
        hub.faults.clear()
        assert self.named("org/facts")[0] == f"org/facts@{new}"

    def test_refusals(self, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        parquet = tmp_path / "train.parquet"
        pq.write_table(pa.Table.from_pylist([json.loads(self.ROW)]), parquet)
        hub.put("dataset", "org/facts", {"train.jsonl": self.ROW})
        hub.put("dataset", "org/lfs", {"train.parquet": parquet.read_bytes()})
        hub.put("dataset", "org/empty", {"README.md": b"# nothing\n"})
        hub.faults.append(Fault("flip", "GET", r"resolve/.*/train\.parquet", times=2))
        assert self.refused("org/missing") == (
            "org/missing is neither a file or folder here nor a data set on the Hub that you may read"
        )
        assert self.refused("org/facts@v9") == "the data set org/facts has no revision v9 on the Hub"
        with pytest.raises(FactsError, match=r"org/empty on the Hub has no \.jsonl"):
            load("org/empty")
        assert "train.parquet of org/lfs arrives damaged" in self.refused("org/lfs")
        assert self.named("org/lfs")[1] == ["P17/train/1"]
        refusals = {500: "answers 500", 429: "is limiting requests", 403: "may not read", 401: "hf auth login"}
        for status, said in refusals.items():
            hub.faults.append(Fault("error", "GET", "/api/datasets/org/lfs", times=6, status=status))
            said_here = self.refused("org/lfs")
            assert said in said_here
            assert "Request ID" not in said_here
            hub.faults.clear()
        hub.faults.append(Fault("drop", "GET", "/api/datasets/org/lfs", times=6))
        assert "the connection to the Hub for the data set org/lfs broke" in self.refused("org/lfs")
