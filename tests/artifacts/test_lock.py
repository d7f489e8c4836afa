"""One process at a time, whatever becomes of the lock's file."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from sftknow.artifacts.lock import Lock, wait_for_release
from sftknow.errors import RunError

BUSY = RunError("another process works in that place")


def hold(file: Path, told: Connection, end: Connection) -> None:
    with Lock(file, BUSY):
        told.send("held")
        end.recv()


def test_another_process_is_kept_out_until_it_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "lock"
    (here, there), (end, their_end) = multiprocessing.Pipe(), multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=hold, args=(file, there, their_end))
    process.start()
    assert here.recv() == "held"
    with pytest.raises(RunError, match="another process works in that place"):
        Lock(file, BUSY).take()
    process.kill()
    process.join()
    assert file.exists(), "what a kill leaves is in nobody's way"
    with Lock(file, BUSY) as lock:
        assert lock.held
    assert not file.exists()
    assert list(tmp_path.iterdir()) == [tmp_path / "deep"]
    del end


def test_a_file_that_was_removed_under_a_waiting_process_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It opened the file, and before it got the lock the holder removed it: its lock would be on a file of no name."""
    file = tmp_path / "lock"
    real, removed = os.fstat, []

    def removed_meanwhile(descriptor: int) -> os.stat_result:
        if not removed:
            removed.append(file.unlink())
        return real(descriptor)

    monkeypatch.setattr(os, "fstat", removed_meanwhile)
    with Lock(file, BUSY), pytest.raises(RunError, match="another process"):
        Lock(file, BUSY).take()
    assert removed


def test_it_waits_as_long_as_it_is_told(tmp_path: Path) -> None:
    first, second = Lock(tmp_path / "lock", BUSY, holder="me"), Lock(tmp_path / "lock", BUSY, wait=30, keep=True)
    first.take()
    assert (tmp_path / "lock").read_text() == "me"
    threading.Timer(0.2, first.release).start()
    began = time.monotonic()
    with second:
        assert time.monotonic() - began < 20
    assert (tmp_path / "lock").read_text() == ""
    wait_for_release(tmp_path / "lock")
