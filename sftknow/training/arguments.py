"""The settings of TRL's trainer, every one that matters named, for one process or one of several.

They are made before the model is loaded: with them the processes find each other, and DeepSpeed tells transformers to
spread the weights over the processes while they are read.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import torch
from trl import SFTConfig

from sftknow import processes
from sftknow.dependencies import unsuitable
from sftknow.errors import DeviceError, RecipeError
from sftknow.training.distributed import batch_parts, check_deepspeed
from sftknow.training.recipe import SFTRecipe, Tracker

TRACKERS = get_args(Tracker)
"""Trackers that transformers knows by these names, each a package of that name."""


def training_arguments(
    recipe: SFTRecipe,
    scratch: Path,
    *,
    seed: int,
    report_to: Sequence[str] = (),
    name: str = "sftknow",
    save_steps: int | None = None,
) -> Any:
    """TRL's SFTConfig of one training.

    Args:
        recipe: how to train.
        scratch: folder of the trainer's own: snapshots, and what else it may leave there.
        seed: of whatever is random in training.
        report_to: trackers.
        name: what they call the training.
        save_steps: steps between two snapshots; None for none.

    Raises:
        RecipeError: the batch cannot be shared by the processes that were started, a tracker is not there, or dtypes
            that DeepSpeed cannot keep to.
        DeviceError: accelerate is set to another precision than the recipe's, or the processes were started by
            something that does not tell them their places.
        DependencyError: TRL or transformers do not have one of the settings.
    """
    check_trackers(report_to)
    parts = batch_parts(recipe, processes.count())
    known = inspect.signature(SFTConfig).parameters
    # 5.19 has the second name alone.
    old = "gradient_checkpointing" in known and "activation_checkpointing" not in known
    options: dict[str, Any] = {
        "output_dir": str(scratch),
        "seed": seed,
        "learning_rate": recipe.peak_learning_rate,
        "per_device_train_batch_size": parts.at_once,
        "gradient_accumulation_steps": parts.passes,
        "average_tokens_across_devices": True,
        "num_train_epochs": recipe.epochs,
        "optim": recipe.optimizer,
        "lr_scheduler_type": recipe.lr_scheduler,
        "warmup_steps": recipe.warmup_ratio,  # below 1 it is a share of the steps
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "bf16": recipe.autocast == "bfloat16",
        "fp16": recipe.autocast == "float16",
        "use_cpu": not torch.cuda.is_available(),
        "train_sampling_strategy": "sequential",
        "max_length": None,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "gradient_checkpointing" if old else "activation_checkpointing": False,
        "save_strategy": "steps" if save_steps else "no",
        "save_steps": save_steps or 500,
        "save_total_limit": 2,
        "eval_strategy": "no",
        "report_to": list(report_to) or "none",
        "run_name": name,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "log_level": "error",
        "log_level_replica": "error",
        "disable_tqdm": True,
        **(recipe.strategy.trainer_settings() if recipe.strategy else {}),
    }
    if unknown := sorted(set(options) - set(known)):
        raise unsuitable("trl", f"SFTConfig({', '.join(unknown)})")
    config = SFTConfig(**options)
    if config.world_size != parts.processes:  # as under mpirun
        raise DeviceError(
            f"{parts.processes} processes were announced and {config.world_size} found each other; start them with "
            "accelerate launch or torchrun"
        )
    # Without a launcher one device, whatever else is in the machine: otherwise the effective batch would be a multiple.
    config._n_gpu = min(config.n_gpu, 1)
    if config.n_gpu > 1:
        raise unsuitable("transformers", "TrainingArguments._n_gpu, by which one device is taken of several")
    _check_precision(config, recipe)
    if config.deepspeed_plugin is not None:
        check_deepspeed(recipe)
    return config


def _check_precision(config: Any, recipe: SFTRecipe) -> None:
    wanted = {"bfloat16": "bf16", "float16": "fp16", None: "no"}[recipe.autocast]
    if config.mixed_precision != wanted:
        raise DeviceError(
            f"accelerate is set to mixed precision {config.mixed_precision} and the recipe asks for "
            f"{recipe.compute_dtype}; unset ACCELERATE_MIXED_PRECISION and take mixed_precision out of accelerate's "
            "configuration: the recipe names the dtypes"
        )


def check_trackers(names: Sequence[str]) -> None:
    """Raise RecipeError for a tracker that is unknown or not installed: a run must not end at its first step."""
    for name in names:
        if name not in TRACKERS:
            raise RecipeError(f"report_to {name} is unknown; it must be one of {', '.join(TRACKERS)}")
        if find_spec(name) is None:
            raise RecipeError(f"report_to {name}: the package is not installed; run: pip install {name}")
