"""A loaded model moved between levels equals the checkpoint that is written for the level and loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    SiglipVisionConfig,
)

from sftknow.errors import CheckpointError
from sftknow.parameters.change import analyse
from sftknow.parameters.in_memory import ModelLevels, restore_
from sftknow.parameters.restore import restore_levels
from sftknow.records import RestorePlan

LEVELS = ("1%", "20%", "40%", "60%", "100%")
ALL = ("0%", *LEVELS)
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def llama() -> torch.nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def save_pair(folder: Path, model: torch.nn.Module, base_dtype: str, tuned_dtype: str) -> tuple[Path, Path]:
    model.to(DTYPES[base_dtype]).save_pretrained(folder / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            moved = torch.rand_like(parameter, dtype=torch.float32) < 0.5
            parameter.mul_(torch.where(moved, 1.02, 1.0).to(parameter.dtype))
    model.to(DTYPES[tuned_dtype]).save_pretrained(folder / "tuned", max_shard_size="8KB")
    return folder / "base", folder / "tuned"


def load(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model


def state(model: torch.nn.Module) -> dict[str, bytes]:
    return {name: value.contiguous().view(torch.uint8).numpy().tobytes() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("base_dtype", "tuned_dtype", "loaded"),
    [
        ("BF16", "BF16", torch.bfloat16),
        ("BF16", "BF16", torch.float32),
        ("F16", "F16", torch.float16),
        ("F32", "F32", torch.float32),
        ("F32", "F32", torch.bfloat16),
        ("F32", "BF16", torch.bfloat16),
        ("BF16", "F32", torch.float32),
    ],
)
def test_every_pair_of_levels(tmp_path: Path, base_dtype: str, tuned_dtype: str, loaded: torch.dtype) -> None:
    base, tuned = save_pair(tmp_path, llama(), base_dtype, tuned_dtype)
    plan = analyse(base, tuned, LEVELS).plan
    done = restore_levels(base, tuned, plan, {level: tmp_path / level for level in LEVELS})
    wanted = {level: state(load(tmp_path / level, loaded)) for level in LEVELS}
    wanted["0%"] = state(load(tuned, loaded))
    model = load(tuned, loaded)
    levels = ModelLevels(model, base, tuned, plan)
    assert levels.level == "0%"
    touched = {}
    for before in ALL:
        for after in ALL:
            levels.to(before)
            touched[before, after] = levels.to(after)
            assert state(model) == wanted[after], (before, after)
    assert levels.level == "100%"
    assert touched["0%", "1%"] >= done[0].restored
    for before in ALL:
        assert touched[before, before] == 0
        for after in ALL:
            assert touched[before, after] == touched[after, before]
    assert touched["1%", "20%"] + touched["20%", "60%"] == touched["1%", "60%"], "only the difference is touched"


@pytest.fixture
def case(tmp_path: Path) -> tuple[Path, Path, RestorePlan]:
    base, tuned = save_pair(tmp_path, llama(), "BF16", "BF16")
    return base, tuned, analyse(base, tuned, LEVELS).plan


def test_from_wherever_the_model_is(case: tuple[Path, Path, RestorePlan], tmp_path: Path) -> None:
    base, tuned, plan = case
    restore_levels(base, tuned, plan, {"20%": tmp_path / "twenty"})
    model = load(tuned, torch.float32)
    assert restore_(model, base, plan, "20%") > 0  # the model says where it came from
    assert state(model) == state(load(tmp_path / "twenty", torch.float32))
    assert restore_(model, base, plan, "1/5", tuned=tuned) == 0
    assert ModelLevels(load(tmp_path / "twenty", torch.float32), base, tuned, plan).level == "20%"
    restore_(model, base, plan, "0%")
    assert state(model) == state(load(tuned, torch.float32))


def test_what_is_refused(case: tuple[Path, Path, RestorePlan], tmp_path: Path) -> None:
    base, tuned, plan = case
    model = load(tuned, torch.float32)
    with pytest.raises(CheckpointError, match="no level 30%"):
        ModelLevels(model, base, tuned, plan).to("30%")
    with pytest.raises(CheckpointError, match="is not the checkpoint that the plan was made from"):
        ModelLevels(model, base, tuned, dataclasses.replace(plan, base_sha256="0"))
    with pytest.raises(CheckpointError, match="give tuned=FOLDER"):
        restore_(llama(), base, plan, "20%")
    with pytest.raises(CheckpointError, match="neither"):
        ModelLevels(llama().double(), base, tuned, plan)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] += 1  # type: ignore[union-attr, index]
    before = state(model)
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight in the loaded model is neither"):
        restore_(model, base, plan, "20%")
    assert state(model) == before
    with pytest.raises(CheckpointError, match="no parameter like"):
        ModelLevels(torch.nn.Linear(2, 2), base, tuned, plan)
    # A mixture of levels: 1 % taken back, the rest of 60 % not.
    mixed = load(tuned, torch.float32)
    levels = ModelLevels(mixed, base, tuned, plan)
    levels.to("1%")
    least = {name: value.clone() for name, value in mixed.state_dict().items()}
    levels.to("60%")
    for name, value in load(tuned, torch.float32).state_dict().items():
        mixed.state_dict()[name].copy_(torch.where(least[name] != value, value, mixed.state_dict()[name]))
    with pytest.raises(CheckpointError, match="neither those of"):
        ModelLevels(mixed, base, tuned, plan)


def test_names_with_a_prefix(tmp_path: Path) -> None:
    """GPT-2 bases are stored without the prefix that the loaded model has."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2))
    model.transformer.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    model.save_pretrained(tmp_path / "tuned")
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    plan = analyse(base, tuned, ["30%"]).plan
    restore_levels(base, tuned, plan, {"30%": tmp_path / "thirty"})
    loaded = load(tuned, torch.float32)
    restore_(loaded, base, plan, "30%")
    assert state(loaded) == state(load(tmp_path / "thirty", torch.float32))


def mixtral() -> torch.nn.Module:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=3, num_experts_per_tok=2, tie_word_embeddings=False,
    )  # fmt: skip
    return MixtralForCausalLM(config)


def gemma3() -> torch.nn.Module:
    """Language and vision model in one, with another name for every tensor on disk."""
    torch.manual_seed(0)
    text = Gemma3TextConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4))


@pytest.mark.parametrize("make", [mixtral, gemma3])
def test_models_that_are_loaded_under_other_names(tmp_path: Path, make: Callable[[], torch.nn.Module]) -> None:
    """transformers packs Mixtral's experts into two parameters a layer, and renames what a wrapper holds."""
    base, tuned = save_pair(tmp_path, make(), "BF16", "BF16")
    plan = analyse(base, tuned, LEVELS).plan
    restore_levels(base, tuned, plan, {level: tmp_path / level for level in LEVELS})
    model = load(tuned, torch.bfloat16)
    levels = ModelLevels(model, base, tuned, plan)
    for level in ("20%", "100%", "1%"):
        assert levels.to(level) > 0
        assert state(model) == state(load(tmp_path / level, torch.bfloat16)), level
    levels.to("0%")
    assert state(model) == state(load(tuned, torch.bfloat16))
