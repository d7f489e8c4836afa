"""The fine-tuned model on disk: where it may go, whether it fits, and how its files are written."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from sftknow import __version__
from sftknow.artifacts.files import readable
from sftknow.checkpoints.side_files import refuse_foreign
from sftknow.errors import CheckpointError, ModelError
from sftknow.machine import free_space
from sftknow.models.limits import end_ids
from sftknow.models.loading import name_dtype
from sftknow.records import ModelRef
from sftknow.training.examples import chat_template

_PACKAGES = ("torch", "transformers", "trl", "accelerate", "tokenizers", "safetensors")
_BESIDE_WEIGHTS = 64 * 2**20
"""Bytes allowed for tokenizer, configuration and notes when free space is checked."""


def save(
    model: Any, tokenizer: Any, folder: Path, dtype: torch.dtype, weights: dict[str, torch.Tensor] | None = None
) -> None:
    """Write weights, configuration, generation configuration and tokenizer.

    Args:
        model: a transformers model with the configurations that are to be written.
        tokenizer: of the model.
        folder: where to write.
        dtype: of the weights on disk.
        weights: by name, on the CPU, where the model itself does not hold them whole; taken apart while written.

    Raises:
        ModelError: a weight is not finite in that dtype.
    """
    if weights is None:
        model.to(device="cpu", dtype=dtype)
        _check_finite(dict(model.named_parameters()), dtype)
        model.save_pretrained(folder)
    else:
        for tied in model.all_tied_weights_keys if model.config.get_text_config().tie_word_embeddings else ():
            weights.pop(tied, None)
        for name in weights:
            if weights[name].is_floating_point():
                weights[name] = weights[name].to(dtype)
        _check_finite(weights, dtype)
        model.save_pretrained(folder, state_dict=weights)
        name_dtype(folder, str(dtype).removeprefix("torch."))
    own = tokenizer.chat_template
    tokenizer.chat_template = chat_template()
    try:
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.chat_template = own
    readable(folder, "config.json")


def _check_finite(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{name} is not finite in {dtype} after training; lower learning_rate or save in float32")


def generation_config(model: Any, tokenizer: Any) -> Any:
    """Greedy, stopping at the end token that is trained and at those of the base."""
    stops = list(end_ids(tokenizer, model.generation_config))
    return GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=stops if len(stops) > 1 else stops[0],
        pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
    )


def check_place(out: Path, base: ModelRef) -> None:
    """Raise CheckpointError where writing to `out` would replace the base or something that is no model of ours."""
    if out.exists() and Path(base.path).is_dir() and out.samefile(base.path):
        raise CheckpointError(f"{out} is the base model itself; give another place for the fine-tuned one")
    refuse_foreign(out)


def check_space(out: Path, parameters: int, dtype: torch.dtype) -> None:
    """Raise CheckpointError where a checkpoint of so many parameters would not fit beside what is there."""
    need = parameters * dtype.itemsize + _BESIDE_WEIGHTS
    place, free = free_space(out)
    if free < need:
        raise CheckpointError(
            f"{out} needs {need / 1e9:.2f} GB and {place} has {free / 1e9:.2f} GB free; make room or give another place"
        )


def versions() -> dict[str, str]:
    """Versions of what has a say in the weights."""
    packages = {name: version(name) for name in _PACKAGES}
    return {"sftknow": __version__, "python": platform.python_version(), **packages}
