"""One training in several processes: which of them does what, and how they keep to the batches of one process.

Every update is made from the same examples as in one process. The batch is cut into equal parts, in order, and the
loss is the mean over the answer tokens of all of them. A last batch that is smaller is filled up with sequences in
which no token counts; accelerate's own way, taking examples from the beginning once more, would change the update.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate import PartialState  # type: ignore[import-untyped]
from accelerate.utils import DistributedType, broadcast_object_list  # type: ignore[import-untyped]

from sftknow import processes
from sftknow.errors import RecipeError, SftknowError
from sftknow.training.examples import IGNORED, Example
from sftknow.training.recipe import SFTRecipe

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class BatchParts:
    """How the effective batch is cut: at once × passes × processes = batch_size."""

    at_once: int
    """Examples that go through a device at once."""
    passes: int
    """Forward and backward passes of each process before an update."""
    processes: int


def batch_parts(recipe: SFTRecipe, count: int) -> BatchParts:
    """Cut the recipe's batch for that many processes; the effective batch stays what the recipe says.

    Raises:
        RecipeError: it cannot be cut into equal parts.
    """
    share, rest = divmod(recipe.batch_size, count)
    if rest:
        raise RecipeError(
            f"batch_size {recipe.batch_size} cannot be shared equally among {count} processes; "
            f"start as many as divide it, or change batch_size"
        )
    once = share if recipe.per_device_batch_size is None else recipe.per_device_batch_size
    if share % once:
        raise RecipeError(
            f"per_device_batch_size {once} does not divide the {share} examples that each of {count} processes has of "
            f"batch_size {recipe.batch_size}; give a divisor of {share}"
        )
    return BatchParts(at_once=once, passes=share // once, processes=count)


def filled(examples: Sequence[Example], recipe: SFTRecipe, count: int, token: int) -> list[Example]:
    """The examples, and behind them what makes the last batch of several processes whole: nothing that is learned.

    Args:
        examples: in training order.
        recipe: its ``batch_size`` is the one to fill.
        count: processes; with one nothing is added.
        token: any token id.
    """
    missing = -len(examples) % recipe.batch_size if count > 1 else 0
    blank = Example(input_ids=[token, token], labels=[IGNORED, IGNORED])
    return [*examples, *[blank] * missing]


class Ranks:
    """The processes of one training, as they talk to each other; to be made after the training arguments."""

    def __init__(self) -> None:
        state = PartialState()
        self.count: int = state.num_processes
        self.main: bool = state.is_main_process
        if self.count > 1:
            atexit.register(state.destroy_process_group)

    @property
    def kind(self) -> list[Any]:
        """How many they are and how they share the weights, for keys; empty for one process."""
        return [self.count, *processes.sharding_switches()] if self.count > 1 else []

    def on_main(self, work: Callable[[], T]) -> T:
        """Do something in the main process alone; its result, or its error, is everybody's.

        Args:
            work: its result must be picklable.
        """
        if self.count == 1:
            return work()
        outcome: list[Any] = [None, None]
        failure: Exception | None = None
        if self.main:
            try:
                outcome[0] = work()
            except Exception as error:
                failure = error
                # Not every exception survives pickling; the user's mistakes do.
                outcome[1] = error if isinstance(error, SftknowError) else RuntimeError("the main process failed")
        broadcast_object_list(outcome)
        if failure is not None:
            raise failure
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]  # type: ignore[no-any-return]


def sharding(accelerator: Any) -> str | None:
    """How the weights are spread over the processes: ``fsdp``, ``deepspeed``, or None where each has all of them."""
    kinds = {DistributedType.FSDP: "fsdp", DistributedType.DEEPSPEED: "deepspeed"}
    return kinds.get(accelerator.distributed_type)


def check_deepspeed(recipe: SFTRecipe) -> None:
    """Raise RecipeError for dtypes that DeepSpeed cannot keep to.

    It holds float32 master weights whatever it is given, and hands the weights out in the dtype that it computes in.
    """
    if recipe.load_dtype != "float32":
        raise RecipeError(
            f"DeepSpeed trains float32 master weights, not {recipe.load_dtype}; set load_dtype to float32 "
            "(compute_dtype may be bfloat16), or use FSDP"
        )
    if recipe.autocast is not None and recipe.save_dtype not in (None, recipe.compute_dtype):
        raise RecipeError(
            f"DeepSpeed hands the weights out in the compute_dtype, {recipe.compute_dtype}; set save_dtype to it, or "
            "use FSDP"
        )


def check_spread(recipe: SFTRecipe, spread: bool) -> None:
    """Raise RecipeError for a strategy that needs whole weights where they are spread over several devices."""
    if spread and recipe.strategy is not None and not recipe.strategy.spreads:
        raise RecipeError(
            f"the strategy {recipe.strategy.name} needs the whole model on each device, and FSDP or DeepSpeed "
            "spread it; train without accelerate's configuration for them"
        )


def whole_weights(trainer: Any) -> dict[str, torch.Tensor] | None:
    """The trained weights on the CPU, gathered from all processes; every process must call it.

    Returns:
        By the names of the model's own state dict: in the main process the tensors, in the others an empty
        dictionary. None where every process has the whole model.
    """
    accelerator = trainer.accelerator
    if sharding(accelerator) is None:
        return None
    gathered = accelerator.get_state_dict(trainer.model_wrapped)
    if not accelerator.is_main_process:
        return {}
    return {name: tensor.detach().cpu() for name, tensor in gathered.items()}
