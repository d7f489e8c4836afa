"""The base model of a fine-tuning: loaded once, checked before any training, copied for every cell."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from transformers import AutoModelForCausalLM

from sftknow import processes
from sftknow.checkpoints.adapters import is_adapter
from sftknow.errors import DeviceError, ModelError
from sftknow.models.loading import dtype_on_disk, load_config, load_model, load_tokenizer, named_dtype, quiet_libraries
from sftknow.options import Dtype
from sftknow.records import ModelRef
from sftknow.training.recipe import SFTRecipe

_SPREAD = "ds_shape"
"""DeepSpeed's mark, and the shape, of a parameter that it spread over the processes while it was loaded."""


@dataclass(frozen=True, kw_only=True)
class LoadedBase:
    """A base in memory, never trained itself: every cell trains a copy of its own and so starts from the same bits."""

    ref: ModelRef
    revision: str | None
    """The commit on the Hub that was loaded, or what the reference names; None for a local folder."""
    dtype: str
    """Dtype of the weights in memory."""
    named_dtype: str | None
    """The dtype that its config names for loading; the fine-tuned model's will name it too."""
    stored_dtype: Dtype | None
    """The dtype that most of its weights are stored in; None for one that fine-tuning does not write."""
    model: Any
    """A transformers causal LM on the CPU."""
    tokenizer: Any
    """Its tokenizer, as it was stored."""

    def copy_model(self) -> Any:
        """A model of the same bits, tied weights tied, that shares no memory with this one."""
        return copy.deepcopy(self.model)


def load_base(ref: ModelRef, recipe: SFTRecipe) -> LoadedBase:
    """Load a base and its tokenizer and check that they can be fine-tuned here.

    Args:
        ref: the base. Its own ``dtype`` does not count here: the recipe's ``load_dtype`` does.
        recipe: names the dtypes.

    Raises:
        DeviceError: this machine cannot compute in ``recipe.compute_dtype``.
        ModelError: an adapter, no such model or revision, weights missing or only as pickles, no tokenizer, no EOS
            token, or a tokenizer with more tokens than the model has embeddings.
    """
    check_device(recipe)
    if is_adapter(Path(ref.path)):
        raise ModelError(
            f"{ref} is an adapter, and fine-tuning starts from a whole model; merge it into its base and save"
        )
    tokenizer = _load_tokenizer(ref)
    model = _load_model(ref, recipe.load_dtype)
    rows = _shape(model.get_input_embeddings().weight)[0]
    if len(tokenizer) > rows:
        raise ModelError(
            f"{ref}: the tokenizer has {len(tokenizer)} tokens and the model {rows} embeddings, so the vocabulary "
            "would have to grow; resize the base first or give the tokenizer that belongs to it"
        )
    revision = getattr(model.config, "_commit_hash", None) or ref.revision
    return LoadedBase(
        ref=ref,
        revision=revision,
        dtype=recipe.load_dtype,
        named_dtype=named_dtype(ref),
        stored_dtype=dtype_on_disk(ref, revision),
        model=model,
        tokenizer=tokenizer,
    )


def check_device(recipe: SFTRecipe) -> None:
    """Raise DeviceError where this machine cannot compute in the recipe's dtype."""
    cuda = torch.cuda.is_available()
    if recipe.compute_dtype == "float16" and not cuda:
        raise DeviceError("compute_dtype float16 needs a CUDA device and there is none; use float32 or bfloat16")
    if recipe.compute_dtype == "bfloat16" and cuda and not torch.cuda.is_bf16_supported():
        raise DeviceError("this CUDA device cannot compute in bfloat16; set load_dtype and compute_dtype to float32")


def _load_tokenizer(ref: ModelRef) -> Any:
    tokenizer = load_tokenizer(ref)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{ref} has a tokenizer without an EOS token; set eos_token in its tokenizer_config.json")
    return tokenizer


def _load_model(ref: ModelRef, dtype: str) -> Any:
    if processes.weights_come_from_another():
        return _without_weights(ref, dtype)
    model = load_model(ref, dtype=dtype)
    # Weights as loaded may lie in a mapped file at any alignment, and kernels may sum in another order there than in
    # torch's own memory. In memory of its own the same bits always train to the same bits.
    for tensor in [*model.parameters(), *model.buffers()]:
        if not hasattr(tensor, _SPREAD):
            tensor.data = tensor.data.clone()
    return model


def _without_weights(ref: ModelRef, dtype: str) -> Any:
    """The model with parameters that nobody ever wrote to, and with the buffers that are computed and not stored.

    Such memory is only promised: the system provides a page when it is first touched. Parameters without any memory at
    all would do as well, but accelerate tells them apart by their addresses.
    """
    with quiet_libraries(), init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(load_config(ref), dtype=getattr(torch, dtype), trust_remote_code=False)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(torch.empty_like(parameter, device="cpu")))
    model.tie_weights()
    return model.eval()


def parameter_count(model: Any) -> int:
    """Elements of all parameters, wherever they lie."""
    return sum(math.prod(_shape(parameter)) for parameter in model.parameters())


def _shape(parameter: Any) -> tuple[int, ...]:
    """The parameter's own shape, also where this process holds only a part of it."""
    return tuple(getattr(parameter, _SPREAD, parameter.shape))
