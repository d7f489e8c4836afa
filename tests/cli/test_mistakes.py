"""Every mistake of a command line is one line with the nearest right word, and comes before the work."""

from __future__ import annotations

from pathlib import Path

import pytest

from sftknow.cli.main import build_parser, main
from tests.cli.test_main import refused


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rnu", "lab"], "did you mean run?"),
        (["run", "lba"], "did you mean lab?"),
        (["run", "lab", "--modle", "x"], "no option --modle; did you mean --model?"),
        (["sft", "--modle", "lab"], "did you mean --model?"),
        (["--versoin"], "did you mean --version?"),
        (["lab", "pretrian"], "did you mean pretrain?"),
        (["lab", "pretrain", "--sede", "1"], "did you mean --seed?"),
        (["compare", "a", "b", "--metric", "exact"], "did you mean exact_match?"),
        (["restore", "a", "b", "--strategy", "tpo", "--out", "x"], "did you mean top?"),
        (["restore", "a", "b", "--arithmetic", "float23", "--out", "x"], "did you mean float32?"),
        (["run", "lab", "--set", "grid.size=[3]"], "did you mean sizes?"),
        (["run", "lab", "--set", "grdi.sizes=[3]"], "did you mean grid?"),
        (["run", "lab", "--set", "learning_rate=1e-5"], "did you mean sft.learning_rate or lora.learning_rate?"),
        (["run", "lab", "--set", "grid.storage=ful"], "did you mean full?"),
        (["topics", "P36"], "P36: more than this command takes; see: sftknow topics --help"),
        (["check", "base"], "arguments are required: TUNED; see: sftknow check --help"),
    ],
)
def test_the_nearest_right_word(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(capsys, *words)


def test_numbers_and_values_that_begin_with_a_dash_are_no_options(capsys: pytest.CaptureFixture[str]) -> None:
    parser = build_parser()
    assert parser.parse_args(["grade", "lab", "--facts", "lab", "--out", "x", "--seed", "-3"]).seed == -3
    assert parser.parse_args(["check", "a", "b", "--json", "-"]).json == "-"
    assert parser.parse_args(["run", "--", "-odd"]).recipe == "-odd"


_OUT = (
    ["run", "lab"], ["check", "lab", "lab"], ["grade", "lab", "--facts", "lab"], ["report", "x"], ["pull", "a/b"],
    ["repair", "lab", "lab"], ["select", "x", "--model", "lab"],
    ["sft", "--model", "lab", "--mastery", "x", "--bucket", "1", "--size", "8"], ["evaluate", "lab", "--mastery", "x"],
    ["compare", "lab", "lab"], ["divergence", "lab", "lab", "--mastery", "x"], ["changes", "lab", "lab"],
    ["restore", "lab", "lab", "--top", "5%"], ["ability", "lab", "--tasks", "xsum", "--size", "8"],
    ["materialize", "x"], ["leaderboard", "x"], ["lab", "pretrain"],
    ["restore", "lab", "lab", "--top", "5%", "--patch"],
)  # fmt: skip


@pytest.mark.parametrize("words", _OUT, ids=lambda words: " ".join(words[:2]))
def test_a_place_that_cannot_be_made_is_refused_before_the_work(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, dangling = tmp_path / "file", tmp_path / "dangling"
    file.write_text("mine")
    dangling.symlink_to(tmp_path / "nothing")
    below = refused(capsys, *words, "--out", str(file / "below"))
    assert f"--out {file / 'below'} cannot be made: {file} is a file" in below
    assert f"--out {dangling} is a link to nothing" in refused(capsys, *words, "--out", str(dangling))
    if "--patch" not in words:
        assert f"--out {file} is a file; give a folder" in refused(capsys, *words, "--out", str(file))
    assert "cannot be written" in refused(capsys, *words, "--out", "/proc/sftknow-test/x")
    assert file.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file"]


def test_every_command_with_a_place_is_tried_above() -> None:
    def with_out(parser: object, words: tuple[str, ...] = ()) -> set[str]:
        found = set()
        for action in parser._actions:  # type: ignore[attr-defined]
            if action.dest == "out":
                found.add(words[0])
            for name, each in (action.choices or {}).items() if hasattr(action, "add_parser") else ():
                found |= with_out(each, (*words, name))
        return found

    assert with_out(build_parser()) == {words[0] for words in _OUT}


@pytest.mark.parametrize("option", ["--json", "--markdown", "--html"])
def test_files_of_check_are_tried_before_the_models_are_asked(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "is a folder; give a file" in refused(capsys, "check", "no/model", "lab", option, str(tmp_path))
    (tmp_path / "file").touch()
    line = refused(capsys, "check", "no/model", "lab", option, str(tmp_path / "file" / "x"))
    assert f"{option} {tmp_path / 'file' / 'x'} cannot be made" in line


def test_a_recipe_that_names_no_model_or_no_facts_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "mine.yaml"
    for text, missing in (
        ("", "model"), ("model:\n", "model"), ("facts: {source: lab}\n", "model"), ("model: {}\n", "model"),
        ("model: {dtype: float32}\n", "model"), ("model: {path: lab}\n", "facts"),
        ("model: {path: lab}\nfacts:\n", "facts"), ("model: {path: lab}\nfacts: {limit: 3}\n", "facts"),
    ):  # fmt: skip
        recipe.write_text(text)
        line = refused(capsys, "run", str(recipe), "--dry-run")
        assert f"mine.yaml does not say which {missing} it is about; add {missing}." in line
    assert "no/model" in refused(capsys, "run", str(recipe), "--model", "./no/model", "--facts", "lab", "--dry-run")


def test_a_late_error_about_a_named_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(arguments: object) -> None:
        (tmp_path / "out" / "gone").read_bytes()

    monkeypatch.setattr("sftknow.cli.changes.run", gone)
    assert "No such file" in refused(capsys, "changes", "lab", "lab", "--out", str(tmp_path / "out"))
    with pytest.raises(FileNotFoundError):
        main(["changes", "lab", "lab"])
