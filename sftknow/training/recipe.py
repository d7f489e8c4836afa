"""How models are fine-tuned: options that recipes and commands share. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal, cast

from sftknow.errors import OptionError
from sftknow.options import NOT_IN_RECIPES, Count, Dtype, Limits, NotNegative, Options, Positive, Share, shown_as
from sftknow.training.strategies import STRATEGIES as STRATEGIES, Strategy as Strategy

Optimizer = Literal["adamw_torch", "adamw_torch_fused", "adafactor", "sgd"]
"""Optimizers, by their names in transformers, that need no further package."""
Scheduler = Literal["cosine", "linear", "constant", "constant_with_warmup"]
Tracker = Literal["trackio", "wandb", "tensorboard"]
OnStep = Callable[[int, int, float | None], None]
"""Is told how far a training is: steps done, all steps, and the loss where it is known."""


@dataclass(frozen=True, kw_only=True)
class LoraSettings(Options):
    """Low-rank adapters (Hu et al. 2022). The paper's Table 7 names the method and no settings; these are common.

    In a run they are trained in the grid's ``lora`` cells.
    """

    rank: Count = 8
    """Rank of the adapters.

    The paper names LoRA (Table 7) and no setting of it. Rank 8, scaled by 2, without dropout, on every linear layer
    but the output head is a common choice."""
    alpha: Count = 16
    """The adapters' product is scaled by alpha ÷ rank."""
    dropout: Share = 0.0
    target_modules: Annotated[str, Limits(min_length=1)] | Annotated[tuple[str, ...], Limits(min_length=1)] = (
        "all-linear"
    )
    """Names of layers, or ``all-linear``: every linear layer but the output head."""
    learning_rate: Positive | None = None
    """None for the recipe's own; adapters usually take ten times that.

    The paper gives one rate, 1e-5, for all that it trains. At the rate of full fine-tuning adapters hardly learn: on
    240 mixed facts of the lab the last loss is 4.78 at it and 0.81 at ten times that, where full fine-tuning ends at
    0.84. The recipes with LoRA name ten times the rate."""


@dataclass(frozen=True, kw_only=True)
class SFTRecipe(Options):
    """The paper's training (3.3) by default: batch 8, one epoch, AdamW, cosine, 1e-5.

    Three dtypes decide which parameters count as changed, and none of them is left to a default of the libraries. The
    weights are held in `load_dtype` while they are trained, so an update smaller than its rounding is lost at every
    step; they are written in `save_dtype`, so a change smaller than its rounding is lost at the end.

    Raises:
        OptionError: a value out of range, an unknown name, or dtypes that cannot go together.
    """

    learning_rate: Positive = 1e-5
    """Peak learning rate."""
    batch_size: Count = 8
    """Examples behind one update, that is the effective batch."""
    per_device_batch_size: Count | None = None
    """Examples that go through a device at once, a divisor of the effective batch; gradients are summed over as many
    passes as that needs. None for the whole batch at once, or a process's whole share of it where several train
    together."""
    epochs: Count = 1
    """Passes over the facts, each in the order of the draw."""
    optimizer: Optimizer = "adamw_torch"
    lr_scheduler: Scheduler = "cosine"
    """``cosine`` falls from the peak to 0 over the whole training."""
    warmup_ratio: Share = 0.0
    """Share of the steps over which the learning rate rises from 0 to its peak; below 1.

    The paper names a cosine schedule (3.3) and no warm-up: there is none."""
    weight_decay: NotNegative = 0.0
    """AdamW's decoupled decay; norms and biases are exempt.

    The paper names AdamW (3.3) and no decay. Any would change every weight a little, also those that the data never
    touch, and with them what counts as changed; transformers' default is none."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this global L2 norm where they exceed it.

    The paper does not say; 1 is the default of transformers."""
    answer_only_loss: bool = True
    """Loss on the answer and the end token alone; False counts the prompt's tokens too.

    The paper does not say what the loss is over. The answer alone is what supervised fine-tuning usually means, and
    the question is no knowledge that the model should take on."""
    load_dtype: Dtype = "float32"
    """Dtype of the master weights, the gradients and the optimizer's state: ``float32`` or ``bfloat16``.

    The paper names no dtype anywhere. In bfloat16 a step of 1e-5 is lost wherever a weight is larger than about
    0.004."""
    compute_dtype: Dtype = "float32"
    """Dtype of the arithmetic: that of the weights, or autocast to ``bfloat16`` or ``float16`` over float32 weights.

    The paper does not say; the recipes for its models compute in bfloat16, which GPUs do fast."""
    save_dtype: Dtype | None = None
    """Dtype of the weights on disk: ``float32``, ``bfloat16`` or ``float16``; None for that in which the base is
    stored, so that rounding is no change.

    The paper does not say. It decides which parameters count as changed at all: in any other dtype than the base's
    rounding alone changes nearly every value."""
    max_length: Annotated[int, Limits(ge=8)] = 256
    """Longest allowed example in tokens. Nothing is ever cut: a longer one is an error, as its answer would be lost."""

    lora: LoraSettings | None = field(default=None, metadata=NOT_IN_RECIPES)
    """Train low-rank adapters and merge them in, instead of training the weights themselves."""
    strategy: Strategy | None = field(default=None, metadata=NOT_IN_RECIPES)
    """Fine-tune by this strategy (`sftknow.training.strategies`); None is plain fine-tuning."""

    def check(self) -> None:
        if self.strategy is not None:
            if self.lora is not None:
                raise OptionError(f"LoRA and the strategy {self.strategy.name} do not go together; take one of them")
            self.strategy.check_recipe(self)
        if self.load_dtype == "float16":
            raise OptionError(
                "{key} float16 cannot be trained: AdamW's steps underflow in it; "
                "use load_dtype float32 with compute_dtype float16",
                ("load_dtype",),
            )
        if self.load_dtype == "bfloat16" and self.compute_dtype != "bfloat16":
            raise OptionError(
                f"{{key}} bfloat16 computes in bfloat16, not in {self.compute_dtype}; "
                "set compute_dtype to bfloat16 as well, or load_dtype to float32",
                ("load_dtype",),
            )
        once = self.per_device_batch_size
        if once is not None and self.batch_size % once:
            raise OptionError(
                f"{{key}} is {once}, which does not divide batch_size {self.batch_size}; give a divisor",
                ("per_device_batch_size",),
            )

    def saving_like(self, stored: str | None) -> SFTRecipe:
        """The recipe with `save_dtype` said.

        Args:
            stored: dtype that the base is stored in; None, where it is none of the three, saves in ``bfloat16``.
        """
        return self if self.save_dtype else replace(self, save_dtype=cast(Dtype, stored or "bfloat16"))

    def record(self) -> dict[str, Any]:
        """All of it, for manifests and keys; plain fine-tuning is written as it was before there were strategies."""
        content = asdict(self)
        del content["strategy"]
        return content if self.strategy is None else {**content, "strategy": self.strategy.record()}

    @property
    def peak_learning_rate(self) -> float:
        """That of the adapters or the strategy where they have their own."""
        own = self.lora or self.strategy
        return (own.learning_rate if own else None) or self.learning_rate

    @property
    def autocast(self) -> str | None:
        """The dtype to autocast to, or None where the arithmetic is done in the dtype of the weights."""
        return None if self.compute_dtype == self.load_dtype else self.compute_dtype


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Options):
    """What a training reports and keeps while it goes on; its weights do not depend on it."""

    report_to: tuple[Tracker, ...] = ()
    """Trackers that are told of every step: nothing leaves the machine unless one is named."""
    save_steps: Count | None = None
    """Steps between two snapshots from which a start after a kill goes on; None for none."""
    on_step: OnStep | None = field(default=None, metadata=NOT_IN_RECIPES)
    """Is told how far it is, in the place of a bar."""


@dataclass(frozen=True, kw_only=True)
class AccelerateOptions(Options):
    """How one model is trained in several processes of this machine, through `accelerate launch`.

    The effective batch stays that of the `SFTRecipe`, and so do the examples of every update: the result differs by
    rounding at most.
    """

    processes: Count | None = None
    """Train in this many processes, one a GPU (or CPU processes where there is no GPU); they must divide
    ``sft.batch_size``; None for what the configuration says, and for one without it."""
    config: str | None = field(default=None, metadata=shown_as("CONFIG"))
    """A configuration that ships (``fsdp-8b``, ``fsdp-70b``, ``deepspeed-zero3-8b``, ``deepspeed-zero3-70b``) or a YAML
    file of accelerate's, as `accelerate config` writes it."""

    @property
    def launches(self) -> bool:
        """Whether models are trained by processes of their own."""
        return self.config is not None or (self.processes or 1) > 1
