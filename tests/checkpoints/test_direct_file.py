from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sftknow.checkpoints.direct_file import ALIGNMENT, DirectFile, aligned_rows

BLOCK = 2 * ALIGNMENT
SIZE = 3 * BLOCK + 1234


def content() -> bytes:
    return np.random.default_rng(0).bytes(SIZE)


def put(file: DirectFile, data: bytes, order: list[int]) -> None:
    rows = aligned_rows(2, BLOCK)
    for i in order:
        part = data[i * BLOCK : (i + 1) * BLOCK]
        rows[0, : len(part)] = np.frombuffer(part, dtype=np.uint8)
        padded = -(-len(part) // ALIGNMENT) * ALIGNMENT
        file.write(i * BLOCK, rows[0, :padded], rows[1])


@pytest.mark.parametrize("direct", [True, False])
def test_in_any_order(tmp_path: Path, direct: bool) -> None:
    file = DirectFile(tmp_path / "f", SIZE, direct=direct)
    put(file, content(), [2, 3, 0, 1])
    file.finish()
    assert (tmp_path / "f").read_bytes() == content()


@pytest.mark.parametrize("at", ["open", "write"])
def test_a_file_system_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    """tmpfs of older kernels and some network file systems say no, at the opening or only at the first write."""
    real_open, real_write, refused = os.open, os.pwrite, []
    flag = getattr(os, "O_DIRECT", 0)
    if not flag:
        pytest.skip("this system has no O_DIRECT")

    def opened(path: Any, flags: int, *mode: int) -> int:
        if at == "open" and flags & flag:
            refused.append(at)
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_open(path, flags, *mode)

    def wrote(descriptor: int, data: Any, offset: int) -> int:
        import fcntl

        if at == "write" and fcntl.fcntl(descriptor, fcntl.F_GETFL) & flag:
            refused.append(at)
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_write(descriptor, data, offset)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "pwrite", wrote)
    file = DirectFile(tmp_path / "f", SIZE)
    put(file, content(), [0, 1, 2, 3])
    file.finish()
    assert refused
    assert (tmp_path / "f").read_bytes() == content()


def test_short_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(
        os, "pwrite", lambda descriptor, data, offset: real(descriptor, data[: len(data) // 2 or 1], offset)
    )
    file = DirectFile(tmp_path / "f", SIZE, direct=False)
    put(file, content(), [3, 2, 1, 0])
    file.finish()
    assert (tmp_path / "f").read_bytes() == content()


def test_going_on_leaves_what_is_right(tmp_path: Path) -> None:
    data = content()
    (tmp_path / "f").write_bytes(data[: 2 * BLOCK])
    file = DirectFile(tmp_path / "f", SIZE)
    put(file, data, [0, 1, 2, 3])
    file.finish()
    assert file.written == BLOCK + ALIGNMENT, "the third block and the padded last one"
    assert (tmp_path / "f").read_bytes() == data
    before = (tmp_path / "f").stat().st_mtime_ns
    again = DirectFile(tmp_path / "f", SIZE)
    put(again, data, [0, 1, 2, 3])
    again.finish()
    assert (again.written, (tmp_path / "f").stat().st_mtime_ns) == (0, before)


def test_going_on_mends_what_is_wrong(tmp_path: Path) -> None:
    data = content()
    (tmp_path / "f").write_bytes(bytes(10) + data[10:] + b"too long")
    file = DirectFile(tmp_path / "f", SIZE)
    put(file, data, [0, 1, 2, 3])
    file.finish()
    assert (tmp_path / "f").read_bytes() == data


def test_a_file_with_a_second_name_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"somebody's")
    os.link(tmp_path / "f", tmp_path / "other")
    file = DirectFile(tmp_path / "f", SIZE)
    put(file, content(), [0, 1, 2, 3])
    file.finish()
    assert (tmp_path / "f").read_bytes() == content()
    assert (tmp_path / "other").read_bytes() == b"somebody's"


def test_aligned_rows() -> None:
    rows = aligned_rows(3, BLOCK)
    assert all(row.ctypes.data % ALIGNMENT == 0 for row in rows)
    with pytest.raises(ValueError, match="multiple"):
        aligned_rows(1, 100)
