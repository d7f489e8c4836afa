"""Weights spread over processes (FSDP) train to the same model, which is gathered and written whole.

accelerate shards on GPUs only; here it is told that gloo processes are such devices. PyTorch's FSDP itself, the shipped
configuration and everything of ours run as they do there.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from sftknow.artifacts.files import read_json
from sftknow.records import ModelRef
from sftknow.resources import recipe_folder
from sftknow.training import base, checkpoint, distributed, trainer
from sftknow.training.lora import merge_weights, prepare
from sftknow.training.recipe import LoraSettings, SFTRecipe, TrainingOptions
from sftknow.training.train import fine_tune, load_base
from tests.tiny import tiny_tokenizer
from tests.training.test_distributed import RECIPE, same_training, uneven_facts
from tests.training.together import one_thread, together

CONFIGURATIONS = sorted((recipe_folder() / "accelerate").glob("*.yaml"))


def shard(monkeypatch: pytest.MonkeyPatch, config: str = "fsdp-8b") -> None:
    """What `accelerate launch --config_file` tells its processes, with gloo in the place of NCCL."""
    settings = yaml.safe_load((recipe_folder() / "accelerate" / f"{config}.yaml").read_text())["fsdp_config"]
    for name, value in {**settings, "accelerate_use_fsdp": True, "accelerate_torch_device": "cpu"}.items():
        monkeypatch.setenv(name.upper(), str(value).lower() if isinstance(value, bool) else str(value))
    monkeypatch.setattr(PartialState, "_prepare_backend", lambda *_, **__: ("gloo", DistributedType.MULTI_GPU))
    torch.distributed.init_process_group("gloo")


def tied_base(folder: Path) -> ModelRef:
    """A GPT-2, whose head is its embedding, and which stores its layers' weights the other way round."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=0, eos_token_id=1
    )
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelRef(path=str(folder))


def train_both(
    ref: ModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: SFTRecipe, **more: Any
) -> tuple[Path, Path]:
    """Train in one process and, sharded, in two."""
    facts = uneven_facts(21)
    with one_thread():
        fine_tune(ref, facts, tmp_path / "one", recipe=recipe, seed=0, manifest={})

    def work(rank: int) -> None:
        shard(monkeypatch)
        gather = trainer.whole_weights

        def looking(built: Any) -> Any:
            parts = [parameter.to_local().numel() for parameter in built.model.parameters()]
            assert sum(parts) < 0.6 * sum(p.numel() for p in built.model.parameters()), "each has about a half"
            return gather(built)

        monkeypatch.setattr(trainer, "whole_weights", looking)
        if rank == 1:
            monkeypatch.setattr(base, "load_model", None)  # it must not read the weights
        fine_tune(ref, facts, tmp_path / "two", recipe=recipe, seed=0, manifest={}, **more)

    codes = together(work, tmp_path / "said")
    assert codes == [0, 0], [(tmp_path / "said" / f"rank{i}.txt").read_text()[-2000:] for i in (0, 1)]
    return tmp_path / "one", tmp_path / "two"


def test_a_sharded_training_gives_the_whole_model(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = train_both(ModelRef(path=str(tiny_model)), tmp_path, monkeypatch, RECIPE)
    same_training(one, two)
    assert read_json(two / "sftknow.json")["sft"]["sharding"] == "fsdp"
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in two.iterdir())
    for name in ("config.json", "generation_config.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


@pytest.mark.slow
def test_it_is_stored_in_the_dtype_named(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = dataclasses.replace(RECIPE, save_dtype="bfloat16", compute_dtype="bfloat16", per_device_batch_size=2)
    one, two = train_both(ModelRef(path=str(tiny_model)), tmp_path, monkeypatch, recipe)
    assert {t.dtype for t in load_file(two / "model.safetensors").values()} == {torch.bfloat16}
    assert (one / "config.json").read_bytes() == (two / "config.json").read_bytes()
    losses = [[entry["loss"] for entry in read_json(folder / "loss.json")] for folder in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=5e-3), "arithmetic in bfloat16"


@pytest.mark.slow
def test_sharded_adapters_are_merged(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = dataclasses.replace(RECIPE, lora=LoraSettings(rank=2, alpha=6))
    same_training(*train_both(ModelRef(path=str(tiny_model)), tmp_path, monkeypatch, recipe))


@pytest.mark.slow
def test_tied_weights_stay_tied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same_training(*train_both(tied_base(tmp_path / "base"), tmp_path, monkeypatch, RECIPE))


@pytest.mark.slow
def test_a_sharded_training_goes_on_from_its_snapshot(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref, facts, options = ModelRef(path=str(tiny_model)), uneven_facts(21), TrainingOptions(save_steps=2)

    def dying(rank: int) -> None:
        shard(monkeypatch)

        def die(watch: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 3:
                os._exit(9)

        monkeypatch.setattr(trainer.Watch, "on_step_end", die)
        fine_tune(ref, facts, tmp_path / "two", recipe=RECIPE, seed=0, manifest={}, options=options)

    assert 9 in together(dying, tmp_path / "dying")
    assert (tmp_path / ".two.trainer" / "checkpoint-2" / "trainer_state.json").is_file()
    one, two = train_both(ref, tmp_path, monkeypatch, RECIPE, options=options)
    same_training(one, two)
    said = (tmp_path / "said" / "rank0.txt").read_text()
    assert "2/3" in said
    assert "0/3" not in said, "steps 1 and 2 are not done again"


def test_adapters_are_merged_by_name_as_peft_merges_them(tmp_path: Path) -> None:
    ref = tied_base(tmp_path / "base")
    for settings in (LoraSettings(rank=3, alpha=12), LoraSettings(rank=2, target_modules=("c_attn",))):
        adapters = prepare(load_base(ref, RECIPE).model, settings, 0)
        for name, parameter in adapters.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        assert "transformer.h.0.attn.c_attn" in adapters.transposed
        before = {name: tensor.clone() for name, tensor in adapters.model.state_dict().items()}
        by_name = merge_weights(before, settings, adapters.transposed)
        merged, _ = adapters.merged(None)
        expected = merged.state_dict()
        assert by_name.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(by_name[name], tensor, rtol=1e-6, atol=1e-6)


def test_gathered_weights_are_written_as_the_models_own_are(tmp_path: Path) -> None:
    ref = tied_base(tmp_path / "base")
    for folder, gathered in (("own", False), ("gathered", True)):
        loaded = load_base(ref, RECIPE)
        weights = {name: t.clone() for name, t in loaded.model.state_dict().items()} if gathered else None
        checkpoint.save(loaded.model, loaded.tokenizer, tmp_path / folder, torch.bfloat16, weights)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "own" / file).read_bytes() == (tmp_path / "gathered" / file).read_bytes()


def test_what_deepspeed_hands_out() -> None:
    """DeepSpeed itself is not here: its engine is a stand-in, which gives the weights to the main process alone."""
    engine = object()

    class Accelerator:
        distributed_type = DistributedType.DEEPSPEED

        def __init__(self, rank: int) -> None:
            self.is_main_process = rank == 0

        def get_state_dict(self, model: object) -> dict[str, torch.Tensor] | None:
            assert model is engine, "the engine gathers, not the model in it"
            return {"w": torch.ones(2, requires_grad=True)} if self.is_main_process else None

    for rank in (0, 1):
        built = SimpleNamespace(accelerator=Accelerator(rank), model_wrapped=engine)
        weights = distributed.whole_weights(built)
        assert weights is not None
        assert list(weights) == ["w"][: 1 - rank]
        assert not any(tensor.requires_grad for tensor in weights.values())
    alone = SimpleNamespace(accelerator=SimpleNamespace(distributed_type=DistributedType.MULTI_GPU))
    assert distributed.whole_weights(alone) is None


def test_parameters_are_counted_where_deepspeed_has_spread_them(tiny_model: Path) -> None:
    model = load_base(ModelRef(path=str(tiny_model)), RECIPE).model
    count = base.parameter_count(model)
    assert count == sum(parameter.numel() for parameter in model.parameters())
    for parameter in model.parameters():
        parameter.ds_shape = parameter.shape
        parameter.data = torch.empty(0)
    assert base.parameter_count(model) == count


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_shipped_configurations_are_accelerates(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config_from_file(str(path))
    expected = DistributedType.FSDP if path.stem.startswith("fsdp") else DistributedType.DEEPSPEED
    assert (config.distributed_type, config.num_processes, config.num_machines) == (expected, 8, 1)
    assert config.mixed_precision is None, "the recipe names the dtypes"
    parser = launch_command_parser()
    arguments = parser.parse_args(["--config_file", str(path), "--mixed_precision", "no", "script.py"])
    arguments.nondefault = set()
    known = set(vars(arguments))
    for section, prefix in ((config.fsdp_config, "fsdp_"), (config.deepspeed_config, "")):
        for name in section:
            assert (name if name.startswith(prefix) else prefix + name) in known, f"accelerate launch has no {name}"
    checked, _, _ = _validate_launch_command(arguments)
    assert (checked.use_fsdp, checked.use_deepspeed) == (
        expected == DistributedType.FSDP,
        expected == DistributedType.DEEPSPEED,
    )
    assert checked.mixed_precision == "no"


def test_there_are_configurations_for_both_sizes() -> None:
    assert [path.stem for path in CONFIGURATIONS] == [
        "deepspeed-zero3-70b",
        "deepspeed-zero3-8b",
        "fsdp-70b",
        "fsdp-8b",
    ]
