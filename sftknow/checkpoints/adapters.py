"""LoRA adapters as peft saves them: which kinds can be merged into their base exactly, and what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sftknow.checkpoints.index import TensorEntry, listed, read_header
from sftknow.checkpoints.reader import FLOAT_BITS
from sftknow.errors import CheckpointError
from sftknow.untrusted import load_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_PREFIX = "base_model.model."

# What a merge does not depend on, or what the adapter's tensors say already.
_HARMLESS = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora",
    "modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
    "megatron_core", "trainable_token_indices", "loftq_config", "eva_config", "use_dora", "qalora_group_size",
    "runtime_config", "lora_bias", "ensure_weight_tying", "corda_config", "lora_ga_config", "_custom_modules",
}  # fmt: skip
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Ways to begin that leave the base as it is; the others (PiSSA, OLoRA, CorDA, LoftQ …) change it at every load."""


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter of peft's, which stands for a model only together with its base."""
    return (folder / CONFIG).is_file()


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter that can be merged exactly."""

    folder: Path
    config: Mapping[str, Any]
    """``adapter_config.json``."""
    tensors: Mapping[str, TensorEntry]
    """By their names without peft's prefix."""

    @cached_property
    def base(self) -> tuple[str, str | None]:
        """What it names as its base: a folder or ``org/name``, and the revision."""
        revision = self.config.get("revision")
        return str(self.config.get("base_model_name_or_path") or ""), str(revision) if revision else None

    @classmethod
    def read(cls, folder: Path) -> Adapter:
        """Read what an adapter is, but not its tensors.

        Raises:
            CheckpointError: a missing or damaged file, or a kind of adapter that cannot be merged exactly.
        """
        config = load_json(folder / CONFIG, error=CheckpointError, lenient=True)
        if not isinstance(config, dict):
            raise CheckpointError(f"{folder / CONFIG} is damaged; copy or download it again")
        _refuse_kind(folder, config)
        if not (folder / WEIGHTS).is_file():
            raise CheckpointError(
                f"{folder} has no {WEIGHTS}, and pickled weights are never opened; save the adapter again with a peft "
                "of today"
            )
        found: dict[str, TensorEntry] = {}
        for entry in read_header(folder / WEIGHTS):
            name = entry.name.removeprefix(_PREFIX)
            if ".original_module." in name:  # what modules_to_save stand for, and no longer needed
                continue
            if ".modules_to_save." in name:  # stored once more where embeddings are saved
                found.setdefault(name.replace(".modules_to_save.", "."), entry)
            else:
                found[name] = entry
        broken = [name for name, entry in found.items() if entry.dtype not in FLOAT_BITS]
        if broken or not found:
            raise CheckpointError(f"{folder / WEIGHTS} holds no LoRA weights ({listed(broken) or 'it is empty'})")
        return cls(folder=folder, config=config, tensors=found)


def _refuse_kind(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse what is no LoRA, or LoRA with something that a merge does not reproduce."""
    kind, start = config.get("peft_type"), config.get("init_lora_weights")
    way_out = "merge it where it was trained (merge_and_unload), save_pretrained that, and give its folder"
    if kind != "LORA":
        raise CheckpointError(f"{folder} is an adapter of kind {kind}, and only LoRA is merged exactly; {way_out}")
    if start not in _PLAIN_STARTS:
        raise CheckpointError(
            f"{folder} was begun as {start}, which changes the base itself, so its own base is not the one that it "
            f"names; {way_out}"
        )
    for name, value in config.items():
        if name in ("rank_pattern", "alpha_pattern") and not isinstance(value, dict | None):
            raise CheckpointError(f"{folder / CONFIG}: {name} is {value!r} and no object; copy or download it again")
        if value and name not in _HARMLESS:
            raise CheckpointError(f"{folder} is LoRA with {name}, which is not merged exactly; {way_out}")
