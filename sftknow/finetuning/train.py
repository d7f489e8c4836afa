"""Fine-tune one model on one draw of facts: the paper's recipe through TRL's SFTTrainer.

The trainer gets token ids and labels as they are (see `examples`); it tokenises, cuts, drops and shuffles nothing. It
writes nothing either: the checkpoint is put together here and appears whole or not at all.
"""

from __future__ import annotations

import copy
import gc
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from sftknow import __version__
from sftknow.errors import CheckpointError, MasteryDataError, ModelError
from sftknow.finetuning.base import LoadedBase, check_device, load_base
from sftknow.finetuning.examples import Example, chat_template, encode
from sftknow.finetuning.lora import merged, prepare
from sftknow.finetuning.recipe import SFTRecipe
from sftknow.finetuning.snapshots import Snapshots
from sftknow.finetuning.trainer import train_in_place
from sftknow.records import Fact, ModelRef, TrainedModel
from sftknow.storage.artifacts import atomic_folder, digest, write_json
from sftknow.storage.manifests import MANIFEST, write_manifest
from sftknow.storage.models import name_dtype, quiet_libraries

__all__ = ["LoadedBase", "TrainingOptions", "TrainingSet", "fine_tune", "fine_tune_on", "load_base"]

LOSS_CURVE = "loss.json"
_PACKAGES = ("torch", "transformers", "trl", "accelerate", "tokenizers", "safetensors")
_BESIDE_WEIGHTS = 64 * 2**20
"""Bytes allowed for tokenizer, configuration and notes when free space is checked."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What goes on beside a training and leaves its weights as they are."""

    report_to: tuple[str, ...] = ()
    """Trackers of transformers' own, such as ``trackio`` or ``wandb``; none by default: nothing leaves the machine."""
    save_steps: int | None = None
    """Steps between two snapshots from which a start after a kill goes on; None for none."""


def fine_tune(
    base: ModelRef,
    facts: Sequence[Fact],
    out: Path,
    *,
    recipe: SFTRecipe,
    seed: int,
    manifest: Mapping[str, Any],
    loaded: LoadedBase | None = None,
    options: TrainingOptions | None = None,
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
        options: what goes on beside the training: tracking, snapshots. None for neither.

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

    def encoded(tokenizer: Any, positions: int | None) -> TrainingSet:
        examples = encode(
            tokenizer,
            facts,
            answer_only_loss=recipe.answer_only_loss,
            max_length=recipe.max_length,
            positions=positions,
        )
        return TrainingSet(
            examples=examples,
            record={
                "size": len(facts),
                "bucket": manifest.get("bucket", manifest.get("draw", {}).get("bucket")),
                "fact_ids": [fact.id for fact in facts],
                "data_sha256": digest([[fact.question, fact.object] for fact in facts]),
            },
        )

    return fine_tune_on(base, encoded, out, recipe=recipe, seed=seed, manifest=manifest, loaded=loaded, options=options)


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """Training sequences and what ``sftknow.json`` says of where they come from."""

    examples: Sequence[Example]
    """In training order, at least one."""
    record: Mapping[str, Any]
    """Goes into ``sft``: ``size`` and ``data_sha256`` at least."""


def fine_tune_on(
    base: ModelRef,
    encoded: Callable[[Any, int | None], TrainingSet],
    out: Path,
    *,
    recipe: SFTRecipe,
    seed: int,
    manifest: Mapping[str, Any],
    loaded: LoadedBase | None = None,
    options: TrainingOptions | None = None,
) -> TrainedModel:
    """As `fine_tune`, on any sequences.

    Args:
        base: the model to start from.
        encoded: makes the training set from the tokenizer and the longest sequence that the model takes (None: no
            limit); what it raises is raised before any training.
        out: as `fine_tune`.
        recipe: as `fine_tune`.
        seed: as `fine_tune`.
        manifest: as `fine_tune`.
        loaded: as `fine_tune`.
        options: as `fine_tune`.
    """
    options = options or TrainingOptions()
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
    data = encoded(tokenizer, getattr(model.config.get_text_config(), "max_position_embeddings", None))
    _check_space(out, model, getattr(torch, recipe.save_dtype))
    # What the checkpoint says about itself is the base's; the trainer writes its own notes into the model's.
    config, generation = copy.deepcopy(model.config), _generation_config(model, tokenizer)
    with atomic_folder(out) as partial, quiet_libraries():
        snapshots = Snapshots(
            out.with_name(f".{out.name}.trainer"),
            every=options.save_steps,
            key=digest([asdict(recipe), seed, data.record, str(base), manifest.get("base")]),
        )
        model = prepare(model, recipe.lora, seed)
        curve, device = train_in_place(
            model,
            tokenizer,
            data.examples,
            partial / "trainer",
            snapshots=snapshots,
            recipe=recipe,
            seed=seed,
            report_to=options.report_to,
            name=out.name,
        )
        shutil.rmtree(partial / "trainer", ignore_errors=True)
        model = merged(model, recipe.lora)
        model.config, model.generation_config = config, generation
        _save(model, tokenizer, partial, getattr(torch, recipe.save_dtype))
        # A base that loads in float32 has a fine-tuned model that does, whatever it is stored in: widening loses
        # nothing, and others then score it in the arithmetic that it was scored in here.
        name_dtype(partial, "float32" if loaded.named_dtype == "float32" else None)
        write_json(partial / LOSS_CURVE, curve)
        sft = {
            "recipe": asdict(recipe),
            "seed": seed,
            **data.record,
            "steps": len(curve),
            "final_loss": curve[-1]["loss"],
            "device": device,
            "versions": _versions(),
        }
        origin = {"path": base.path, "revision": loaded.revision, **manifest.get("base", {})}
        write_manifest(partial, "model", {**manifest, "base": origin, "sft": sft})
    snapshots.clear()
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
