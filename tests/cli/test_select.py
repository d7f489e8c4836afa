"""`sftknow select` on data sets of a Hub, and how long it says that it takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from sftknow.cli.main import main
from sftknow.run import sft_asking
from tests.hub_server import HubServer
from tests.run.test_selecting import CHAT, Answering, numbered, written
from tests.tiny import tiny_llama, tiny_tokenizer


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFTKNOW_CACHE", str(tmp_path / "own-cache"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Answering:
    """Stands in the place of the model, and knows every answer in half of its samples."""
    model = Answering(lambda prompt, i: f"word{''.join(c for c in prompt[-8:] if c.isdigit())}" if i % 2 else "no")
    monkeypatch.setattr(sft_asking, "load_sampler", lambda *_, **__: model)
    return model


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue().to_pybytes())


def selected(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    code = main(["select", *words, "--json", "-"])
    said = capsys.readouterr()
    assert code == 0, said.err
    found: dict[str, Any] = json.loads(said.out)
    return found


def turns(number: int) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": f"n{number}?"},
        {"role": "assistant", "content": f"word{number}"},
    ]


def test_chats_on_the_hub_with_splits_and_a_revision(
    hub: HubServer, asked: Answering, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """System prompts and several turns in Parquet shards, asked in the model's own template; the draw loads again."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    model = tiny_llama(tmp_path / "chat", tokenizer)
    files = {
        "README.md": b"---\nlicense: mit\n---\n",
        "data/train_sft-00000-of-00002.parquet": parquet([{"messages": turns(i), "source": "a"} for i in range(8)]),
        "data/train_sft-00001-of-00002.parquet": parquet([{"messages": turns(i), "source": "b"} for i in range(8, 12)]),
        "data/test_sft-00000-of-00001.parquet": parquet([{"messages": turns(i), "source": "c"} for i in range(50, 55)]),
    }
    old = hub.put("dataset", "org/chats", files)
    hub.put("dataset", "org/chats", {"data/train_sft-00000-of-00002.parquet": parquet([{"messages": turns(99)}])})
    out = tmp_path / "out"
    found = selected(capsys, f"org/chats@{old}", "--model", str(model), "--size", "4", "--out", str(out))
    assert found["data"] == f"org/chats@{old}"
    assert [example["answer"] for example in found["examples"]] == [f"word{i}" for i in range(12)]
    assert found["left_out"] == {"test split": 5}
    assert any(
        prompt.endswith("<system>Answer in one word.<user>Hello?<assistant>Hello.<user>n3?<a>")
        for prompt in asked.prompts
    )
    draw = load_dataset(str(out), split="train", cache_dir=str(tmp_path / "hf"))
    assert len(draw) == 4
    assert [message["role"] for message in draw[0]["messages"]][:2] == ["system", "user"]
    assert set(draw["source"]) <= {"a", "b"}


def test_configurations_on_the_hub(
    hub: HubServer, asked: Answering, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": f"n{i}?", "answer": f"word{i}"} for i in range(12)]
    hub.put(
        "dataset",
        "org/math",
        {
            "main/train-00000-of-00001.parquet": parquet(rows),
            "main/test-00000-of-00001.parquet": parquet(rows[:3]),
            "socratic/train-00000-of-00001.parquet": parquet(rows[:6]),
        },
    )
    usual = ["org/math", "--model", str(tiny_model), "--columns", "prompt=question,completion=answer"]
    together = selected(capsys, *usual)
    assert len(together["examples"]) == 18
    assert "read together: main, socratic; --config main reads one of them" in together["notes"]
    main_only = selected(capsys, *usual, "--config", "main")
    assert (len(main_only["examples"]), main_only["left_out"]) == (12, {"test split": 3})
    assert main(["select", *usual, "--config", "hard"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "has no configuration 'hard': there are main, socratic" in line


def test_the_time_is_said_beforehand_and_kept(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is asked for real: with a minute enough all is asked, in no time a part, at random."""
    monkeypatch.setattr(sft_asking, "_BLOCK", 4)
    data = written(tmp_path, numbered(12))
    usual = ["select", data, "--model", str(tiny_model), "--samples", "1", "--shots", "1", "--device", "cpu"]
    assert main([*usual, "--minutes", "0.00001"]) == 2
    assert "were over before a single block of 4 examples was asked" in capsys.readouterr().err.splitlines()[-1]
    there = tmp_path / "own-cache"
    monkeypatch.setattr(
        sft_asking.TimeLimit,
        "left",
        lambda self, share=1.0: 10.0 if sum(1 for _ in there.rglob("*.parquet")) < 2 else -1.0,
    )
    assert main([*usual, "--minutes", "1", "--json", "-"]) == 0
    said = capsys.readouterr()
    assert "36 answers to ask, 1 times each: about" in said.err
    part = json.loads(said.out)
    assert len(part["examples"]) == 8
    assert part["left_out"] == {"beyond --minutes": 4}
    monkeypatch.undo()
    monkeypatch.setattr(sft_asking, "_BLOCK", 4)
    monkeypatch.setenv("SFTKNOW_CACHE", str(tmp_path / "own-cache"))
    assert main([*usual, "--json", "-"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert len(whole["examples"]) == 12
    same = {example["id"]: example["hits"] for example in whole["examples"]}
    assert all(same[example["id"]] == example["hits"] for example in part["examples"])
