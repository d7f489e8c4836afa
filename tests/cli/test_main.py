from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from sftknow.cli.main import build_parser, main

COMMANDS = (
    "run", "grade", "sft", "evaluate", "compare", "divergence", "changes", "restore", "ability",
    "materialize", "report", "publish", "pull", "lab", "paper", "tasks", "topics",
)  # fmt: skip


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must be refused; return its one line."""
    assert main(list(arguments)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    # What went before the refusal (progress) may stand above it; the refusal itself is one line, the last.
    assert lines[-1].startswith("sftknow: ")
    assert not any(line.startswith("Traceback") for line in lines)
    return lines[-1]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"example:\n  " in capsys.readouterr().out  # noqa: F541


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    text = build_parser().format_help()
    assert all(f"    {command}" in text for command in COMMANDS)


def test_unknown_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no recipe is called nonsense" in refused(capsys, "run", "nonsense")


def test_unknown_setting(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = refused(capsys, "run", "lab", "--set", "grid.bucket=[1]", "--out", str(tmp_path / "run"))
    assert "unknown key grid.bucket" in line
    assert not (tmp_path / "run").exists(), "nothing is begun"


def test_missing_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "/no/such/model" in refused(
        capsys, "grade", "/no/such/model", "--facts", "lab", "--out", str(tmp_path / "graded")
    )


def test_missing_facts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = refused(capsys, "grade", "lab", "--facts", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "graded"))
    assert "none.jsonl" in line


def test_missing_mastery_data(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    for arguments in (
        ("sft", "--model", "lab", "--mastery", missing, "--bucket", "0", "--size", "8", "--out", str(tmp_path / "out")),
        ("divergence", "lab", "lab", "--mastery", missing),
        ("evaluate", "lab", "--mastery", missing),
    ):
        assert missing in refused(capsys, *arguments)


def test_a_model_that_names_no_data(capsys: pytest.CaptureFixture[str], tiny_model: Path) -> None:
    assert "pass --mastery" in refused(capsys, "evaluate", str(tiny_model))


def test_bucket_too_small(capsys: pytest.CaptureFixture[str], tiny_dataset: Path, tmp_path: Path) -> None:
    line = refused(
        capsys, "sft", "--model", "lab", "--mastery", str(tiny_dataset), "--bucket", "2", "--size", "100",
        "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert "4" in line
    assert "100" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", ["0", "-3", "many"])
def test_bad_size(size: str, capsys: pytest.CaptureFixture[str], tiny_dataset: Path, tmp_path: Path) -> None:
    line = refused(
        capsys, "sft", "--model", "lab", "--mastery", str(tiny_dataset), "--bucket", "2", f"--size={size}",
        "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert size in line


def test_report_of_something_else(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "no run directory" in refused(capsys, "report", str(tmp_path))


def test_unknown_split(capsys: pytest.CaptureFixture[str], tiny_dataset: Path) -> None:
    line = refused(capsys, "evaluate", "lab", "--mastery", str(tiny_dataset), "--splits", "test,validation")
    assert "validation" in line


def test_bad_level(capsys: pytest.CaptureFixture[str], tiny_model: Path, tmp_path: Path) -> None:
    line = refused(capsys, "restore", str(tiny_model), str(tiny_model), "--top", "lots", "--out", str(tmp_path / "r"))
    assert "lots" in line


def test_paths(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "path"]) == 0
    assert (Path(capsys.readouterr().out.strip()) / "cbqa_mastery.yaml").is_file()
    assert main(["lab", "path"]) == 0
    assert (Path(capsys.readouterr().out.strip()) / "config.json").is_file()


def test_topics_by_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    own.write_text('{"P6": {"question": "Who governs {subject}?", "templates": ["{subject} is governed by"]}}')
    assert main(["topics", "--topics", str(own)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "P36 capital, capital city in-domain 21 What is the capital of {subject}?" in lines
    assert lines[-1].startswith("P6 ")
    assert lines[-1].endswith("in-domain 1 Who governs {subject}?")
    assert len(lines) == 2 + 24 + 1


@pytest.mark.parametrize("option", ["--topics", "--synonyms"])
def test_a_run_takes_topics_and_synonyms(option: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    missing = tmp_path / "a file: of mine #1.json"
    line = refused(capsys, "run", "lab", option, str(missing), "--out", str(tmp_path / "run"), "--dry-run")
    assert str(missing) in line


def test_interruption_says_how_to_go_on(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sftknow.cli.tasks.run_path", interrupted)
    assert main(["tasks", "path"]) == 130
    assert "interrupted. Start again with: sftknow tasks path" in capsys.readouterr().err
    monkeypatch.setattr("sftknow.cli.restore.run", interrupted)
    command = ["restore", "a", "b", "--top", "5%", "--out", "x"]
    assert main(command) == 130
    assert f"what is done is saved. Go on with: sftknow {' '.join(command)}" in capsys.readouterr().err
    assert main([*command, "--patch"]) == 130
    assert f"interrupted. Start again with: sftknow {' '.join(command)} --patch" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_to(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    line = refused(capsys, "run", "lab", "--out", str(tmp_path / "file" / "run"))
    assert str(tmp_path / "file") in line


def test_names_that_are_no_text_or_too_long(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    strange = os.fsdecode(b"\xff\xfe")
    assert "the name '\\udcff\\udcfe' cannot be read as text here; rename it" in refused(
        capsys, "changes", strange, strange
    )
    for length in (255, 256):  # the file system takes 255, but not what is written beside it meanwhile
        for command in (
            ["restore", "lab", "lab", "--top", "5%"],
            ["run", "lab"],
            ["grade", "lab", "--facts", "lab"],
        ):
            out = tmp_path / ("n" * length)
            if command[0] != "run" or length > 255:
                refused(capsys, *command, "--out", str(out))
                assert list(tmp_path.iterdir()) == []


def test_a_run_in_a_folder_of_somebodys(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "thesis.txt").write_text("years of work")
    line = refused(capsys, "run", "lab", "--out", str(tmp_path))
    assert f"{tmp_path} is there already and is no run directory (it holds models); give another --out" in line
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_a_terminal_shows_what_others_wrote_and_does_not_obey_it(
    tmp_path: Path, tiny_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = tmp_path / "\x1b[2J\u202egpj"
    shutil.copytree(tiny_dataset, evil)
    asked = ["publish", str(evil), "--to", "org/facts", "--data-licence", "mit", "--dry-run"]
    assert main(asked) == 0
    (evil / "sftknow.json").write_text('{"sftknow": 1, "kind": "\\u001b]0;evil\\u0007"}')
    assert main(asked) == 2
    said = capsys.readouterr()
    assert "\\x1b[2J\\u202egpj → private data set" in said.out
    assert "\\x1b]0;evil\\x07" in said.err
    assert not any(letter in said.out + said.err for letter in "\x1b\x07\u202e")
