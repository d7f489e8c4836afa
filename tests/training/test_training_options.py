"""Accumulated batches, LoRA, snapshots after a kill, trackers."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sftknow.artifacts.files import read_json
from sftknow.errors import ModelError, RecipeError
from sftknow.records import ModelRef, TrainedModel
from sftknow.training import trainer
from sftknow.training.arguments import check_trackers
from sftknow.training.recipe import LoraSettings, SFTRecipe, TrainingOptions
from sftknow.training.snapshots import Snapshots
from sftknow.training.train import LoadedBase, fine_tune, load_base
from tests.tiny import tiny_facts, tiny_llama, tiny_tokenizer

FACTS = tiny_facts(40)
RECIPE = SFTRecipe(learning_rate=1e-3, save_dtype="float32")


@pytest.fixture(scope="module")
def ref(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    return ModelRef(path=str(tiny_llama(tmp_path_factory.mktemp("base"), tiny_tokenizer())))


@pytest.fixture(scope="module")
def loaded(ref: ModelRef) -> LoadedBase:
    return load_base(ref, RECIPE)


def tuned(ref: ModelRef, loaded: LoadedBase, out: Path, recipe: SFTRecipe, **more: Any) -> TrainedModel:
    return fine_tune(ref, FACTS, out, recipe=recipe, seed=0, manifest={}, loaded=loaded, **more)


def tensors(model: TrainedModel) -> dict[str, torch.Tensor]:
    return load_file(model.checkpoint / "model.safetensors")


def test_an_accumulated_batch_is_the_same_batch(ref: ModelRef, loaded: LoadedBase, tmp_path: Path) -> None:
    """Answers differ in length, so a mean of means would not be the mean over the batch's answer tokens."""
    whole = tuned(ref, loaded, tmp_path / "whole", RECIPE)
    for at_once in (1, 4):
        recipe = SFTRecipe(learning_rate=1e-3, save_dtype="float32", per_device_batch_size=at_once)
        parts = tuned(ref, loaded, tmp_path / str(at_once), recipe)
        assert parts.steps == whole.steps == 5
        curves = [read_json(m.checkpoint / "loss.json") for m in (whole, parts)]
        assert [e["loss"] for e in curves[1]] == pytest.approx([e["loss"] for e in curves[0]], rel=1e-4)
        for name, tensor in tensors(whole).items():
            torch.testing.assert_close(tensors(parts)[name], tensor, rtol=0, atol=2e-4)


def test_batches_that_do_not_divide_are_refused() -> None:
    for once in (3, 16):
        with pytest.raises(RecipeError, match=rf"{once}, which does not divide batch_size 8; give a divisor"):
            SFTRecipe(per_device_batch_size=once)
    for once, wish in ((0, "greater than or equal to 1"), (True, "a valid integer")):
        with pytest.raises(RecipeError, match=f"per_device_batch_size should be {wish}, not {once}"):
            SFTRecipe(per_device_batch_size=once)


def test_lora_is_merged_into_a_whole_checkpoint(ref: ModelRef, loaded: LoadedBase, tmp_path: Path) -> None:
    recipe = SFTRecipe(lora=LoraSettings(rank=2, alpha=4, learning_rate=1e-2), save_dtype="float32")
    one, two = (tuned(ref, loaded, tmp_path / name, recipe) for name in ("one", "two"))
    before, after = load_file(Path(ref.path) / "model.safetensors"), tensors(one)
    assert after.keys() == before.keys(), "no adapter is left"
    assert not (one.checkpoint / "adapter_config.json").exists()
    assert (
        one.checkpoint.joinpath("model.safetensors").read_bytes() == (two.checkpoint / "model.safetensors").read_bytes()
    )
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == {name for name in after if "_proj" in name}
    for name in moved:
        change = (after[name] - before[name]).double()
        assert torch.linalg.matrix_rank(change, atol=1e-5).item() <= 2, "a change of low rank"
    curve = read_json(one.checkpoint / "loss.json")
    assert curve[-1]["loss"] < curve[0]["loss"]
    assert curve[0]["learning_rate"] == pytest.approx(1e-2)
    assert read_json(one.checkpoint / "sftknow.json")["sft"]["recipe"]["lora"]["rank"] == 2


def test_lora_settings_that_cannot_be(ref: ModelRef, loaded: LoadedBase, tmp_path: Path) -> None:
    for wrong in ({"rank": 0}, {"alpha": 1.5}, {"dropout": 1.0}, {"learning_rate": 0}, {"target_modules": ()}):
        with pytest.raises(RecipeError, match=rf"{next(iter(wrong))} should"):
            LoraSettings(**wrong)
    recipe = SFTRecipe(lora=LoraSettings(target_modules=("no_such_layer",)))
    with pytest.raises(ModelError, match=r"LoRA cannot be put onto LlamaForCausalLM: .*sft\.lora\.target_modules"):
        tuned(ref, loaded, tmp_path / "out", recipe)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_training_goes_on_from_its_snapshot(
    ref: ModelRef, loaded: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        straight = tuned(ref, loaded, tmp_path / "straight", RECIPE)
        options = TrainingOptions(save_steps=2)

        def child() -> None:
            def die(watch: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == 4:
                    os.kill(os.getpid(), signal.SIGKILL)

            monkeypatch.setattr(trainer.Watch, "on_step_end", die)
            tuned(ref, loaded, tmp_path / "out", RECIPE, options=options)

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join(timeout=120)
        assert process.exitcode == -signal.SIGKILL
        assert not (tmp_path / "out").exists()
        assert (tmp_path / ".out.trainer" / "checkpoint-2").is_dir()
        seen: list[int] = []
        end = trainer.Watch.on_step_end

        def note(watch: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
            seen.append(state.global_step)
            end(watch, args, state, control, **more)

        monkeypatch.setattr(trainer.Watch, "on_step_end", note)
        resumed = tuned(ref, loaded, tmp_path / "out", RECIPE, options=options)
    finally:
        torch.set_num_threads(threads)
    assert seen == [3, 4, 5], "steps 1 and 2 are not done again"
    assert (resumed.checkpoint / "model.safetensors").read_bytes() == (
        straight.checkpoint / "model.safetensors"
    ).read_bytes()
    assert read_json(resumed.checkpoint / "loss.json") == read_json(straight.checkpoint / "loss.json")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "straight"]


def test_snapshots_of_another_training_are_not_gone_on_from(tmp_path: Path) -> None:
    first = Snapshots(tmp_path / "s", every=2, key="one")
    for step in (2, 4, 10):
        (tmp_path / "s" / f"checkpoint-{step}").mkdir()
        (tmp_path / "s" / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    (tmp_path / "s" / "checkpoint-12").mkdir()  # cut off while it was written
    assert first.latest() == tmp_path / "s" / "checkpoint-10"
    assert Snapshots(tmp_path / "s", every=2, key="one").latest() is not None
    assert Snapshots(tmp_path / "s", every=2, key="other").latest() is None
    assert Snapshots(tmp_path / "s", every=None, key="other").latest() is None


def test_trackers_are_checked_before_the_first_step() -> None:
    check_trackers(())
    with pytest.raises(RecipeError, match="report_to mlflow is unknown"):
        check_trackers(["mlflow"])
    with pytest.raises(RecipeError, match="pip install wandb"):
        check_trackers(["wandb"])
