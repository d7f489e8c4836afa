"""How one model is fine-tuned. Standard library only, so that recipes are checked without loading torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sftknow.errors import RecipeError

DTYPES = ("float32", "bfloat16", "float16")
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd")
"""Optimizers, by their names in transformers, that need no further package."""
SCHEDULERS = ("cosine", "linear", "constant", "constant_with_warmup")


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Low-rank adapters (Hu et al. 2022). The paper's Table 7 names the method and no settings; these are peft's usual.

    Raises:
        RecipeError: a value out of range.
    """

    rank: int = 8
    alpha: int = 16
    """The adapters' product is scaled by alpha ÷ rank."""
    dropout: float = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"
    """Names of layers, or ``all-linear``: every linear layer but the output head."""
    learning_rate: float | None = None
    """None for the recipe's own; adapters usually take ten times that."""

    def __post_init__(self) -> None:
        for name in ("rank", "alpha"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise RecipeError(f"lora.{name} is {value!r}; give a whole number of at least 1")
        _number("lora.dropout", self.dropout, least=0.0)
        if self.dropout >= 1:
            raise RecipeError(f"lora.dropout is {self.dropout!r}; give a share below 1")
        if self.learning_rate is not None:
            _number("lora.learning_rate", self.learning_rate, above=0.0)
        if not self.target_modules:
            raise RecipeError("lora.target_modules is empty; name layers, or all-linear")


@dataclass(frozen=True, kw_only=True)
class SFTRecipe:
    """The paper's training (3.3) by default: batch 8, one epoch, AdamW, cosine, 1e-5.

    Three dtypes decide which parameters count as changed, and none of them is left to a default of the libraries. The
    weights are held in `load_dtype` while they are trained, so an update smaller than its rounding is lost at every
    step; they are written in `save_dtype`, so a change smaller than its rounding is lost at the end.

    Raises:
        RecipeError: a value out of range, an unknown name, or dtypes that cannot go together.
    """

    learning_rate: float = 1e-5
    """Peak learning rate."""
    batch_size: int = 8
    """Examples behind one update, that is the effective batch."""
    per_device_batch_size: int | None = None
    """Examples that go through a device at once; gradients are summed over as many passes as the effective batch
    needs. None for the whole batch at once, or a process's whole share of it where several train together."""
    epochs: int = 1
    """Passes over the facts, each in the order of the draw."""
    optimizer: str = "adamw_torch"
    """One of `OPTIMIZERS`."""
    lr_scheduler: str = "cosine"
    """One of `SCHEDULERS`; ``cosine`` falls from the peak to 0 over the whole training."""
    warmup_ratio: float = 0.0
    """Share of the steps over which the learning rate rises from 0 to its peak; below 1."""
    weight_decay: float = 0.0
    """AdamW's decoupled decay; norms and biases are exempt."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global L2 norm where they exceed it."""
    answer_only_loss: bool = True
    """Loss on the answer and the end token alone; False counts the prompt's tokens too."""
    load_dtype: str = "float32"
    """Dtype of the master weights, the gradients and the optimizer's state: ``float32`` or ``bfloat16``."""
    compute_dtype: str = "float32"
    """Dtype of the arithmetic: that of the weights, or autocast to ``bfloat16`` or ``float16`` over float32 weights."""
    save_dtype: str = "bfloat16"
    """Dtype of the weights on disk: ``float32``, ``bfloat16`` or ``float16``."""
    max_length: int = 256
    """Longest allowed example in tokens. Nothing is ever cut: a longer one is an error, as its answer would be lost."""

    lora: LoraSettings | None = None
    """Train low-rank adapters and merge them in, instead of training the weights themselves."""

    def __post_init__(self) -> None:
        for name in ("load_dtype", "compute_dtype", "save_dtype"):
            _one_of(name, getattr(self, name), DTYPES)
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        _one_of("lr_scheduler", self.lr_scheduler, SCHEDULERS)
        for name, least in (("batch_size", 1), ("epochs", 1), ("max_length", 8)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise RecipeError(f"{name} is {value!r}; give a whole number of at least {least}")
        for name in ("learning_rate", "max_grad_norm"):
            _number(name, getattr(self, name), above=0.0)
        for name in ("weight_decay", "warmup_ratio"):
            _number(name, getattr(self, name), least=0.0)
        if self.warmup_ratio >= 1:
            raise RecipeError(f"warmup_ratio is {self.warmup_ratio!r}; give a share below 1")
        if type(self.answer_only_loss) is not bool:
            raise RecipeError(f"answer_only_loss is {self.answer_only_loss!r}; give true or false")
        self._check_dtypes()
        once = self.per_device_batch_size
        if once is not None and (type(once) is not int or once < 1 or self.batch_size % once):
            raise RecipeError(
                f"per_device_batch_size is {once!r}, which does not divide batch_size {self.batch_size}; give a divisor"
            )

    def _check_dtypes(self) -> None:
        if self.load_dtype == "float16":
            raise RecipeError(
                "load_dtype float16 cannot be trained: AdamW's steps underflow in it; "
                "use load_dtype float32 with compute_dtype float16"
            )
        if self.load_dtype == "bfloat16" and self.compute_dtype != "bfloat16":
            raise RecipeError(
                f"load_dtype bfloat16 computes in bfloat16, not in {self.compute_dtype}; "
                "set compute_dtype to bfloat16 as well, or load_dtype to float32"
            )

    @property
    def autocast(self) -> str | None:
        """The dtype to autocast to, or None where the arithmetic is done in the dtype of the weights."""
        return None if self.compute_dtype == self.load_dtype else self.compute_dtype


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise RecipeError(f"{name} is {value!r}; it must be one of {', '.join(known)}")


def _number(name: str, value: float, *, above: float | None = None, least: float | None = None) -> None:
    valid = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not valid or (above is not None and value <= above) or (least is not None and value < least):
        bound = f"above {above:g}" if above is not None else f"of at least {least:g}"
        raise RecipeError(f"{name} is {value!r}; give a number {bound}")
