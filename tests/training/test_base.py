"""Bases that cannot be fine-tuned are refused before any training, in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from sftknow.errors import CheckpointError, DeviceError, ModelError
from sftknow.records import ModelRef
from sftknow.training.base import check_device, load_base
from sftknow.training.recipe import SFTRecipe
from tests.tiny import tiny_llama, tiny_tokenizer


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may spoil."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def refused(folder: Path | str, match: str, *, revision: str | None = None) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        load_base(ModelRef(path=str(folder), revision=revision), SFTRecipe())
    assert "\n" not in str(caught.value)


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **changes}))


def test_weights_are_held_in_the_dtype_named(tiny_model: Path) -> None:
    stored = load_file(tiny_model / "model.safetensors")
    recipe = SFTRecipe(load_dtype="bfloat16", compute_dtype="bfloat16")
    loaded = load_base(ModelRef(path=str(tiny_model), dtype="float16"), recipe)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}
    for name, tensor in load_base(ModelRef(path=str(tiny_model)), SFTRecipe()).model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, stored[name])


def test_a_copy_has_the_same_bits_and_no_memory_in_common(tiny_model: Path) -> None:
    loaded = load_base(ModelRef(path=str(tiny_model)), SFTRecipe())
    copied = loaded.copy_model()
    for (name, ours), theirs in zip(loaded.model.state_dict().items(), copied.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
        assert ours.data_ptr() != theirs.data_ptr()


def test_no_such_model(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere has no tokenizer")
    refused("nobody/nothing", "nobody/nothing@v9 has no tokenizer", revision="v9")


def test_no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    refused(folder, "has no tokenizer")


def test_no_eos_token(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    content = json.loads(file.read_text())
    del content["eos_token"]
    file.write_text(json.dumps(content))
    refused(folder, "without an EOS token")


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(folder, "cannot be loaded as a causal language model")


def test_a_vision_language_model_is_named_by_its_kind(folder: Path) -> None:
    transformers.LlavaConfig().save_pretrained(folder)
    refused(folder, "transformers has none of the kind Llava; save the language model within it")


def test_pickled_weights_are_not_unpickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refused(folder, "cannot be loaded")


def test_damaged_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="is not a whole safetensors file"):
        load_base(ModelRef(path=str(folder)), SFTRecipe())


def test_a_missing_tensor_is_not_made_up(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, "lacks 1 tensors, such as model.layers.1.mlp.up_proj.weight")


def test_a_model_of_another_shape(folder: Path) -> None:
    edit(folder / "config.json", intermediate_size=32)
    refused(folder, "cannot be loaded")


def test_a_vocabulary_that_would_have_to_grow(folder: Path) -> None:
    grown = tiny_tokenizer()
    grown.add_tokens(["<extra>"])
    grown.save_pretrained(folder)
    refused(folder, "vocabulary would have to grow")


def test_an_adapter_is_no_base(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, "merge it")


def test_dtypes_that_the_machine_cannot_compute_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    # The device is looked at before the model is: this one is not even there.
    with pytest.raises(DeviceError, match="float16 needs a CUDA device"):
        load_base(ModelRef(path=str(tmp_path)), SFTRecipe(compute_dtype="float16"))
    check_device(SFTRecipe(compute_dtype="bfloat16"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    check_device(SFTRecipe(compute_dtype="float16"))
    with pytest.raises(DeviceError, match="cannot compute in bfloat16"):
        check_device(SFTRecipe(compute_dtype="bfloat16"))


def test_loading_is_silent_and_leaves_the_libraries_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_llama(tmp_path / "model", tiny_tokenizer())
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    capsys.readouterr()
    load_base(ModelRef(path=str(folder)), SFTRecipe())
    assert capsys.readouterr() == ("", "")
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before
