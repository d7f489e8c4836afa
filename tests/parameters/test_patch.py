"""A patch turns the fine-tuned model into the restored one and back, bit by bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from safetensors.numpy import load_file

from sftknow.checkpoints.layout import safetensors_header
from sftknow.errors import CheckpointError
from sftknow.parameters.change import analyse
from sftknow.parameters.patch import apply_patch, write_patch
from sftknow.parameters.patch_file import BLOCK
from sftknow.parameters.restore import restore, restore_levels
from sftknow.records import RestorePlan
from tests.parameters.checkpoint_pairs import Tensor, read_checkpoint, stored, write_checkpoint, write_file

WEIGHT = "model.layers.0.mlp.up_proj.weight"
OTHER = "model.layers.1.mlp.up_proj.weight"
NORM = "model.norm.weight"


def pair(folder: Path, base_dtype: str = "BF16", tuned_dtype: str = "BF16") -> tuple[Path, Path]:
    rng = np.random.default_rng(1)
    base: dict[str, Tensor] = {}
    tuned: dict[str, Tensor] = {}
    for name in (WEIGHT, OTHER):
        p = rng.choice([0.0, -0.0, 0.5, 1.0, 1.25], size=(23, 31))
        s = np.where(rng.random(p.shape) < 0.4, -p * 1.5, p)
        base[name], tuned[name] = stored(p, base_dtype), stored(s, tuned_dtype)
    base[NORM], tuned[NORM] = stored([1, 2], base_dtype), stored([3, 4], tuned_dtype)
    return write_checkpoint(folder / "base", base), write_checkpoint(folder / "tuned", tuned, shards=2)


@pytest.mark.parametrize("strategy", ["top", "random"])
@pytest.mark.parametrize("dtypes", [("BF16", "BF16"), ("F32", "F32"), ("F16", "F16"), ("F32", "BF16"), ("BF16", "F32")])
def test_there_and_back(tmp_path: Path, dtypes: tuple[str, str], strategy: str) -> None:
    base, tuned = pair(tmp_path, *dtypes)
    levels = ["0%", "7%", "60%", "100%"]
    plan = analyse(base, tuned, levels, strategy=strategy).plan
    for level in levels:
        file = tmp_path / f"{level}.safetensors"
        values = write_patch(base, tuned, plan, level, file, manifest={"note": level})
        done = restore(base, tuned, plan, level, tmp_path / "whole", manifest={})
        forward = apply_patch(tuned, file, tmp_path / "forward")
        assert (forward.level, forward.restored) == (level, done.restored)
        assert values >= done.restored
        assert read_checkpoint(tmp_path / "forward") == read_checkpoint(tmp_path / "whole")
        manifest = json.loads((tmp_path / "forward" / "sftknow.json").read_text())
        whole = json.loads((tmp_path / "whole" / "sftknow.json").read_text())
        assert manifest["note"] == level
        assert {**manifest["restoration"], "key": 0} == {**whole["restoration"], "key": 0}
        if values:
            back = apply_patch(tmp_path / "forward", file, tmp_path / "back")
            assert back.level == "0%"
        assert level == "0%" or read_checkpoint(tmp_path / "back") == read_checkpoint(tuned)


def test_what_is_in_it(tmp_path: Path) -> None:
    """Readable without this package: places as distances, steps of bit patterns, folded and packed by Zstandard."""
    moved = [1, 3, 4, 9, *[0] * (BLOCK - 4), 7]
    base = write_checkpoint(
        tmp_path / "base", {WEIGHT: stored([1, 2, 4, 8, *moved[4:-1], 5], "F32"), OTHER: stored([1], "F32")}
    )
    tuned = write_checkpoint(tmp_path / "tuned", {WEIGHT: stored(moved, "F32"), OTHER: stored([1], "F32")})
    plan = analyse(base, tuned, ["100%"]).plan
    assert write_patch(base, tuned, plan, "100%", tmp_path / "deep" / "p.safetensors") == 3
    found = load_file(tmp_path / "deep" / "p.safetensors")
    assert sorted(found) == [f"{WEIGHT}#blocks", f"{WEIGHT}#packed"]
    (first, second), packed = found[f"{WEIGHT}#blocks"].tolist(), found[f"{WEIGHT}#packed"].tobytes()
    assert (first[0], second[0]) == (2, 1)
    places, rest = packed[: first[1]], packed[first[1] :]
    planes = np.frombuffer(zstandard.decompress(places), dtype=np.uint8).reshape(4, 2)
    assert planes.T.copy().view(np.uint32).ravel().tolist() == [1, 1], "element 1, one left out, element 3"
    folded = (
        np.frombuffer(zstandard.decompress(rest[: first[2]]), dtype=np.uint8).reshape(4, 2).T.copy().view(np.uint32)
    )
    bits = np.array([[2, 8], [3, 9]], dtype=np.float32).view(np.int32)
    step = bits[0] - bits[1]
    assert folded.ravel().tolist() == np.where(step < 0, -2 * step - 1, 2 * step).tolist()


def test_the_size_is_small_and_told_before(tmp_path: Path) -> None:
    """A fifth of the values, most of them moved by a few units in the last place: 1.3 bytes a value instead of 8."""
    rng = np.random.default_rng(0)
    bits = rng.normal(scale=0.02, size=1_000_000).astype(np.float32).view(np.uint32) >> 16
    steps = np.rint(rng.laplace(scale=2, size=bits.size)).astype(np.int64) * (rng.random(bits.size) < 0.2)
    base: dict[str, Tensor] = {WEIGHT: ("BF16", bits.astype(np.uint16))}
    tuned: dict[str, Tensor] = {WEIGHT: ("BF16", (bits + steps).astype(np.uint16))}
    folders = write_checkpoint(tmp_path / "base", base), write_checkpoint(tmp_path / "tuned", tuned)
    plan, said = analyse(*folders, ["20%"]).plan, []
    file = tmp_path / "p.safetensors"
    values = write_patch(*folders, plan, "20%", file, say=lambda text: said.append((text, file.exists())))
    assert said == [(f"20%: {values:,} values, a patch of {file.stat().st_size / 1e6:,.1f} MB", False)]
    assert values > 100_000
    assert file.stat().st_size / values < 1.6
    before = file.read_bytes()
    write_patch(*folders, plan, "20%", file)
    assert file.read_bytes() == before
    apply_patch(folders[1], file, tmp_path / "out")
    restore(*folders, plan, "20%", tmp_path / "whole", manifest={})
    assert read_checkpoint(tmp_path / "out") == read_checkpoint(tmp_path / "whole")


def test_other_shards_and_common_rows(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    plan = analyse(base, tuned, ["0%", "20%"]).plan
    write_patch(base, tuned, plan, "20%", tmp_path / "p.safetensors")
    restore_levels(base, tuned, plan, {"0%": tmp_path / "one"}, shard_bytes=10**9)
    apply_patch(tmp_path / "one", tmp_path / "p.safetensors", tmp_path / "out")
    restore(base, tuned, plan, "20%", tmp_path / "whole", manifest={})
    assert read_checkpoint(tmp_path / "out") == read_checkpoint(tmp_path / "whole")

    name = "model.embed_tokens.weight"
    small = write_checkpoint(tmp_path / "small", {name: stored([[1, 2], [3, 4]], "F32")})
    grown = write_checkpoint(tmp_path / "grown", {name: stored([[1, 5], [3, 4], [7, 8]], "F32")})
    plan = analyse(small, grown, ["100%"], region="all", common_rows=True).plan
    write_patch(small, grown, plan, "100%", tmp_path / "q.safetensors")
    apply_patch(grown, tmp_path / "q.safetensors", tmp_path / "patched")
    assert read_checkpoint(tmp_path / "patched")[name] == stored([[1, 2], [3, 4], [7, 8]], "F32")[1].tobytes()


@pytest.fixture
def patched(tmp_path: Path) -> tuple[Path, Path, RestorePlan, Path]:
    base, tuned = pair(tmp_path)
    plan = analyse(base, tuned, ["20%"]).plan
    write_patch(base, tuned, plan, "20%", tmp_path / "p.safetensors")
    return base, tuned, plan, tmp_path / "p.safetensors"


def refusal(*arguments: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        apply_patch(*arguments)
    assert "\n" not in str(caught.value)
    assert not arguments[2].exists()
    return str(caught.value)


def test_other_models_are_refused(patched: tuple[Path, Path, RestorePlan, Path], tmp_path: Path) -> None:
    base, tuned, _, file = patched
    assert "neither the model that" in refusal(base, file, tmp_path / "out")
    write_checkpoint(tmp_path / "short", {WEIGHT: stored(np.zeros((23, 31)), "BF16")})
    assert f"lacks tensors that {file} changes: {OTHER}" in refusal(tmp_path / "short", file, tmp_path / "out")
    shape = {WEIGHT: stored(np.zeros((23, 30)), "BF16"), OTHER: stored(np.zeros((23, 31)), "BF16")}
    write_checkpoint(tmp_path / "shape", shape)
    assert "has shape [23, 30]" in refusal(tmp_path / "shape", file, tmp_path / "out")
    other = {name: stored(np.zeros((23, 31)), "F16") for name in (WEIGHT, OTHER)}
    write_checkpoint(tmp_path / "dtype", other)
    assert "is F16 in" in refusal(tmp_path / "dtype", file, tmp_path / "out")
    assert "give another folder" in refusal(tuned, file, tuned / "out")


def test_damaged_patches(patched: tuple[Path, Path, RestorePlan, Path], tmp_path: Path) -> None:
    _, tuned, _, file = patched
    raw = bytearray(file.read_bytes())
    raw[-4] ^= 1
    (tmp_path / "bit.safetensors").write_bytes(raw)
    out = tmp_path / "out"
    apply_patch(tuned, file, tmp_path / "good")
    message = refusal(tmp_path / "good", tmp_path / "bit.safetensors", out)
    assert "is damaged" in message
    assert not (tmp_path / ".out.partial").exists()
    for at in range(0, len(raw), 13):  # wherever it is, a flipped bit is one line
        flipped = bytearray(file.read_bytes())
        flipped[at] ^= 4
        (tmp_path / "bit.safetensors").write_bytes(flipped)
        try:
            apply_patch(tuned, tmp_path / "bit.safetensors", out)
        except CheckpointError as error:
            assert "\n" not in str(error)  # noqa: PT017
            assert not out.exists()
        else:
            assert read_checkpoint(out) == read_checkpoint(tmp_path / "good"), "what the flip hit has no bearing"
            shutil.rmtree(out)
    (tmp_path / "cut.safetensors").write_bytes(raw[:-100])
    assert "ends before" in refusal(tuned, tmp_path / "cut.safetensors", out)
    write_file(tmp_path / "foreign.safetensors", {"a": stored([1.0], "F32")})
    assert "is no patch" in refusal(tuned, tmp_path / "foreign.safetensors", out)
    head = safetensors_header([], {"format": "sftknow-patch", "version": "1", "patch": "{}"})
    (tmp_path / "old.safetensors").write_bytes(head)
    assert "was written by another version of sftknow" in refusal(tuned, tmp_path / "old.safetensors", out)
    assert "is not there" in refusal(tuned, tmp_path / "none.safetensors", out)


def test_files_that_are_not_replaced(patched: tuple[Path, Path, RestorePlan, Path], tmp_path: Path) -> None:
    base, tuned, plan, file = patched
    before = file.read_bytes()
    write_patch(base, tuned, plan, "20%", file)
    assert file.read_bytes() == before
    for place, words in (
        (tuned, "is a folder"),
        (tuned / "config.json", "not a whole safetensors"),
        (tuned / "model-00001-of-00002.safetensors", "is no patch"),
    ):
        with pytest.raises(CheckpointError, match=words):
            write_patch(base, tuned, plan, "20%", place)


def test_a_full_disk_leaves_no_patch(
    patched: tuple[Path, Path, RestorePlan, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tuned, plan, _ = patched

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sftknow.parameters.patch.os.fsync", full)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match="No space left"):
        write_patch(base, tuned, plan, "20%", tmp_path / "new.safetensors")
    assert sorted(tmp_path.iterdir()) == before
    monkeypatch.undo()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 1000))
    with pytest.raises(CheckpointError, match=r"new.safetensors would take 0.00 GB and .* has 0.00 GB left; make room"):
        write_patch(base, tuned, plan, "20%", tmp_path / "new.safetensors")
    assert sorted(tmp_path.iterdir()) == before


def test_what_a_kill_leaves_goes_with_the_next_start(
    patched: tuple[Path, Path, RestorePlan, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tuned, plan, file = patched
    child = os.fork()
    if not child:
        monkeypatch.setattr("sftknow.parameters.patch.os.fsync", lambda _: os.kill(os.getpid(), signal.SIGKILL))
        try:
            write_patch(base, tuned, plan, "20%", tmp_path / "new.safetensors")
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (tmp_path / "new.safetensors").exists()
    assert any(tmp_path.glob(".new.*"))
    write_patch(base, tuned, plan, "20%", tmp_path / "new.safetensors")
    assert not any(tmp_path.glob(".new.*"))
    assert (tmp_path / "new.safetensors").read_bytes() == file.read_bytes()
