"""What is said of long work, with a terminal and without."""

from __future__ import annotations

import io
import itertools
import sys
import time

import pytest

from sftknow.progress import counted, progress


def work(total: int = 3, done: int = 0) -> None:
    with progress(total, "grading", unit="statements", done=done) as bar:
        for _ in range(total - done):
            bar.set_postfix_str("loss 1.5")
            bar.update()


def test_short_work_says_nothing_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    work()
    assert capsys.readouterr().err == ""


def test_long_work_says_whole_lines_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sftknow.progress._EVERY", 0.0)
    work(2000, done=1998)
    said = capsys.readouterr().err
    assert "\r" not in said
    lines = said.splitlines()
    assert all(line.startswith("grading: ") for line in lines)
    assert any(line.startswith("grading: 1,999 of 2,000 statements, about ") for line in lines)
    assert lines[-1].startswith("grading: 2,000 statements in ")
    assert lines[-1].endswith("(loss 1.5)")


def test_there_are_at_most_two_lines_a_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(time.time(), 10)
    monkeypatch.setattr("sftknow.progress.time.time", lambda: next(clock))
    work(40)
    lines = capsys.readouterr().err.splitlines()
    assert 2 < len(lines) < 40


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    work()
    assert "3/3" in screen.getvalue()


def test_nothing_is_left_to_say_of_no_work(capsys: pytest.CaptureFixture[str]) -> None:
    work(0)
    assert capsys.readouterr().err == ""


def test_one_is_not_many() -> None:
    assert [counted(n, "model") for n in (0, 1, 1200, None)] == ["0 models", "1 model", "1,200 models", "? models"]
