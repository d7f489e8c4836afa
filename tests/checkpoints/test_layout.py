from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from sftknow.checkpoints.layout import Layout, layout_in_shards, layout_like, parse_size
from sftknow.checkpoints.reader import SHARD_INDEX, read_index
from sftknow.checkpoints.side_files import side_files
from sftknow.errors import CheckpointError
from tests.parameters.checkpoint_pairs import read_checkpoint, stored, write_checkpoint

TENSORS = {f"t{i}": stored(np.arange(100 * i, 100 * i + 50 + i), "BF16") for i in range(8)}


def written(layout: Layout, folder: Path) -> Path:
    """The layout carried out byte by byte."""
    folder.mkdir()
    for shard in layout.shards:
        content = b""
        for segment in shard.segments:
            assert segment.start == len(content)
            source = segment.source if isinstance(segment.source, bytes) else segment.source.read_bytes()
            content += source[segment.offset : segment.offset + segment.end - segment.start]
        assert len(content) == shard.size
        (folder / shard.name).write_bytes(content)
    if layout.shard_index is not None:
        (folder / SHARD_INDEX).write_bytes(layout.shard_index)
    return folder


@pytest.mark.parametrize("shards", [1, 3])
def test_as_it_is(tmp_path: Path, shards: int) -> None:
    folder = write_checkpoint(tmp_path / "in", {**TENSORS, "empty": stored(np.zeros((0, 3)), "F32")}, shards=shards)
    out = written(layout_like(read_index(folder)), tmp_path / "out")
    for file in out.iterdir():
        assert file.read_bytes() == (folder / file.name).read_bytes()
    assert {file.name for file in out.iterdir()} == {file.name for file in folder.iterdir()} - {"config.json"}


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("limit", [600, 1000, 10**9])
def test_shards_anew(tmp_path: Path, shards: int, limit: int) -> None:
    folder = write_checkpoint(tmp_path / "in", {**TENSORS, "empty": stored(np.zeros((0, 3)), "F32")}, shards=shards)
    layout = layout_in_shards(read_index(folder), limit)
    out = written(layout, tmp_path / "out")
    assert read_checkpoint(out) == read_checkpoint(folder)
    assert all(shard.size <= limit for shard in layout.shards)
    assert sorted(read_index(out).tensors) == sorted([*TENSORS, "empty"])
    if limit == 10**9:
        assert [shard.name for shard in layout.shards] == ["model.safetensors"]
    else:
        count = len(layout.shards)
        assert [shard.name for shard in layout.shards] == [
            f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)
        ]
        total = sum(bits.nbytes for _, bits in TENSORS.values())
        assert json.loads((out / SHARD_INDEX).read_text())["metadata"]["total_size"] == total
    for shard in layout.shards:  # the library's own reader, which insists on more
        with safe_open(out / shard.name, "pt") as handle:
            assert handle.metadata() == {"format": "pt"}
            assert set(handle.keys()) >= set(shard.tensors)


def test_a_tensor_that_is_larger_than_a_shard_stands_alone(tmp_path: Path) -> None:
    tensors = {"a": stored([1.0], "F32"), "big": stored(np.zeros(1000), "F32"), "c": stored([1.0], "F32")}
    layout = layout_in_shards(read_index(write_checkpoint(tmp_path / "in", tensors)), 500)
    assert [shard.tensors for shard in layout.shards] == [["a"], ["big"], ["c"]]


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("512mb", 512 * 10**6), ("2GiB", 2 << 30), ("1.5G", 15 * 10**8), ("7", 7), (" 3 KB ", 3000)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "five", "-3GB", "0", "1e400", "nan", "5 XB", "5GBB"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(CheckpointError, match="cannot read the size"):
        parse_size(text)


def test_side_files(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {"a": stored([1.0], "F32")}, shards=1)
    (tmp_path / "modeling_own.py").write_text("")
    (tmp_path / "trainer_state.json").write_text("")
    assert [str(path) for path in side_files(tmp_path)] == ["config.json", "modeling_own.py"]
