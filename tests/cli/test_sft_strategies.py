"""`sftknow sft --strategy`: with its options, with statements of the graded data, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sftknow.artifacts.files import read_json
from sftknow.cli.main import main


@pytest.fixture
def begin(tiny_model: Path, tiny_dataset: Path, tmp_path: Path) -> list[str]:
    data = ["--mastery", str(tiny_dataset), "--bucket", "2", "--size", "4", "--out", str(tmp_path / "out")]
    return ["sft", "--model", str(tiny_model), *data]


def test_statements_that_the_base_knows_are_replayed(begin: list[str], tmp_path: Path) -> None:
    assert main([*begin, "--strategy", "replay", "--set", "strategy.ratio=0.5", "--set", "batch_size=3"]) == 0
    sft = read_json(tmp_path / "out" / "sftknow.json")["sft"]
    assert (sft["size"], sft["replayed"], sft["steps"]) == (4, 2, 2)
    assert sft["recipe"]["strategy"] == {"name": "replay", "learning_rate": None, "ratio": 0.5, "known": 0.5}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--strategy", "no-such"], "--strategy: there is no 'no-such'; there are dora, "),
        (["--set", "strategy.ratio=1"], "--set strategy.… does nothing without --strategy; add that or leave it out"),
        (["--strategy", "dft", "--set", "strategy.ratio=1"], "--set: unknown key ratio; known here: learning_rate"),
        (["--strategy", "replay", "--set", "strategy.ratio=-1"], "--set: ratio should be greater than or equal to 0"),
        (["--strategy", "dft", "--lora"], "--lora and --strategy do not go together"),
        (["--topics", "questions"], "--topics does nothing without --strategy"),
        (["--strategy", "dft", "--topics", "questions"], "--topics does nothing here: dft uses no statements"),
        (["--strategy", "mofo", "--set", "optimizer=sgd"], "the strategy mofo needs AdamW's momenta"),
        (["--strategy", "replay", "--set", "strategy.ratio=99"], "the strategy replay wants 396 statements"),
    ],
)
def test_what_cannot_be_is_one_line(
    begin: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    assert main([*begin, *more]) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_statements_of_topics_that_are_nowhere(
    begin: list[str], tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"P17": {"question": "Where is {subject}?", "templates": ["{subject} is in"]}}
    (tmp_path / "topics.json").write_text(json.dumps(own))
    more = [
        "--set",
        "strategy.ratio=5",
        "--topics",
        str(tmp_path / "topics.json"),
    ]  # second statements are asked for, too
    assert main([*begin, "--strategy", "replay", *more]) == 2
    assert "was graded with more statements than its topic P17 has; give the topics file" in capsys.readouterr().err
