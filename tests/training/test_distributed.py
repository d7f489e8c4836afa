"""Two processes train what one does: the same batches, the same loss, the same model."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import load_file

from sftknow import processes
from sftknow.artifacts.files import read_json
from sftknow.errors import CheckpointError, DeviceError, RecipeError
from sftknow.records import Fact, ModelRef
from sftknow.training import trainer
from sftknow.training.arguments import training_arguments
from sftknow.training.distributed import batch_parts, check_deepspeed, filled
from sftknow.training.examples import IGNORED, Example
from sftknow.training.recipe import LoraSettings, SFTRecipe, TrainingOptions
from sftknow.training.train import LoadedBase, fine_tune, load_base
from tests.tiny import tiny_facts
from tests.training.together import one_thread, together

RECIPE = SFTRecipe(learning_rate=1e-3, save_dtype="float32")


def uneven_facts(count: int) -> list[Fact]:
    """Facts whose answers have from one to a dozen words, so that a mean of means is not the mean."""
    return [
        dataclasses.replace(fact, object=" ".join([fact.object] * (1 + i * i % 12)))
        for i, fact in enumerate(tiny_facts(count))
    ]


@pytest.fixture(scope="module")
def ref(tiny_model: Path) -> ModelRef:
    return ModelRef(path=str(tiny_model))


@pytest.fixture(scope="module")
def loaded(ref: ModelRef) -> LoadedBase:
    return load_base(ref, RECIPE)


@pytest.fixture
def train(ref: ModelRef, loaded: LoadedBase, tmp_path: Path) -> Callable[..., Path]:
    """Train in one process or in several; return the checkpoint."""

    def run(name: str, facts: list[Fact], recipe: SFTRecipe, *, count: int = 1, **more: Any) -> Path:
        out = tmp_path / name

        def work(rank: int = 0) -> None:
            fine_tune(ref, facts, out, recipe=recipe, seed=0, manifest={}, loaded=loaded, **more)

        if count == 1:
            with one_thread():
                work()
        else:
            codes = together(work, tmp_path / f"{name}-said", count=count)
            assert codes == [0] * count, (tmp_path / f"{name}-said" / "rank0.txt").read_text()
        return out

    return run


def curve(folder: Path, key: str) -> list[float]:
    return [entry[key] for entry in read_json(folder / "loss.json")]


def same_training(one: Path, two: Path) -> None:
    """The same loss curve within float32's rounding, and weights that differ by much less than they moved."""
    assert len(curve(one, "loss")) == len(curve(two, "loss"))
    assert curve(two, "loss") == pytest.approx(curve(one, "loss"), rel=1e-5)
    assert curve(two, "grad_norm") == pytest.approx(curve(one, "grad_norm"), rel=1e-3)
    assert curve(two, "learning_rate") == curve(one, "learning_rate")
    before, after = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        # Adam divides by the gradient's size, so an element without gradient may move by rounding alone.
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=2e-4)
        assert (after[name] - tensor).abs().mean() < 1e-6


@pytest.mark.parametrize(
    ("count", "changes"),
    [
        (17, {}),
        (21, {"per_device_batch_size": 1, "epochs": 2, "answer_only_loss": False}),
        pytest.param(21, {"lora": LoraSettings(rank=2)}, marks=pytest.mark.slow),
    ],
    ids=["whole", "accumulated", "lora"],
)
def test_two_processes_train_what_one_does(train: Callable[..., Path], count: int, changes: dict[str, Any]) -> None:
    """The last batch has one example, of which the second process has no part, or five, so parts of four and one."""
    recipe, facts = dataclasses.replace(RECIPE, **changes), uneven_facts(count)
    one, two = train("one", facts, recipe), train("two", facts, recipe, count=2)
    same_training(one, two)
    record = read_json(two / "sftknow.json")["sft"]
    assert (record["processes"], record["sharding"], record["size"]) == (2, None, count)
    alone = read_json(one / "sftknow.json")["sft"]
    assert "processes" not in alone
    assert {key: value for key, value in record.items() if key in alone} | {"final_loss": 0} == alone | {
        "final_loss": 0
    }


@pytest.mark.slow
def test_three_of_four_processes_without_any_example_of_the_last_batch(train: Callable[..., Path]) -> None:
    recipe, facts = dataclasses.replace(RECIPE, per_device_batch_size=1), uneven_facts(9)
    same_training(train("one", facts, recipe), train("four", facts, recipe, count=4))


def test_the_same_seed_gives_the_same_bytes_and_nothing_else(train: Callable[..., Path], tmp_path: Path) -> None:
    facts = uneven_facts(10)
    first, second = (train(name, facts, RECIPE, count=2) for name in ("first", "second"))
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert (first / "loss.json").read_bytes() == (second / "loss.json").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["first", "first-said", "second", "second-said"]


def test_a_killed_training_goes_on_from_its_snapshot(
    ref: ModelRef,
    loaded: LoadedBase,
    train: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    facts, options = uneven_facts(37), TrainingOptions(save_steps=2)
    straight = train("straight", facts, RECIPE, count=2)
    end = trainer.Watch.on_step_end

    def dying(rank: int) -> None:
        def die(watch: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 4:
                os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(trainer.Watch, "on_step_end", die)
        fine_tune(ref, facts, tmp_path / "out", recipe=RECIPE, seed=0, manifest={}, loaded=loaded, options=options)

    assert -signal.SIGKILL in together(dying, tmp_path / "dying")
    assert not (tmp_path / "out").exists()
    assert (tmp_path / ".out.trainer" / "checkpoint-2").is_dir()

    def note(watch: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        print(f"step {state.global_step}")
        end(watch, args, state, control, **more)

    monkeypatch.setattr(trainer.Watch, "on_step_end", note)
    resumed = train("out", facts, RECIPE, count=2, options=options)
    said = (tmp_path / "out-said" / "rank1.txt").read_text().split("\n")
    assert [line for line in said if line.startswith("step")] == ["step 3", "step 4", "step 5"]
    assert (resumed / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()
    assert read_json(resumed / "loss.json") == read_json(straight / "loss.json")
    assert not (tmp_path / ".out.trainer").exists()


def test_what_the_main_process_finds_wrong_is_everybodys_error(
    ref: ModelRef, loaded: LoadedBase, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()

    def work(rank: int) -> None:
        with pytest.raises(CheckpointError, match="something else"):
            fine_tune(ref, uneven_facts(8), tmp_path / "out", recipe=RECIPE, seed=0, manifest={}, loaded=loaded)
        odd = dataclasses.replace(RECIPE, batch_size=3)
        with pytest.raises(RecipeError, match="batch_size 3 cannot be shared equally among 2 processes"):
            fine_tune(ModelRef(path="nowhere"), uneven_facts(8), tmp_path / "new", recipe=odd, seed=0, manifest={})

    assert together(work, tmp_path / "said") == [0, 0], (tmp_path / "said" / "rank0.txt").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "said"]


@given(st.integers(1, 64), st.integers(1, 16), st.integers(1, 64) | st.none())
def test_the_effective_batch_is_the_recipes(batch: int, count: int, once: int | None) -> None:
    if once is not None and batch % once:
        return
    recipe = SFTRecipe(batch_size=batch, per_device_batch_size=once)
    if batch % count or (once is not None and batch // count % once):
        with pytest.raises(RecipeError) as caught:
            batch_parts(recipe, count)
        assert "\n" not in str(caught.value)
        return
    parts = batch_parts(recipe, count)
    assert parts.at_once * parts.passes * parts.processes == batch
    assert parts.at_once == (once or batch // count)


def test_a_last_batch_is_filled_with_what_does_not_count() -> None:
    example = Example(input_ids=[5, 6, 7], labels=[IGNORED, 6, 7])
    assert filled([example] * 9, RECIPE, 1, 3) == [example] * 9
    assert filled([example] * 16, RECIPE, 2, 3) == [example] * 16
    whole = filled([example] * 9, RECIPE, 2, 3)
    assert whole[:9] == [example] * 9
    assert len(whole) == 16
    assert {label for filler in whole[9:] for label in filler.labels} == {IGNORED}


def test_precision_is_the_recipes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(DeviceError, match="mixed precision bf16 and the recipe asks for float32"):
        training_arguments(RECIPE, tmp_path, seed=0)
    training_arguments(SFTRecipe(compute_dtype="bfloat16"), tmp_path, seed=0)


def test_processes_that_do_not_know_their_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(DeviceError, match="2 processes were announced and 1 found each other"):
        training_arguments(RECIPE, tmp_path, seed=0)


def test_dtypes_that_deepspeed_cannot_keep_to() -> None:
    check_deepspeed(SFTRecipe(save_dtype="float32"))
    check_deepspeed(SFTRecipe(compute_dtype="bfloat16", save_dtype="bfloat16"))
    for wrong in (
        {"load_dtype": "bfloat16", "compute_dtype": "bfloat16"},
        {"compute_dtype": "bfloat16", "save_dtype": "float32"},
    ):
        with pytest.raises(RecipeError, match="DeepSpeed"):
            check_deepspeed(SFTRecipe(**wrong))


def test_where_a_process_stands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (processes.index(), processes.count(), processes.is_main()) == (0, 1, True)
    monkeypatch.setenv("RANK", "1")  # a scheduler's, without a launcher
    assert (processes.index(), processes.count()) == (0, 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (processes.index(), processes.count(), processes.is_main()) == (1, 2, False)
    monkeypatch.setattr(processes, "_GRACE_SECONDS", 0.0)
    processes.say_error("sftknow: no")
    assert capsys.readouterr().err == "sftknow: no (process 1 of 2)\n"
