"""What a recipe may say. Every field has its unit and its meaning below it; unknown fields are refused."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from sftknow.records import BUCKETS, Split

Dtype = Literal["float32", "bfloat16", "float16"]
Bucket = Annotated[int, Field(ge=BUCKETS[0], le=BUCKETS[-1])]
Level = Annotated[str, Field(pattern=r"^\d+(\.\d+)?%$|^\d+/\d+$")]


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, no silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelSection(Section):
    path: str = "lab"
    """``lab`` (the model that ships with sftknow), a folder, or ``org/name`` on the Hub."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    dtype: Dtype = "float32"
    """Dtype for grading, evaluation and divergence."""
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Questions at once in evaluation and divergence."""
    device: str = "auto"
    """``auto`` (CUDA where there is one), ``cpu``, ``cuda``, ``cuda:1`` …"""


class FactsSection(Section):
    source: str = "lab"
    """``lab``, a folder laid out like EntityQuestions, a JSONL, CSV or Parquet file, or a Hub data set."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """At most this many training facts, and of each other split about a quarter of that; None for all."""
    seed: int = 0
    """Of the draw that ``limit`` makes."""
    topics: str | None = None
    """A topics file that is merged over the 24 topics of the paper."""
    synonyms: str | None = None
    """A synonyms file that is merged over the paper's Table 12."""


class GradingSection(Section):
    samples: Annotated[int, Field(ge=1)] = 10
    """Continuations for each statement template (N_sample)."""
    temperature: Annotated[float, Field(gt=0)] = 0.7
    max_new_tokens: Annotated[int, Field(ge=1)] = 32
    templates: tuple[int, ...] | None = None
    """Indices of the statement templates to use; None for all 21."""
    seed: int = 0
    shard_size: Annotated[int, Field(ge=1)] = 256
    """Facts saved at once: what a kill can cost."""
    keep_texts: bool = False
    """Store every continuation, so that other synonyms can be tried without the model."""


class SFTSection(Section):
    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Effective batch size in examples."""
    epochs: Annotated[int, Field(ge=1)] = 1
    optimizer: str = "adamw_torch"
    lr_scheduler: str = "cosine"
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    answer_only_loss: bool = True
    """Loss on the answer's tokens alone; False for the whole text."""
    load_dtype: Dtype = "float32"
    """Dtype of the weights while they are trained."""
    compute_dtype: Dtype = "float32"
    """Dtype of the arithmetic (autocast where it differs from load_dtype)."""
    save_dtype: Dtype = "bfloat16"
    """Dtype of the weights on disk; it decides which parameters count as changed at all."""
    max_length: Annotated[int, Field(ge=8)] = 256
    """Longest example in tokens."""


class GridSection(Section):
    buckets: tuple[Bucket, ...] = BUCKETS
    sizes: tuple[Annotated[int, Field(ge=1)] | Literal["all"], ...] = (60, 120, 240, 480, 960, 1920, "all")
    """Training facts for each cell."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    mixed: bool = False
    """Also draw over all buckets at random (the paper's SFT (Mixed))."""


class EvaluationSection(Section):
    splits: tuple[Split, ...] = ("dev", "test", "testood")
    limit: Annotated[int, Field(ge=1)] | None = None
    """Questions for each leaf task; None for all."""


class DivergenceSection(Section):
    k: Annotated[int, Field(ge=1)] = 10
    """Largest logits of the fine-tuned model that are compared."""
    window: Annotated[int, Field(ge=1)] = 3
    """The answer must start within this many tokens of the base model's completion."""
    prompt: Literal["statement", "question"] = "statement"
    bootstrap: Annotated[int, Field(ge=100)] = 2000


class ParametersSection(Section):
    region: str = "transformer"
    layers: str | None = None
    """A range of layers such as ``0-3``; None for all."""
    levels: tuple[Level, ...] = ("1%", "3%", "5%", "10%", "20%", "40%", "60%")
    strategy: Literal["top", "bottom", "random"] = "top"
    seed: int = 0
    epsilon: Annotated[float, Field(ge=0)] = 1e-8
    arithmetic: Literal["float32", "bfloat16"] = "float32"


class RestoreSection(Section):
    cells: tuple[str, ...] | Literal["best", "all"] = "best"
    """Which fine-tuned models are restored: the best on dev, all, or cells by name such as ``b2-n240-s0``.
    A list may hold ``best`` as well."""
    levels: tuple[Level, ...] | None = None
    """Levels to restore; None for those of ``parameters``."""


class Recipe(Section):
    """One experiment, from facts to report."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    description: str = ""
    model: ModelSection = ModelSection()
    facts: FactsSection = FactsSection()
    grading: GradingSection = GradingSection()
    sft: SFTSection = SFTSection()
    grid: GridSection = GridSection()
    evaluation: EvaluationSection = EvaluationSection()
    divergence: DivergenceSection = DivergenceSection()
    parameters: ParametersSection = ParametersSection()
    restore: RestoreSection = RestoreSection()
