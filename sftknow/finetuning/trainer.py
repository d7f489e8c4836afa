"""TRL's SFTTrainer as this project uses it: ids as they are, in the order of the draw, watched, and silent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from sftknow.errors import DeviceError, ModelError, RecipeError
from sftknow.finetuning.determinism import deterministic_algorithms
from sftknow.finetuning.examples import Example
from sftknow.finetuning.recipe import SFTRecipe
from sftknow.finetuning.snapshots import Snapshots
from sftknow.progress import progress

TRACKERS = ("trackio", "wandb", "tensorboard")
"""Trackers that transformers knows by these names, each a package of that name."""


class _SilentTrainer(SFTTrainer):  # type: ignore[misc]
    """TRL's trainer without its report of every training to the Hub: nothing leaves the machine unasked."""

    def _send_telemetry(self) -> None:
        return


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Moves the bar and stops a training that has diverged, instead of letting it save noise."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update()

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float], **kwargs: Any) -> None:
        loss = logs.get("loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            raise ModelError(f"the training diverged: loss is {loss} at step {state.global_step}; lower learning_rate")
        self.bar.set_postfix_str(f"loss {loss:.3f}")


def build_trainer(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    scratch: Path,
    *,
    recipe: SFTRecipe,
    seed: int,
    report_to: Sequence[str] = (),
    name: str = "sftknow",
    save_steps: int | None = None,
) -> Any:
    """The SFTTrainer of one training, its collator and order of examples included."""
    config = SFTConfig(
        output_dir=str(scratch),
        seed=seed,
        learning_rate=(recipe.lora and recipe.lora.learning_rate) or recipe.learning_rate,
        per_device_train_batch_size=recipe.at_once,
        gradient_accumulation_steps=recipe.batch_size // recipe.at_once,
        num_train_epochs=recipe.epochs,
        optim=recipe.optimizer,
        lr_scheduler_type=recipe.lr_scheduler,
        warmup_steps=recipe.warmup_ratio,  # below 1 it is a share of the steps
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        bf16=recipe.autocast == "bfloat16",
        fp16=recipe.autocast == "float16",
        use_cpu=not torch.cuda.is_available(),
        train_sampling_strategy="sequential",
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        activation_checkpointing=False,
        save_strategy="steps" if save_steps else "no",
        save_steps=save_steps or 500,
        save_total_limit=2,
        eval_strategy="no",
        report_to=list(report_to) or "none",
        run_name=name,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        log_level="error",
        disable_tqdm=True,
    )
    # One device, whatever else is in the machine: otherwise the effective batch would be a multiple of batch_size.
    config._n_gpu = min(config.n_gpu, 1)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    trainer = _SilentTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_dict(
            {"input_ids": [e.input_ids for e in examples], "labels": [e.labels for e in examples]}
        ),
        data_collator=DataCollatorForLanguageModeling(pad_token_id=pad),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    wanted = {"bfloat16": "bf16", "float16": "fp16", None: "no"}[recipe.autocast]
    if trainer.accelerator.mixed_precision != wanted:
        raise DeviceError(
            f"accelerate is set to mixed precision {trainer.accelerator.mixed_precision} and the recipe asks for "
            f"{recipe.compute_dtype}; unset ACCELERATE_MIXED_PRECISION"
        )
    return trainer


def train_in_place(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    scratch: Path,
    *,
    snapshots: Snapshots,
    recipe: SFTRecipe,
    seed: int,
    report_to: Sequence[str] = (),
    name: str = "sftknow",
) -> tuple[list[dict[str, float]], str]:
    """Train a model where it is, from its last snapshot where there is one.

    Args:
        scratch: a folder for the trainer where it takes no snapshots; it may leave things there.
        snapshots: where to go on from, and where to keep the next ones.

    Returns:
        The loss curve, an entry a step (see `sftknow.finetuning.train.fine_tune`), and the type of the device.

    Raises:
        ModelError: the loss is no longer finite.
        DeviceError: accelerate is set to another precision than the recipe's.
        RecipeError: a tracker is not installed.
    """
    check_trackers(report_to)
    steps = math.ceil(len(examples) / recipe.batch_size) * recipe.epochs
    resume = snapshots.latest()
    done = int(resume.name.rpartition("-")[2]) if resume else 0
    with deterministic_algorithms(), progress(steps, "fine-tuning", unit="steps", done=done) as bar:
        trainer = build_trainer(
            model,
            tokenizer,
            examples,
            snapshots.folder if snapshots.every else scratch,
            recipe=recipe,
            seed=seed,
            report_to=report_to,
            name=name,
            save_steps=snapshots.every,
        )
        trainer.add_callback(_Watch(bar))
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    names = ("step", "epoch", "loss", "learning_rate", "grad_norm", "mean_token_accuracy")
    curve = [{key: entry[key] for key in names if key in entry} for entry in entries]
    if len(curve) != steps:
        raise RuntimeError(f"{len(curve)} steps were logged where {steps} were planned")
    return curve, trainer.args.device.type


def check_trackers(names: Sequence[str]) -> None:
    """Raise RecipeError for a tracker that is unknown or not installed: a run must not end at its first step."""
    for name in names:
        if name not in TRACKERS:
            raise RecipeError(f"report_to {name} is unknown; it must be one of {', '.join(TRACKERS)}")
        if find_spec(name) is None:
            raise RecipeError(f"report_to {name}: the package is not installed; run: pip install {name}")
