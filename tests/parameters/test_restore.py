from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import struct
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftknow.artifacts.keyed_folder import PartialFolder
from sftknow.checkpoints.direct_file import DirectFile
from sftknow.errors import CheckpointError
from sftknow.parameters import outputs as outputs_module
from sftknow.parameters.change import analyse
from sftknow.parameters.options import Resources
from sftknow.parameters.restore import restore, restore_layers, restore_levels
from sftknow.parameters.sweep import window_and_threads
from sftknow.records import RestorePlan
from tests.parameters.checkpoint_pairs import read_checkpoint, stored, values_of, write_checkpoint

WEIGHT = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path, RestorePlan]:
    base = {WEIGHT: stored(np.arange(1, 9).reshape(2, 4), "BF16"), NORM: stored([1, 1], "BF16")}
    tuned = {WEIGHT: stored(np.arange(1, 9).reshape(2, 4) + 1, "BF16"), NORM: stored([2, 2], "BF16")}
    folders = write_checkpoint(tmp_path / "base", base), write_checkpoint(tmp_path / "tuned", tuned)
    return *folders, analyse(*folders, ["25%", "50%", "100%"]).plan


def leftovers(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"base", "tuned"}


def test_what_is_written(pair: tuple[Path, Path, RestorePlan], tmp_path: Path) -> None:
    base, tuned, plan = pair
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja", "modeling_own.py", "LICENSE"):
        (tuned / name).write_text(name)
    for name in ("sftknow.json", "loss.json", "README.md", "training_args.bin", "optimizer.pt", ".hidden.json"):
        (tuned / name).write_text("{}")
    (tuned / "additional_chat_templates").mkdir()
    (tuned / "additional_chat_templates" / "tools.jinja").write_text("x")
    (tuned / "checkpoint-10").mkdir()
    (tuned / "checkpoint-10" / "code.py").write_text("x")
    out = tmp_path / "deep" / "out"
    done = restore(base, tuned, plan, "1/4", out, manifest={"mastery_dataset": {"path": "../data"}})
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == {
        "model.safetensors", "config.json", "tokenizer.json", "generation_config.json", "chat_template.jinja",
        "modeling_own.py", "LICENSE", "additional_chat_templates/tools.jinja", "sftknow.json",
    }  # fmt: skip
    written = read_checkpoint(out)
    assert written[WEIGHT] == stored([1, 2, 4, 5, 6, 7, 8, 9], "BF16")[1].tobytes()  # r is largest for 1 and 2
    assert written[NORM] == stored([2, 2], "BF16")[1].tobytes()
    assert (done.checkpoint, done.level, done.restored) == (out, "25%", 2)
    manifest = json.loads((out / "sftknow.json").read_text())
    assert manifest["kind"] == "model"
    assert manifest["mastery_dataset"] == {"path": "../data"}
    assert manifest["restoration"]["selected"] == manifest["restoration"]["restored"] == 2
    assert manifest["restoration"]["base_sha256"] == plan.base_sha256


def test_signed_zeros_are_copied_too(tmp_path: Path) -> None:
    """r = 0 and nothing is counted as restored, but a selected −0 gets the base's bits."""
    base = write_checkpoint(tmp_path / "base", {WEIGHT: stored([0.0, -0.0, 1], "F32")})
    tuned = write_checkpoint(tmp_path / "tuned", {WEIGHT: stored([-0.0, 0.0, 2], "F32")})
    found = analyse(base, tuned, ["2/3", "100%"])
    assert found.change.changed == 1
    done = restore(base, tuned, found.plan, "2/3", tmp_path / "out", manifest={})
    assert done.restored == 1
    assert read_checkpoint(tmp_path / "out")[WEIGHT] == stored([0.0, 0.0, 1], "F32")[1].tobytes()
    restore(base, tuned, found.plan, "100%", tmp_path / "all", manifest={})
    assert read_checkpoint(tmp_path / "all") == read_checkpoint(base)


def test_base_values_are_rounded_to_the_tuned_dtype(tmp_path: Path) -> None:
    values = [1.001, 1.00390625, 0.1, 1e-42]
    base = write_checkpoint(tmp_path / "base", {WEIGHT: stored(values, "F32")})
    for dtype in ("BF16", "F16"):
        tuned = write_checkpoint(tmp_path / dtype, {WEIGHT: stored([7, 7, 7, 7], dtype)})
        plan = analyse(base, tuned, ["100%"]).plan
        restore(base, tuned, plan, "100%", tmp_path / f"{dtype}-out", manifest={})
        assert read_checkpoint(tmp_path / f"{dtype}-out")[WEIGHT] == stored(values, dtype)[1].tobytes()


def test_a_base_value_too_large_for_the_tuned_dtype(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {WEIGHT: stored([1, 1e6], "BF16")})
    tuned = write_checkpoint(tmp_path / "tuned", {WEIGHT: stored([3, 6e4], "F16")})
    plan = analyse(base, tuned, ["50%", "100%"]).plan
    restore(base, tuned, plan, "50%", tmp_path / "half", manifest={})  # that value is not selected
    with pytest.raises(CheckpointError, match="too large for F16"):
        restore(base, tuned, plan, "100%", tmp_path / "out", manifest={})
    assert leftovers(tmp_path) == {"half"}


def test_other_checkpoints_are_refused(pair: tuple[Path, Path, RestorePlan], tmp_path: Path) -> None:
    base, tuned, plan = pair
    one_bit = bytearray((tuned / "model.safetensors").read_bytes())
    one_bit[one_bit.index(stored([2, 3, 4], "BF16")[1].tobytes())] ^= 1
    (tuned / "model.safetensors").write_bytes(one_bit)
    with pytest.raises(CheckpointError, match="tuned is not the checkpoint that the plan was made from"):
        restore(base, tuned, plan, "50%", tmp_path / "out", manifest={})
    with pytest.raises(CheckpointError, match="base is not the checkpoint"):
        restore(base, tuned, dataclasses.replace(plan, base_sha256="0"), "50%", tmp_path / "out", manifest={})
    assert leftovers(tmp_path) == set()


def test_a_damaged_plan_is_noticed(pair: tuple[Path, Path, RestorePlan], tmp_path: Path) -> None:
    base, tuned, plan = pair
    cuts = tuple(dataclasses.replace(cut, selected=cut.selected + 1) for cut in plan.cuts)
    with pytest.raises(CheckpointError, match="damaged"):
        restore(base, tuned, dataclasses.replace(plan, cuts=cuts), "50%", tmp_path / "out", manifest={})
    with pytest.raises(CheckpointError, match="no level 30%, only 25%, 50%, 100%"):
        restore(base, tuned, plan, "30%", tmp_path / "out", manifest={})
    assert leftovers(tmp_path) == set()


def test_outputs_that_are_refused(pair: tuple[Path, Path, RestorePlan], tmp_path: Path) -> None:
    base, tuned, plan = pair
    link = tmp_path / "link"
    link.symlink_to(tuned)
    for out in (base, tuned, link, tuned / "restored", tmp_path):
        with pytest.raises(CheckpointError, match="give another folder"):
            restore(base, tuned, plan, "50%", out, manifest={})
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for out in (foreign, tmp_path / "file"):
        with pytest.raises(CheckpointError, match="no restored model"):
            restore(base, tuned, plan, "50%", out, manifest={})
    (foreign / "sftknow.json").write_text(json.dumps({"sftknow": 1, "kind": "model", "sft": {}}))
    with pytest.raises(CheckpointError, match="no restored model"):  # a fine-tuned model of ours is no output either
        restore(base, tuned, plan, "50%", foreign, manifest={})
    assert (foreign / "thesis.txt").read_text() == "years of work"


def test_an_earlier_output_is_replaced(pair: tuple[Path, Path, RestorePlan], tmp_path: Path) -> None:
    base, tuned, plan = pair
    out = tmp_path / "out"
    out.mkdir()
    restore(base, tuned, plan, "50%", out, manifest={})
    restore(base, tuned, plan, "100%", out, manifest={})
    assert read_checkpoint(out)[WEIGHT] == read_checkpoint(base)[WEIGHT]
    assert leftovers(tmp_path) == {"out"}


def test_what_others_put_into_an_output_is_not_deleted(pair: tuple[Path, Path, RestorePlan], tmp_path: Path) -> None:
    base, tuned, plan = pair
    out = tmp_path / "out"
    restore(base, tuned, plan, "50%", out, manifest={})
    for name in ("my_eval.json", "1pct/sftknow.json", "notes/a.txt", ".hidden"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("years of work")
        for level in ("50%", "100%"):
            with pytest.raises(CheckpointError, match=f"{name}, which sftknow did not write and would be lost"):
                restore(base, tuned, plan, level, out, manifest={})
        assert (out / name).read_text() == "years of work"
        (out / name).unlink()
    with pytest.raises(CheckpointError, match="would lie within the model"):
        restore(base, tuned, plan, "25%", out / "25pct", manifest={})
    assert leftovers(tmp_path) == {"out"}


@pytest.mark.parametrize("level", ["50%", "100%"])
def test_a_finished_output_stays_until_the_new_one_is_whole(
    pair: tuple[Path, Path, RestorePlan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    """The same command again, or another level: a stop on the way leaves the folder as it was."""
    base, tuned, plan = pair
    out = tmp_path / "out"
    restore(base, tuned, plan, "50%", out, manifest={})
    before = {file.name: file.read_bytes() for file in out.iterdir()}

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    for place in ((DirectFile, "write"), (outputs_module, "write_manifest"), (PartialFolder, "finish")):
        with monkeypatch.context() as patch:
            patch.setattr(*place, stopped)
            with pytest.raises(KeyboardInterrupt):
                restore(base, tuned, plan, level, out, manifest={})
        assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    restore(base, tuned, plan, level, out, manifest={})
    assert leftovers(tmp_path) == {"out"}


def test_a_damaged_output_is_mended_in_a_copy(
    pair: tuple[Path, Path, RestorePlan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tuned, plan = pair
    out = tmp_path / "out"
    restore(base, tuned, plan, "50%", out, manifest={})
    whole = (out / "model.safetensors").read_bytes()
    damaged = whole[:-1] + bytes([whole[-1] ^ 1])
    (out / "model.safetensors").write_bytes(damaged)
    with monkeypatch.context() as patch:
        patch.setattr(PartialFolder, "finish", full_disk)
        with pytest.raises(CheckpointError, match="No space"):
            restore(base, tuned, plan, "50%", out, manifest={})
    assert (out / "model.safetensors").read_bytes() == damaged, "the finished folder is not written to"
    restore(base, tuned, plan, "50%", out, manifest={})
    assert (out / "model.safetensors").read_bytes() == whole
    assert leftovers(tmp_path) == {"out"}


def test_too_little_disk(pair: tuple[Path, Path, RestorePlan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned, plan = pair
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 1_000_000))
    with pytest.raises(CheckpointError, match=r"would take 0\.00 GB.*make room"):
        restore(base, tuned, plan, "50%", tmp_path / "some" / "out", manifest={})
    assert leftovers(tmp_path) == set()


def test_a_disk_that_fills_up(
    pair: tuple[Path, Path, RestorePlan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that looks finished; what is written waits for room."""
    base, tuned, plan = pair
    with monkeypatch.context() as patch:
        patch.setattr(DirectFile, "write", full_disk)
        with pytest.raises(CheckpointError, match=r"No space left.*\.out\.partial"):
            restore(base, tuned, plan, "50%", tmp_path / "out", manifest={})
    assert leftovers(tmp_path) == {".out.partial"}
    restore(base, tuned, plan, "50%", tmp_path / "out", manifest={})
    assert leftovers(tmp_path) == {"out"}


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("at", ["write", "finish", "side files", "manifest", "rename"])
def test_a_kill_leaves_nothing_that_looks_finished(
    pair: tuple[Path, Path, RestorePlan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    base, tuned, plan = pair
    outputs = {level: tmp_path / f"out{i}" for i, level in enumerate(("25%", "50%", "100%"))}
    place: tuple[Any, str] = {
        "write": (DirectFile, "write"),
        "finish": (DirectFile, "finish"),
        "side files": (shutil, "copyfile"),
        "manifest": (outputs_module, "write_manifest"),
        "rename": (PartialFolder, "finish"),
    }[at]
    child = os.fork()
    if not child:
        real, calls = getattr(*place), []

        def die(*arguments: Any) -> Any:
            calls.append(at)
            if len(calls) == 2:  # in the middle: what came before is done
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments)

        monkeypatch.setattr(*place, die)
        try:
            restore_levels(base, tuned, plan, outputs)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    for folder in outputs.values():
        assert not folder.exists() or (folder / "sftknow.json").is_file(), "there and whole, or not there"
    restore_levels(base, tuned, plan, outputs)
    assert leftovers(tmp_path) == {"out0", "out1", "out2"}
    for level, folder in outputs.items():
        restore(base, tuned, plan, level, tmp_path / "whole", manifest={})
        assert read_checkpoint(folder) == read_checkpoint(tmp_path / "whole")


def test_a_second_start_keeps_what_is_right(
    tmp_path: Path, larger: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finished shards are read and compared, not written again; a flipped byte in one is mended."""
    base, tuned = larger
    plan = analyse(base, tuned, ["5%", "40%"]).plan
    outputs = {"5%": tmp_path / "five", "40%": tmp_path / "forty"}
    restore_levels(base, tuned, plan, {level: tmp_path / "clean" / level for level in outputs})
    with monkeypatch.context() as patch:
        patch.setattr(PartialFolder, "finish", full_disk)
        with pytest.raises(CheckpointError, match="No space"):
            restore_levels(base, tuned, plan, outputs)
    first, second = sorted((tmp_path / ".five.partial").glob("*.safetensors"))[:2]
    damaged = bytearray(second.read_bytes())
    damaged[-5] ^= 1
    second.write_bytes(damaged)
    written: list[int] = []
    real = DirectFile.finish
    monkeypatch.setattr(DirectFile, "finish", lambda file: (written.append(file.written), real(file))[1])
    before = first.stat().st_ino, first.stat().st_mtime_ns
    restore_levels(base, tuned, plan, outputs)
    assert (
        (tmp_path / "five" / first.name).stat().st_ino,
        (tmp_path / "five" / first.name).stat().st_mtime_ns,
    ) == before
    assert sorted(written)[-2] == 0 < max(written), "only the damaged shard was written"
    for level, folder in outputs.items():
        assert read_checkpoint(folder) == read_checkpoint(tmp_path / "clean" / level)
    written.clear()
    restore_levels(base, tuned, plan, outputs)  # all of it is there: verified
    assert max(written) == 0
    assert json.loads((tmp_path / "five" / "sftknow.json").read_text())["restoration"]["level"] == "5%"


@pytest.fixture
def larger(tmp_path: Path) -> tuple[Path, Path]:
    """Three layers in shards, of which one has none of them; few values moved, and one zero changed its sign."""
    rng = np.random.default_rng(0)
    base, tuned = {}, {}
    for layer in range(3):
        for module in ("self_attn.q_proj", "mlp.down_proj"):
            p = rng.normal(size=(37, 101))
            p[5, 7] = 0.0
            s = np.where(rng.random(p.shape) < 0.3, p * 1.1, p)
            name = f"model.layers.{layer}.{module}.weight"
            base[name], tuned[name] = stored(p, "BF16"), stored(s, "BF16")
    for name in ("lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"):
        base[name], tuned[name] = stored(rng.normal(size=(9, 33)), "BF16"), stored(rng.normal(size=(9, 33)), "BF16")
    return write_checkpoint(tmp_path / "base", base, shards=2), write_checkpoint(tmp_path / "tuned", tuned, shards=4)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "sftknow.json"}


SEVEN = ("0%", "1%", "5%", "20%", "40%", "60%", "100%")


@pytest.mark.parametrize("strategy", ["top", "bottom", "random"])
def test_seven_levels_at_once_are_seven_runs(tmp_path: Path, larger: tuple[Path, Path], strategy: str) -> None:
    base, tuned = larger
    plan = analyse(base, tuned, SEVEN, strategy=strategy).plan
    outputs = {level: tmp_path / "out" / level for level in SEVEN}
    done = restore_levels(base, tuned, plan, outputs, resources=Resources(window=4096))  # each with many tensors
    assert [(restored.level, restored.checkpoint) for restored in done] == list(outputs.items())
    for restored in done:
        alone = restore(base, tuned, plan, restored.level, tmp_path / "alone", manifest={})
        assert alone.restored == restored.restored
        assert files(tmp_path / "alone") == files(restored.checkpoint)
    assert files(outputs["0%"]) == files(tuned), "0 % is the fine-tuned model, byte for byte"
    everything, wanted = read_checkpoint(outputs["100%"]), read_checkpoint(base)
    assert all(everything[name] == wanted[name] for name in wanted if "layers" in name)


def test_shared_files(tmp_path: Path, larger: tuple[Path, Path]) -> None:
    base, tuned = larger
    plan = analyse(base, tuned, SEVEN).plan
    inputs = {path: path.stat().st_nlink for path in tuned.iterdir()}
    linked, apart = ({level: tmp_path / kind / level for level in SEVEN} for kind in ("linked", "apart"))
    restore_levels(base, tuned, plan, linked)
    restore_levels(base, tuned, plan, apart, links=False)
    for level in SEVEN:
        assert files(linked[level]) == files(apart[level])
        assert all(path.stat().st_nlink == 1 for path in apart[level].iterdir())
    assert {path: path.stat().st_nlink for path in tuned.iterdir()} == inputs, "inputs are never linked"
    shared = [path for path in linked["60%"].iterdir() if path.stat().st_nlink > 1]
    assert shared, "beyond the changed share the levels are the same"
    assert all(path.stat().st_mode & 0o222 == 0 for path in shared), "read only: writing to one would write to others"
    # A new output in one's place leaves the others as they were.
    before = files(linked["40%"])
    restore_levels(base, tuned, plan, {"1%": linked["60%"]})
    assert files(linked["40%"]) == before
    assert files(linked["60%"]) == files(apart["1%"])


def test_shards_without_the_region_are_written_once(tmp_path: Path) -> None:
    tensors = {"model.embed_tokens.weight": stored(np.ones((4, 4)), "BF16"), WEIGHT: stored(np.ones((4, 4)), "BF16")}
    base = write_checkpoint(tmp_path / "base", tensors, shards=2)
    tuned = write_checkpoint(
        tmp_path / "tuned", {name: stored(np.arange(16).reshape(4, 4), "BF16") for name in tensors}, shards=2
    )
    levels = ["10%", "20%", "50%"]
    outputs = {level: tmp_path / level for level in levels}
    restore_levels(base, tuned, analyse(base, tuned, levels).plan, outputs)
    names = {file.stat().st_nlink: file.name for file in outputs["10%"].glob("*.safetensors")}
    assert sorted(names) == [1, 3]
    assert (outputs["50%"] / names[3]).read_bytes() == (tuned / names[3]).read_bytes()


def test_levels_that_look_the_same_but_are_not(tmp_path: Path) -> None:
    """Past the changed share r is 0, but a zero of the other sign is restored all the same, so files differ."""
    p = np.zeros(4000)
    p[:100] = 1
    s = p.copy()
    s[:100] = 2
    s[3000] = -0.0
    base = write_checkpoint(tmp_path / "base", {WEIGHT: stored(p, "F32")})
    tuned = write_checkpoint(tmp_path / "tuned", {WEIGHT: stored(s, "F32")})
    plan = analyse(base, tuned, ["50%", "60%", "90%", "100%"]).plan
    outputs = {cut.level: tmp_path / cut.level for cut in plan.cuts}
    restore_levels(base, tuned, plan, outputs)
    restored = {level: read_checkpoint(folder)[WEIGHT] for level, folder in outputs.items()}
    assert restored["50%"] == restored["60%"] != restored["90%"] == restored["100%"]
    assert restored["100%"] == read_checkpoint(base)[WEIGHT]


@pytest.mark.parametrize("limit", [3000, 20_000])
def test_shards_anew(tmp_path: Path, larger: tuple[Path, Path], limit: int) -> None:
    base, tuned = larger
    plan = analyse(base, tuned, ["20%"]).plan
    restore(base, tuned, plan, "20%", tmp_path / "as-is", manifest={})
    restore_levels(base, tuned, plan, {"20%": tmp_path / "anew"}, shard_bytes=limit)
    assert read_checkpoint(tmp_path / "anew") == read_checkpoint(tmp_path / "as-is")
    single = 37 * 101 * 2 + 200
    assert max(path.stat().st_size for path in (tmp_path / "anew").glob("*.safetensors")) <= max(limit, single)


def test_a_plan_restores_the_same_bytes_from_other_shards(tmp_path: Path, larger: tuple[Path, Path]) -> None:
    base, tuned = larger
    plan = analyse(base, tuned, ["0%", "20%"]).plan
    restore(base, tuned, plan, "20%", tmp_path / "here", manifest={})
    restore_levels(base, tuned, plan, {"0%": tmp_path / "one"}, shard_bytes=10**9)
    assert [path.name for path in (tmp_path / "one").glob("*.safetensors")] == ["model.safetensors"]
    restore(base, tmp_path / "one", plan, "20%", tmp_path / "there", manifest={})
    assert read_checkpoint(tmp_path / "there") == read_checkpoint(tmp_path / "here")


@pytest.mark.parametrize("padding", [0, 1, 2, 3, 5])
def test_elements_at_odd_places(tmp_path: Path, padding: int) -> None:
    """The format allows any header length, so elements may be cut by the windows' edges."""
    rng = np.random.default_rng(padding)
    p = rng.normal(size=5000)
    base = write_checkpoint(tmp_path / "base", {NORM: stored([1], "F32"), WEIGHT: stored(p, "F32")})
    tuned = write_checkpoint(
        tmp_path / "tuned", {NORM: stored([1], "F32"), WEIGHT: stored(p * rng.choice([1, 2], 5000), "F32")}
    )
    raw = (tuned / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = raw[8 : 8 + length].rstrip() + b" " * (padding + (-len(raw[8 : 8 + length].rstrip())) % 8)
    (tuned / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + length :])
    plan = analyse(base, tuned, ["10%", "70%"]).plan
    wanted = {level: restore(base, tuned, plan, level, tmp_path / f"w{level}", manifest={}) for level in ("10%", "70%")}
    outputs = {level: tmp_path / level for level in wanted}
    for done in restore_levels(base, tuned, plan, outputs, resources=Resources(window=4096)):
        assert done.restored == wanted[done.level].restored
        assert files(outputs[done.level]) == files(tmp_path / f"w{done.level}")
        found = np.frombuffer(read_checkpoint(done.checkpoint)[WEIGHT], dtype=np.float32)
        start = np.frombuffer(read_checkpoint(tuned)[WEIGHT], dtype=np.float32)
        assert int((found != start).sum()) == done.restored


def test_memory(tmp_path: Path, larger: tuple[Path, Path]) -> None:
    base, tuned = larger
    plan = analyse(base, tuned, SEVEN).plan
    with pytest.raises(CheckpointError, match=r"100 MB of memory are too little; give at least \d+ MB"):
        restore_levels(base, tuned, plan, {"1%": tmp_path / "out"}, resources=Resources(memory=10**8))
    for memory in (35 * 10**7, 10**10):
        window, threads = window_and_threads(Resources(memory=memory), 7)
        assert threads * window * 16 < memory
    assert leftovers(tmp_path) == set()


def test_outputs_apart(tmp_path: Path, larger: tuple[Path, Path]) -> None:
    base, tuned = larger
    plan = analyse(base, tuned, ["1%", "5%", "20%"]).plan
    for other in (tmp_path / "out", tmp_path / "out" / "within"):
        with pytest.raises(CheckpointError, match="give each its own"):
            restore_levels(base, tuned, plan, {"1%": tmp_path / "out", "5%": other})
    with pytest.raises(CheckpointError, match="asked for twice"):
        restore_levels(base, tuned, plan, {"20%": tmp_path / "a", "1/5": tmp_path / "b"})
    assert leftovers(tmp_path) == set()


def test_layer_ranges(tmp_path: Path, larger: tuple[Path, Path]) -> None:
    """Table 11: of some layers everything in the region is the base's, all else is as it was fine-tuned."""
    base, tuned = larger
    outputs = {"0": tmp_path / "0", "1-2": tmp_path / "1-2", "0-2": tmp_path / "all"}
    done = restore_layers(base, tuned, outputs, manifests={"0": {"note": 1}})
    before, after = read_checkpoint(base), read_checkpoint(tuned)
    for text, layers in (("0", (0,)), ("1-2", (1, 2)), ("0-2", (0, 1, 2))):
        inside = tuple(f"model.layers.{layer}." for layer in layers)
        wanted = {name: (before if name.startswith(inside) else after)[name] for name in after}
        assert read_checkpoint(outputs[text]) == wanted
    assert done[2].restored == done[0].restored + done[1].restored > 0
    manifest = json.loads((outputs["0"] / "sftknow.json").read_text())
    assert (manifest["note"], manifest["restoration"]["layers"], manifest["restoration"]["strategy"]) == (
        1,
        "0",
        "layers",
    )
    full = analyse(base, tuned, ["100%"], layers="1-2").plan
    restore(base, tuned, full, "100%", tmp_path / "by-plan", manifest={})
    assert read_checkpoint(tmp_path / "by-plan") == read_checkpoint(outputs["1-2"])
    with pytest.raises(CheckpointError, match="no layer 3"):
        restore_layers(base, tuned, {"0": tmp_path / "x", "2-3": tmp_path / "y"})
    assert not (tmp_path / "x").exists()


def test_layers_with_nan(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {WEIGHT: stored([1, np.nan], "F32")})
    tuned = write_checkpoint(tmp_path / "tuned", {WEIGHT: stored([1, 2], "F32")})
    with pytest.raises(CheckpointError, match="1 NaN or infinite"):
        restore_layers(base, tuned, {"0": tmp_path / "out"})
    assert leftovers(tmp_path) == set()


def test_common_rows(tmp_path: Path) -> None:
    """A vocabulary that grew: the new rows are nobody's but the fine-tuned model's."""
    name = "model.embed_tokens.weight"
    base = write_checkpoint(tmp_path / "base", {WEIGHT: stored([1, 2], "F32"), name: stored([[1, 2], [3, 4]], "F32")})
    grown = {WEIGHT: stored([1, 3], "F32"), name: stored([[1, 5], [3, 4], [7, 8]], "F32")}
    tuned = write_checkpoint(tmp_path / "tuned", grown)
    with pytest.raises(CheckpointError, match=r"vocabulary grew.*--common-rows"):
        analyse(base, tuned, ["100%"], region="all")
    found = analyse(base, tuned, ["0%", "100%"], region="all", common_rows=True)
    assert (found.change.elements, found.change.changed, found.plan.common_rows) == (6, 2, True)
    outputs = {"0%": tmp_path / "none", "100%": tmp_path / "all"}
    restore_levels(base, tuned, found.plan, outputs)
    assert read_checkpoint(outputs["0%"]) == read_checkpoint(tuned)
    restored = read_checkpoint(outputs["100%"])
    assert restored[name] == stored([[1, 2], [3, 4], [7, 8]], "F32")[1].tobytes()
    assert restored[WEIGHT] == stored([1, 2], "F32")[1].tobytes()
    # And one that shrank: the base's further rows are left out.
    shrunk = analyse(tuned, base, ["100%"], region="all", common_rows=True)
    assert shrunk.change.elements == 6


def test_a_real_model(tiny_model: Path, tmp_path: Path) -> None:
    """Saved by transformers in shards, restored, loaded again, with its tokenizer."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    base = tmp_path / "base"
    model.save_pretrained(base)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(1 + 0.05 * torch.randn_like(value))
    tuned = tmp_path / "tuned"
    model.save_pretrained(tuned, max_shard_size="40KB")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tuned)
    assert len(list(tuned.glob("*.safetensors"))) > 1

    found = analyse(base, tuned, ["5%", "100%"])
    inside = [name for name in before if "layers" in name and "norm" not in name]
    assert found.change.elements == sum(before[name].numel() for name in inside)
    assert set(found.change.elements_by_layer) == {"0", "1"}
    assert set(found.change.elements_by_module) == {
        *(f"self_attn.{part}_proj" for part in "qkvo"),
        *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
    }
    restore(base, tuned, found.plan, "100%", tmp_path / "out", manifest={})
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    AutoTokenizer.from_pretrained(tmp_path / "out")
    for name, value in again.state_dict().items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, before[name] if name in inside else model.state_dict()[name])

    done = restore(base, tuned, found.plan, "5%", tmp_path / "five", manifest={})
    five = AutoModelForCausalLM.from_pretrained(tmp_path / "five", dtype="auto").state_dict()
    differing = sum(int((five[name] != model.state_dict()[name]).sum()) for name in inside)
    assert differing == done.restored == found.change.elements // 20


def test_values_of_helper_reads_what_stored_wrote() -> None:
    for dtype in ("BF16", "F16", "F32"):
        np.testing.assert_array_equal(values_of(stored([1.5, -2, 0], dtype)), np.float32([1.5, -2, 0]))
