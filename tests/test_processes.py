"""What a terminal cannot show is spelt otherwise, and ends no command."""

from __future__ import annotations

import io
import sys

import pytest

from sftknow import processes


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", '-3.1 +/- 2 -> x "Malmo" it\'s ... ? \udcff|'),
        ("latin-1", '-3.1 ± 2 -> × "Malmö" it\'s ... ? \udcff|'),
        ("utf-8", "−3.1 ± 2 → × “Malmö” it’s … 漢 |"),
    ],
)
def test_every_terminal_shows_something(encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    processes.print_what_can_be_shown()
    byte = "" if encoding == "utf-8" else "\udcff"
    print(f"−3.1 ± 2 → × “Malmö” it’s … 漢 {byte}|", end="", flush=True)
    codec = "utf-8" if encoding == "utf-8" else encoding
    assert raw.getvalue() == shown.encode(codec, "surrogateescape")


def test_what_is_no_encoding_error_is_raised() -> None:
    error = UnicodeDecodeError("ascii", b"\xff", 0, 1, "no")
    with pytest.raises(UnicodeDecodeError):
        processes._shown(error)
