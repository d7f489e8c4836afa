"""TRL's SFTTrainer as this project uses it: ids as they are, in the order of the draw, watched, and silent."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import set_seed  # type: ignore[import-untyped]
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback

from sftknow.dependencies import needs, unsuitable
from sftknow.errors import ModelError
from sftknow.progress import progress
from sftknow.training.determinism import deterministic_algorithms
from sftknow.training.distributed import Ranks, filled, sharding, whole_weights
from sftknow.training.examples import IGNORED, Example
from sftknow.training.recipe import OnStep, SFTRecipe
from sftknow.training.snapshots import Snapshots
from sftknow.training.strategies import Hooks, Pass

with needs("trl"):
    from trl import SFTTrainer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling


_WEIGHT = "weight"
"""Column of the examples' weights."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a training gave, beside the model that it changed."""

    curve: list[dict[str, float]]
    """An entry a step; see `sftknow.training.train.fine_tune`."""
    device: str
    """Type of the device."""
    sharding: str | None
    """How the weights were spread over several processes: ``fsdp``, ``deepspeed`` or not at all."""
    weights: dict[str, torch.Tensor] | None
    """Where they were: all of them on the CPU in the main process, by name, and nothing in the others. None where the
    model itself holds them."""


class _Trainer(SFTTrainer):  # type: ignore[misc]
    """TRL's trainer with a strategy's hooks, and without its report of every training to the Hub."""

    hooks = Hooks()

    def _send_telemetry(self) -> None:  # nothing leaves the machine unasked
        return

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        weights = inputs.pop(_WEIGHT, None)
        called = model if weights is None else _Weighed(model, weights)
        loss = super().compute_loss(called, inputs, return_outputs, num_items_in_batch)
        counted = (inputs["labels"] != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        here = Pass(
            model=model,
            inputs={name: inputs[name] for name in ("input_ids", "attention_mask", "labels")},
            tokens=torch.as_tensor(counted, device=loss.device).clamp(min=1) / self.accelerator.num_processes,
            passes=self.current_gradient_accumulation_steps,
        )
        if self.hooks.plain_share != 1:
            loss = self.hooks.plain_share * loss
        penalty = self.hooks.penalty(here)
        return loss if penalty is None else loss + penalty

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)
        self.hooks.after_backward(self.state.global_step + 1)
        return loss


class _Collator(DataCollatorForLanguageModeling):  # type: ignore[misc]
    """Passes the weights of examples on, where there are any."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call(examples)
        if _WEIGHT in examples[0]:
            batch[_WEIGHT] = torch.tensor([example[_WEIGHT] for example in examples])
        return batch


class _Weighed:
    """A model as TRL's trainer calls it for the log-probabilities of tokens, each times the weight of its example."""

    def __init__(self, model: Any, weights: torch.Tensor) -> None:
        self._model, self._weights = model, weights

    def __call__(self, **inputs: Any) -> Any:
        outputs = self._model(**inputs)
        if getattr(outputs, "log_probs", None) is None:
            raise unsuitable("trl", "outputs.log_probs, by which examples are weighed")
        outputs.log_probs = outputs.log_probs * self._weights[:, None].to(outputs.log_probs.dtype)
        return outputs


class _Updates(TrainerCallback):  # type: ignore[misc]
    """Tells a strategy's hooks of each update."""

    def __init__(self, hooks: Hooks) -> None:
        self.hooks = hooks

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.hooks.before_update(kwargs["optimizer"], state.global_step + 1)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        with torch.no_grad():
            self.hooks.after_update(kwargs["optimizer"], state.global_step + 1)


class Watch(TrainerCallback):  # type: ignore[misc]
    """Tells how far it is and stops a training that has diverged, instead of letting it save noise."""

    def __init__(self, tell: OnStep) -> None:
        self.tell = tell

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.tell(state.global_step, state.max_steps, None)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float], **kwargs: Any) -> None:
        loss = logs.get("loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            raise ModelError(f"the training diverged: loss is {loss} at step {state.global_step}; lower learning_rate")
        self.tell(state.global_step, state.max_steps, loss)


def build_trainer(
    model: Any, tokenizer: Any, examples: Sequence[Example], arguments: Any, hooks: Hooks | None = None
) -> Any:
    """The SFTTrainer of one training, its collator and order of examples included.

    Args:
        model: what to train.
        tokenizer: the model's.
        examples: in training order.
        arguments: see `sftknow.training.arguments.training_arguments`.
        hooks: of a strategy; None for plain fine-tuning.

    Raises:
        DependencyError: TRL reports trainings to the Hub in a way that is not known here.
    """
    if not hasattr(SFTTrainer, "_send_telemetry"):  # another name would let a report of every training out
        raise unsuitable("trl", "SFTTrainer._send_telemetry, which is switched off here")
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    columns: dict[str, list[Any]] = {
        "input_ids": [e.input_ids for e in examples],
        "labels": [e.labels for e in examples],
    }
    if any(e.weight != 1 for e in examples):
        columns[_WEIGHT] = [e.weight for e in examples]
        arguments.remove_unused_columns = False  # TRL knows of no such column
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict(columns),
        data_collator=_Collator(pad_token_id=pad),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    if hooks is not None:
        trainer.hooks = hooks
        trainer.add_callback(_Updates(hooks))
    return trainer


def train_in_place(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    arguments: Any,
    *,
    ranks: Ranks,
    snapshots: Snapshots,
    recipe: SFTRecipe,
    hooks: Hooks | None = None,
    on_step: OnStep | None = None,
) -> Training:
    """Train a model where it is, from its last snapshot where there is one.

    Args:
        model: what to train; every process has its own, of the same bits.
        tokenizer: the model's.
        examples: in training order.
        arguments: of the trainer.
        ranks: the processes.
        snapshots: where to go on from, and where to keep the next ones.
        recipe: how to train.
        hooks: of the recipe's strategy.
        on_step: is told in the main process how far it is; None shows a bar.

    Raises:
        ModelError: the loss is no longer finite.
    """
    steps = math.ceil(len(examples) / recipe.batch_size) * recipe.epochs
    resume = ranks.on_main(snapshots.latest)
    done = int(resume.name.rpartition("-")[2]) if resume else 0
    with deterministic_algorithms(), _told(ranks, on_step, steps, done) as tell:
        trainer = build_trainer(
            model, tokenizer, filled(examples, recipe, ranks.count, tokenizer.eos_token_id), arguments, hooks
        )
        trainer.add_callback(Watch(tell))
        if ranks.count > 1:
            # From here on chance is dropout's, and must not be the same for every part of a batch.
            set_seed(arguments.seed, device_specific=True)
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        weights = whole_weights(trainer)
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    names = ("step", "epoch", "loss", "learning_rate", "grad_norm", "mean_token_accuracy")
    curve = [{key: entry[key] for key in names if key in entry} for entry in entries]
    if len(curve) != steps:
        raise RuntimeError(f"{len(curve)} steps were logged where {steps} were planned")
    return Training(curve=curve, device=arguments.device.type, sharding=sharding(trainer.accelerator), weights=weights)


@contextmanager
def _told(ranks: Ranks, on_step: OnStep | None, steps: int, done: int) -> Iterator[OnStep]:
    """Who is told of each step: the caller, a bar, and nobody outside the main process."""
    if not ranks.main:
        yield lambda step, total, loss: None
    elif on_step is not None:
        on_step(done, steps, None)
        yield on_step
    else:
        with step_bar(steps, done) as tell:
            yield tell


@contextmanager
def step_bar(steps: int, done: int) -> Iterator[OnStep]:
    """A bar of steps of which some are done; gives what moves it."""
    with progress(steps, "fine-tuning", unit="steps", done=done) as bar:

        def tell(step: int, total: int, loss: float | None) -> None:
            bar.update(step - bar.n)
            if loss is not None:
                bar.set_postfix_str(f"loss {loss:.3f}")

        yield tell
