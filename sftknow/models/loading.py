"""Load a causal language model and its tokenizer: safetensors only, whole or not at all, without chatter."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from sftknow.artifacts.files import read_json, write_json
from sftknow.checkpoints.adapters import Adapter, is_adapter
from sftknow.checkpoints.deltas import is_delta
from sftknow.checkpoints.dtypes import stored_dtype
from sftknow.checkpoints.index import listed, read_header, read_index
from sftknow.checkpoints.merged import Merge
from sftknow.errors import DeviceError, ModelError, first_line
from sftknow.models.resolving import adapter_base, whole_folder
from sftknow.options import Dtype
from sftknow.records import ModelRef
from sftknow.resources import lab_folder

_UNLOADABLE = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)
"""What transformers raises for folders and repositories that hold no model it can load."""

SPREAD = "spread"
"""A device's name: all GPUs of this machine together, whole layers on each."""

_SAVE_IT = "save the tokenizer that the model was trained with beside its weights (tokenizer.save_pretrained)"


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Within the block transformers logs errors only and draws no bars; afterwards everything is as it was."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def find_device(name: str) -> torch.device:
    """The device of that name, ``auto`` being CUDA where there is some, and ``spread`` CUDA.

    Raises:
        DeviceError: this machine does not have it.
    """
    if name == SPREAD:
        if not torch.cuda.is_available():
            raise DeviceError("this machine has no GPUs to spread a model over; use cpu or auto")
        return torch.device("cuda")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise DeviceError(f"this machine has no device {name!r}; use cpu or auto") from None
    return torch.device(name)


def reference(model: str | Path | ModelRef) -> ModelRef:
    """A model as it can be loaded: `lab` and models that are stored small as the folders with their whole weights.

    Args:
        model: a folder, ``org/name[@revision]``, ``lab``, or a reference to one of these.

    Raises:
        CheckpointError, ModelError, HubError: as `sftknow.models.resolving.whole_folder`.
    """
    ref = model if isinstance(model, ModelRef) else ModelRef.parse(str(model))
    folder = Path(ref.path)
    if ref.path == "lab":
        folder = lab_folder() / "model"
    elif is_delta(folder):
        folder = whole_folder(folder)
    else:
        return ref
    return replace(ref, path=str(folder))


def load_tokenizer(model: str | Path | ModelRef) -> Any:
    """The tokenizer of a model; of an adapter without one, its base's.

    Args:
        model: see `reference`.

    Raises:
        ModelError: it has none that can be loaded, or one that knows special tokens only.
    """
    ref = reference(model)
    more = {}
    if is_adapter(Path(ref.path)):
        if not (Path(ref.path) / "tokenizer_config.json").is_file():
            return load_tokenizer(_config_of(ref))
        more = {"config": load_config(ref)}
    with quiet_libraries():
        try:
            tokenizer = AutoTokenizer.from_pretrained(ref.path, revision=ref.revision, trust_remote_code=False, **more)
        except _UNLOADABLE as error:
            raise ModelError(
                f"{ref} has no tokenizer that can be loaded ({' '.join(str(error).split())}); {_SAVE_IT}"
            ) from error
    # transformers makes an empty one of a tokenizer_config.json alone: it would turn every text into nothing.
    special = {*tokenizer.all_special_tokens, *map(str, getattr(tokenizer, "added_tokens_decoder", {}).values())}
    if not tokenizer.get_vocab().keys() - special - {"▁"}:
        raise ModelError(f"{ref} has a tokenizer without a vocabulary (no tokenizer.json or the like); {_SAVE_IT}")
    return tokenizer


def _why(error: Exception) -> str:
    """In place of transformers' list of all classes: which one it has no causal language model for."""
    found = re.search(r"Unrecognized configuration class <class '\S*?(\w+)Config'>", str(error))
    if not found:
        return first_line(error)
    return f"transformers has none of the kind {found[1]}; save the language model within it to a folder of its own"


def load_model(model: str | Path | ModelRef, *, dtype: str | None = None, device: str = "cpu") -> Any:
    """A causal language model in evaluation mode; an adapter merged into its own base, in memory.

    Args:
        model: see `reference`.
        dtype: name of a torch dtype; None takes that of the reference, and where it has none the stored one.
        device: see `find_device`; ``spread`` puts whole layers on each GPU, as evenly as they go (accelerate's
            ``balanced``), so that a model runs which no single one holds. One GPU works at a time.

    Raises:
        ModelError: there is no such model or revision; weights are missing (transformers would fill them with random
            numbers) or only there as pickles, which may run code; the dtype is none; an adapter's base is not found.
        CheckpointError: an adapter that cannot be merged into its base exactly; a weights file that is cut or damaged.
        DeviceError: the device is not there, or all GPUs together do not hold the model.
    """
    ref, target = reference(model), find_device(device)
    wanted = dtype or ref.dtype
    if wanted and not (
        isinstance(getattr(torch, wanted, None), torch.dtype) and getattr(torch, wanted).is_floating_point
    ):
        raise ModelError(f"{wanted!r} is no dtype to load a model in; use float32, bfloat16 or float16")
    if is_adapter(Path(ref.path)):
        return _load_merged(Path(ref.path), dtype=wanted, device=device)
    with quiet_libraries():
        try:
            loaded, info = AutoModelForCausalLM.from_pretrained(
                ref.path,
                revision=ref.revision,
                dtype=getattr(torch, wanted) if wanted else "auto",
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **({"device_map": "balanced"} if device == SPREAD else {}),
            )
        except _UNLOADABLE as error:
            for file in sorted(Path(ref.path).glob("*.safetensors")):
                read_header(file)  # of one that is cut or damaged it says so plainly
            raise ModelError(f"{ref} cannot be loaded as a causal language model ({_why(error)})") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(f"{ref} lacks {len(missing)} tensors, such as {missing[0]}, which would be random; mend it")
    if device == SPREAD:
        return _on_gpus_alone(loaded, ref).eval()
    return loaded.to(target).eval()


def _on_gpus_alone(model: Any, ref: ModelRef) -> Any:
    """The model, unless some of it did not fit: accelerate leaves that in main memory or on disk, without a word."""
    outside = [name for name, weight in model.named_parameters() if weight.device.type != "cuda"]
    if outside:
        raise DeviceError(
            f"the GPUs of this machine do not hold {ref}: {listed(outside)} would stay in main memory; load it in "
            "fewer bits (dtype), free the GPUs of other programs, or use device cpu"
        )
    return model


def _load_merged(folder: Path, *, dtype: str | None, device: str) -> Any:
    """An adapter's base with the adapter merged in: what merging, saving and loading again would give."""
    base = Path(adapter_base(folder).ref.path)
    merge = Merge(read_index(base), Adapter.read(folder))
    model = load_model(ModelRef(path=str(base)), dtype=dtype, device=device)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    absent = [name for name in merge.changed.values() if name not in parameters]
    if absent:
        raise ModelError(f"{folder} adapts {listed(absent)}, which the loaded model of {base} does not have")
    with torch.no_grad():
        for stored, name in merge.changed.items():
            parameters[name].copy_(merge.values(stored))
    return model


def load_config(model: str | Path | ModelRef) -> Any:
    """The configuration of a model, which costs nothing beside its weights.

    Args:
        model: see `reference`.

    Raises:
        ModelError: it has none that can be read.
    """
    ref = reference(model)
    with quiet_libraries():
        try:
            place = _config_of(ref)
            return AutoConfig.from_pretrained(place.path, revision=place.revision, trust_remote_code=False)
        except _UNLOADABLE as error:
            raise ModelError(f"{ref} has no configuration that can be read ({first_line(error)})") from error


def _config_of(ref: ModelRef) -> ModelRef:
    """The model whose configuration holds: of an adapter its base."""
    return adapter_base(Path(ref.path)).ref if is_adapter(Path(ref.path)) else ref


def named_dtype(ref: ModelRef) -> str | None:
    """The dtype that a model's config names for loading, such as ``bfloat16``; None where it names none."""
    config = load_config(ref)
    dtype = config.get_text_config().dtype or config.dtype
    return None if dtype is None else str(dtype).removeprefix("torch.")


def dtype_on_disk(ref: ModelRef, revision: str | None = None) -> Dtype | None:
    """The dtype that most weights of a model are stored in, whatever its config names.

    Args:
        ref: a folder, or a model on the Hub that has been loaded.
        revision: the commit that was loaded.

    Returns:
        As torch names it; None for one that fine-tuning does not write.
    """
    if Path(ref.path).is_dir():
        return stored_dtype(Path(ref.path))
    cached = try_to_load_from_cache(ref.path, "config.json", revision=revision or ref.revision)
    return stored_dtype(Path(cached).parent) if isinstance(cached, str) else None


def name_dtype(folder: Path, dtype: str | None) -> None:
    """Let a saved model's config name the dtype to load in, whatever its weights are stored in; None leaves it.

    Every loader that is told nothing goes by it: transformers, lm-eval, vLLM.
    """
    path = folder / "config.json"
    config = read_json(path)
    if dtype is not None and config.get("dtype") != dtype:
        write_json(path, {**config, "dtype": dtype})
