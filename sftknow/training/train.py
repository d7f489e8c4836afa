"""Fine-tune one model on one draw of facts: the paper's recipe through TRL's SFTTrainer.

The trainer gets token ids and labels as they are (see `examples`); it tokenises, cuts, drops and shuffles nothing. It
writes nothing either: the checkpoint is put together here and appears whole or not at all.
"""

from __future__ import annotations

import copy
import gc
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sftknow import processes
from sftknow.artifacts.files import atomic_folder, digest, write_json
from sftknow.artifacts.manifests import write_manifest
from sftknow.errors import MasteryDataError
from sftknow.models.limits import most_positions
from sftknow.models.loading import name_dtype, quiet_libraries, reference
from sftknow.records import Fact, ModelRef, TrainedModel
from sftknow.training import checkpoint
from sftknow.training.arguments import training_arguments
from sftknow.training.base import LoadedBase, check_device, load_base, parameter_count
from sftknow.training.distributed import Ranks, check_deepspeed, check_spread
from sftknow.training.examples import Example, encode
from sftknow.training.lora import prepare
from sftknow.training.recipe import SFTRecipe, TrainingOptions
from sftknow.training.snapshots import Snapshots
from sftknow.training.strategies import Knowledge, Scene
from sftknow.training.trainer import Training, train_in_place

__all__ = ["LoadedBase", "TrainingSet", "fact_encoder", "fine_tune", "fine_tune_on", "load_base"]

LOSS_CURVE = "loss.json"


def fine_tune(
    base: str | Path | ModelRef,
    facts: Sequence[Fact],
    out: str | Path,
    *,
    recipe: SFTRecipe,
    seed: int,
    manifest: Mapping[str, Any],
    loaded: LoadedBase | None = None,
    options: TrainingOptions | None = None,
    knowledge: Knowledge | None = None,
) -> TrainedModel:
    """Fine-tune a base on facts and write the whole checkpoint to `out`, or nothing.

    On one machine with one number of threads the same arguments give the same bytes of weights.

    Args:
        base: the model to start from: a folder, ``org/name[@revision]``, ``lab``, or a reference to one of these.
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
        knowledge: what the base was found to know, for the strategies that use it.

    Raises:
        MasteryDataError: no facts.
        ModelError: a base that cannot be used, a fact without answer tokens, or a training that diverged.
        RecipeError: a fact longer than ``recipe.max_length``.
        DeviceError: a dtype that this machine cannot compute in.
        CheckpointError: too little room on the disk, or `out` is the base itself or a folder of something else; each
            noticed before the first step.
    """
    out = Path(out)
    if not facts:
        raise MasteryDataError("there are no facts to train on; draw at least one")

    return fine_tune_on(
        reference(base),
        fact_encoder(
            facts,
            recipe,
            bucket=manifest.get("bucket", manifest.get("draw", {}).get("bucket")),
            knowledge=knowledge,
        ),
        out,
        recipe=recipe,
        seed=seed,
        manifest=manifest,
        loaded=loaded,
        options=options,
    )


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """Training sequences and what ``sftknow.json`` says of where they come from."""

    examples: Sequence[Example]
    """In training order, at least one."""
    record: Mapping[str, Any]
    """Goes into ``sft``: ``size`` and ``data_sha256`` at least."""
    knowledge: Knowledge | None = None
    """What the base was found to know, for strategies that use it."""


def fact_encoder(
    facts: Sequence[Fact], recipe: SFTRecipe, *, bucket: int | None, knowledge: Knowledge | None = None
) -> Callable[[Any, int | None], TrainingSet]:
    """What makes facts into training sequences, for `fine_tune_on`.

    Args:
        facts: in training order.
        recipe: what counts in the loss, and how long a sequence may be.
        bucket: of the facts, for the record; None for several.
        knowledge: what the base was found to know.
    """

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
                "bucket": bucket,
                "fact_ids": [fact.id for fact in facts],
                "data_sha256": digest([[fact.question, fact.object] for fact in facts]),
            },
            knowledge=knowledge,
        )

    return encoded


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
    check_device(recipe)
    check_spread(recipe, bool(processes.sharding_switches()))
    kept = out.with_name(f".{out.name}.trainer")
    arguments = training_arguments(
        recipe,
        kept,
        seed=seed,
        report_to=options.report_to,
        name=out.name,
        save_steps=options.save_steps,
    )
    ranks = Ranks()
    ranks.on_main(lambda: checkpoint.check_place(out, base))
    if loaded is None:
        loaded = load_base(base, recipe)
        model = loaded.copy_model() if recipe.strategy and recipe.strategy.keeps_base else loaded.model
    else:
        if loaded.ref != base or loaded.dtype != recipe.load_dtype:
            raise ValueError(f"loaded is {loaded.ref} in {loaded.dtype}, not {base} in {recipe.load_dtype}")
        model = loaded.copy_model()
    recipe = recipe.saving_like(loaded.stored_dtype)
    if arguments.deepspeed_plugin is not None:
        check_deepspeed(recipe)
    data = encoded(loaded.tokenizer, most_positions(model.config))
    strategy = recipe.strategy
    scene = Scene(
        model=model,
        base=loaded.model if strategy is not None and strategy.keeps_base else None,
        tokenizer=loaded.tokenizer,
        recipe=recipe,
        seed=seed,
        knowledge=data.knowledge,
    )
    if strategy is not None:
        data = strategy.prepare(data, scene)
    parameters, dtype = parameter_count(model), getattr(torch, str(recipe.save_dtype))
    ranks.on_main(lambda: checkpoint.check_space(out, parameters, dtype))
    # What the checkpoint says about itself is the base's; the trainer writes its own notes into the model's.
    config, generation = copy.deepcopy(model.config), checkpoint.generation_config(model, loaded.tokenizer)
    with atomic_folder(out) if ranks.main else nullcontext(), quiet_libraries():
        partial = out.with_name(f".{out.name}.partial")
        snapshots = ranks.on_main(
            lambda: Snapshots(
                kept,
                every=options.save_steps,
                key=digest(
                    # What several processes left, each its part, is of no use to another number of them.
                    [recipe.record(), seed, data.record, str(base), manifest.get("base"), *ranks.kind]
                ),
            )
        )
        if not options.save_steps:
            arguments.output_dir = str(partial / "trainer")
        adapters = None if strategy is None else strategy.adapt(scene)
        if adapters is None:
            adapters = prepare(model, recipe.lora, seed)
        hooks = None if strategy is None else strategy.start(scene)
        training = train_in_place(
            adapters.model,
            loaded.tokenizer,
            data.examples,
            arguments,
            ranks=ranks,
            snapshots=snapshots,
            recipe=recipe,
            hooks=hooks,
            on_step=options.on_step,
        )
        if ranks.main:
            shutil.rmtree(partial / "trainer", ignore_errors=True)
            model, weights = adapters.merged(training.weights)
            model.config, model.generation_config = config, generation
            checkpoint.save(model, loaded.tokenizer, partial, dtype, weights)
            # A base that loads in float32 has a fine-tuned model that does, whatever it is stored in: widening loses
            # nothing, and others then score it in the arithmetic that it was scored in here.
            name_dtype(partial, "float32" if loaded.named_dtype == "float32" else None)
            write_json(partial / LOSS_CURVE, training.curve)
            sft = {"recipe": recipe.record(), "seed": seed, **data.record, **_outcome(training, ranks)}
            origin = {"path": base.path, "revision": loaded.revision, **manifest.get("base", {})}
            write_manifest(partial, "model", {**manifest, "base": origin, "sft": sft})
    if ranks.main:
        snapshots.clear()
    # The trainer's patches make cycles out of the model; without this a grid would hold several models at a time.
    del model, adapters, hooks, scene
    gc.collect()
    return TrainedModel(
        checkpoint=out,
        base=ModelRef(path=base.path, revision=loaded.revision, dtype=recipe.load_dtype),
        recipe=recipe.record(),
        steps=len(training.curve),
        final_loss=training.curve[-1]["loss"],
    )


def _outcome(training: Training, ranks: Ranks) -> dict[str, Any]:
    """What ``sftknow.json`` says of how the training went."""
    several = {"processes": ranks.count, "sharding": training.sharding} if ranks.count > 1 else {}
    return {
        "steps": len(training.curve),
        "final_loss": training.curve[-1]["loss"],
        "device": training.device,
        **several,
        "versions": checkpoint.versions(),
    }
