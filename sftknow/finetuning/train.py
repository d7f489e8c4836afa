"""Fine-tune one model on one draw of facts: the paper's recipe through TRL's SFTTrainer.

The trainer gets token ids and labels as they are (see `examples`); it tokenises, cuts, drops and shuffles nothing. It
writes nothing either: the checkpoint is put together here and appears whole or not at all.
"""

from __future__ import annotations

import copy
import gc
import math
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import GenerationConfig, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from sftknow import __version__
from sftknow.errors import CheckpointError, DeviceError, MasteryDataError, ModelError
from sftknow.finetuning.base import LoadedBase, check_device, load_base
from sftknow.finetuning.determinism import deterministic_algorithms
from sftknow.finetuning.examples import Example, chat_template, encode
from sftknow.finetuning.recipe import SFTRecipe
from sftknow.progress import progress
from sftknow.records import Fact, ModelRef, TrainedModel
from sftknow.storage.artifacts import atomic_folder, digest, write_json
from sftknow.storage.manifests import MANIFEST, write_manifest
from sftknow.storage.models import quiet_libraries

__all__ = ["LoadedBase", "fine_tune", "load_base"]

LOSS_CURVE = "loss.json"
_PACKAGES = ("torch", "transformers", "trl", "accelerate", "tokenizers", "safetensors")
_BESIDE_WEIGHTS = 64 * 2**20
"""Bytes allowed for tokenizer, configuration and notes when free space is checked."""


def fine_tune(
    base: ModelRef,
    facts: Sequence[Fact],
    out: Path,
    *,
    recipe: SFTRecipe,
    seed: int,
    manifest: Mapping[str, Any],
    loaded: LoadedBase | None = None,
) -> TrainedModel:
    """Fine-tune a base on facts and write the whole checkpoint to `out`, or nothing.

    On one machine with one number of threads the same arguments give the same bytes of weights.

    Args:
        base: the model to start from.
        facts: training facts in training order: their questions and objects.
        out: the checkpoint's folder; one that is there is replaced at the very end. It gets the weights (safetensors,
            ``recipe.save_dtype``), configuration, a greedy generation configuration, the tokenizer with appendix A's
            chat template, ``loss.json`` (a list with an entry a step: step, epoch, loss in nats a token, learning_rate,
            grad_norm, mean_token_accuracy) and ``sftknow.json``.
        recipe: how to train.
        seed: of whatever is random in training (dropout); the draw's own seed where the caller made a draw.
        manifest: what else ``sftknow.json`` shall hold, such as ``mastery_dataset``. Its ``base`` is put over what is
            known here (path and revision). The bucket noted in ``sft``, beside recipe, seed, size, fact ids, data hash
            and versions, is its ``bucket``, or that of its ``draw``, or null.
        loaded: the same base from `load_base`, to train many models from one load; it is not changed. None loads it.

    Raises:
        MasteryDataError: no facts.
        ModelError: a base that cannot be used, a fact without answer tokens, or a training that diverged.
        RecipeError: a fact longer than ``recipe.max_length``.
        DeviceError: a dtype that this machine cannot compute in.
        CheckpointError: too little room on the disk, or `out` is the base itself or a folder of something else; each
            noticed before the first step.
    """
    if not facts:
        raise MasteryDataError("there are no facts to train on; draw at least one")
    _check_place(out, base)
    check_device(recipe)
    if loaded is None:
        loaded = load_base(base, recipe)
        model = loaded.model
    else:
        if loaded.ref != base or loaded.dtype != recipe.load_dtype:
            raise ValueError(f"loaded is {loaded.ref} in {loaded.dtype}, not {base} in {recipe.load_dtype}")
        model = loaded.copy_model()
    tokenizer = loaded.tokenizer
    examples = encode(
        tokenizer,
        facts,
        answer_only_loss=recipe.answer_only_loss,
        max_length=recipe.max_length,
        positions=getattr(model.config.get_text_config(), "max_position_embeddings", None),
    )
    _check_space(out, model, getattr(torch, recipe.save_dtype))
    # What the checkpoint says about itself is the base's; the trainer writes its own notes into the model's.
    config, generation = copy.deepcopy(model.config), _generation_config(model, tokenizer)
    with atomic_folder(out) as partial, quiet_libraries():
        curve, device = _train(model, tokenizer, examples, partial / "trainer", recipe=recipe, seed=seed)
        model.config, model.generation_config = config, generation
        _save(model, tokenizer, partial, getattr(torch, recipe.save_dtype))
        write_json(partial / LOSS_CURVE, curve)
        sft = {
            "recipe": asdict(recipe),
            "seed": seed,
            "size": len(facts),
            "bucket": manifest.get("bucket", manifest.get("draw", {}).get("bucket")),
            "fact_ids": [fact.id for fact in facts],
            "data_sha256": digest([[fact.question, fact.object] for fact in facts]),
            "steps": len(curve),
            "final_loss": curve[-1]["loss"],
            "device": device,
            "versions": _versions(),
        }
        origin = {"path": base.path, "revision": loaded.revision, **manifest.get("base", {})}
        write_manifest(partial, "model", {**manifest, "base": origin, "sft": sft})
    # The trainer's patches make cycles out of the model; without this a grid would hold several models at a time.
    del model
    gc.collect()
    return TrainedModel(
        checkpoint=out,
        base=ModelRef(path=base.path, revision=loaded.revision, dtype=recipe.load_dtype),
        recipe=asdict(recipe),
        steps=len(curve),
        final_loss=curve[-1]["loss"],
    )


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


def _trainer(
    model: Any, tokenizer: Any, examples: Sequence[Example], scratch: Path, *, recipe: SFTRecipe, seed: int
) -> Any:
    """The SFTTrainer of one training, its collator and order of examples included."""
    config = SFTConfig(
        output_dir=str(scratch),
        seed=seed,
        learning_rate=recipe.learning_rate,
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=1,
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
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
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


def _train(
    model: Any, tokenizer: Any, examples: Sequence[Example], scratch: Path, *, recipe: SFTRecipe, seed: int
) -> tuple[list[dict[str, float]], str]:
    """Train the model in place; return the loss curve and the device. Leaves nothing on disk."""
    steps = math.ceil(len(examples) / recipe.batch_size) * recipe.epochs
    with deterministic_algorithms(), progress(steps, "fine-tuning", unit="steps") as bar:
        trainer = _trainer(model, tokenizer, examples, scratch, recipe=recipe, seed=seed)
        trainer.add_callback(_Watch(bar))
        trainer.train()
    if scratch.exists():
        shutil.rmtree(scratch)
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    names = ("step", "epoch", "loss", "learning_rate", "grad_norm", "mean_token_accuracy")
    curve = [{name: entry[name] for name in names if name in entry} for entry in entries]
    if len(curve) != steps:
        raise RuntimeError(f"{len(curve)} steps were logged where {steps} were planned")
    return curve, trainer.args.device.type


def _save(model: Any, tokenizer: Any, folder: Path, dtype: torch.dtype) -> None:
    """Write weights, configuration, generation configuration and tokenizer."""
    model.to(device="cpu", dtype=dtype)
    for name, tensor in model.named_parameters():
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{name} is not finite in {dtype} after training; lower learning_rate or save in float32")
    model.save_pretrained(folder)
    own = tokenizer.chat_template
    tokenizer.chat_template = chat_template()
    try:
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.chat_template = own


def _generation_config(model: Any, tokenizer: Any) -> Any:
    """Greedy, stopping at the end token that is trained and at those of the base."""
    stored = model.generation_config
    stops = stored.eos_token_id if isinstance(stored.eos_token_id, list) else [stored.eos_token_id]
    stops = [tokenizer.eos_token_id, *(t for t in stops if t is not None and t != tokenizer.eos_token_id)]
    return GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=stops if len(stops) > 1 else stops[0],
        pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
    )


def _check_place(out: Path, base: ModelRef) -> None:
    """Raise CheckpointError where writing to `out` would replace the base or something that is no model of ours."""
    if out.exists() and Path(base.path).is_dir() and out.samefile(base.path):
        raise CheckpointError(f"{out} is the base model itself; give another place for the fine-tuned one")
    foreign = out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file())
    if foreign:
        raise CheckpointError(f"{out} holds something else than a model of sftknow; give a new or an empty folder")


def _check_space(out: Path, model: Any, dtype: torch.dtype) -> None:
    """Raise CheckpointError where the checkpoint would not fit beside what is there."""
    need = sum(p.numel() for p in model.parameters()) * dtype.itemsize + _BESIDE_WEIGHTS
    place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if free < need:
        raise CheckpointError(
            f"{out} needs {need / 1e9:.2f} GB and {place} has {free / 1e9:.2f} GB free; make room or give another place"
        )


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in _PACKAGES}
    return {"sftknow": __version__, "python": platform.python_version(), **packages}
