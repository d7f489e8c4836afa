"""What a recipe may say. Every field has its unit and its meaning below it; unknown fields are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from sftknow.answers import Match
from sftknow.grading.samplers import SAMPLERS
from sftknow.records import BUCKETS, Split
from sftknow.registry import Registered

Dtype = Literal["float32", "bfloat16", "float16"]
Bucket = Annotated[int, Field(ge=BUCKETS[0], le=BUCKETS[-1])]
Level = Annotated[str, Field(pattern=r"^\d+(\.\d+)?%$|^\d+/\d+$")]


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, no silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


ModelName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]*$")]


class ModelSection(Section):
    path: str = "lab"
    """``lab`` (the model that ships with sftknow), a folder, or ``org/name`` on the Hub."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    dtype: Dtype | Literal["auto"] = "auto"
    """Dtype for grading and evaluation; ``auto`` is what the model's config names, as in lm-eval. Divergence is
    measured in it too, in float32 where it is ``auto``: rounded logits diverge by themselves."""
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Questions at once in evaluation and divergence."""
    device: str = "auto"
    """``auto`` (CUDA where there is one), ``cpu``, ``cuda``, ``cuda:1`` …"""

    @property
    def named_dtype(self) -> Dtype | None:
        """The dtype to load in, None for ``auto``."""
        return None if self.dtype == "auto" else self.dtype


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


class VLLMSection(Section):
    """Options of the vLLM sampler."""

    tensor_parallel: Annotated[int, Field(ge=1)] = 1
    """GPUs that share one copy of the model."""
    data_parallel: Annotated[int, Field(ge=1)] = 1
    """Copies of the model, each on GPUs of its own."""
    max_length: Annotated[int, Field(ge=1)] | None = None
    """Most tokens of a statement with its continuation; None for the model's own, at most 4,096."""
    cache_gib: Annotated[float, Field(gt=0)] | None = None
    """Memory of the key-value cache in GiB; None for 2 on a CPU, and on GPUs for what vLLM leaves room for."""
    arguments: dict[str, bool | int | float | str] = {}
    """Further arguments of vLLM's engine by their own names, such as ``gpu_memory_utilization: 0.8``."""


class RaySection(Section):
    """Which Ray cluster, and how much of it."""

    address: str | None = None
    """``host:port``; ``local`` for a cluster of this machine alone; None for the one this machine belongs to."""
    replicas: Annotated[int, Field(ge=1)] | None = None
    """Most workers at once; None for as many as fit."""
    cpus_per_replica: Annotated[float, Field(ge=0)] = 1.0
    gpus_per_replica: Annotated[float, Field(ge=0)] | None = None
    """None for one where the cluster has GPUs; for tensor × data parallel with vLLM on CUDA; and for as many as
    ``accelerate`` has processes where it spreads the weights (FSDP, DeepSpeed) or ``model.device`` is ``cuda``."""
    wait_seconds: Annotated[float, Field(ge=0)] = 30.0
    """How long to wait for a node that can hold a worker; more where machines are started on demand."""


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
    """Store every continuation, so that other synonyms and matching rules can be tried without the model."""
    match: Match = "contains"
    """What makes a continuation a hit: it ``contains`` an answer (the paper's), contains it as a whole ``word``, or is
    it and nothing else (``exact``). The two stricter ones draw every continuation to its end, which costs time."""
    case_sensitive: bool = True
    """Whether upper and lower case must agree (``exact`` never asks for it)."""
    sampler: Annotated[str, Registered(SAMPLERS)] = "transformers"
    """What continues the statements: ``transformers``, ``vllm``, or one that a plug-in adds. Single samples differ
    between the two, their distribution does not."""
    engine: Literal["local", "ray"] = "local"
    """Where: in this process, or on the nodes of a Ray cluster. It has no bearing on the result."""
    vllm: VLLMSection = VLLMSection()
    ray: RaySection = RaySection()


class LoraSection(Section):
    """Low-rank adapters, merged on save; used by the grid's ``lora`` cells."""

    rank: Annotated[int, Field(ge=1)] = 8
    alpha: Annotated[int, Field(ge=1)] = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"
    """Names of layers, or ``all-linear``: every linear layer but the output head."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """None for that of ``sft``."""


class TrackingSection(Section):
    """What is told of a training while it goes on, and to whom. Nothing leaves the machine unless it is named here."""

    report_to: tuple[Literal["trackio", "wandb", "tensorboard"], ...] = ()
    save_steps: Annotated[int, Field(ge=1)] | None = None
    """Steps between two snapshots from which a start after a kill goes on; None trains a cut-off model anew."""


class AccelerateSection(Section):
    """How one model is trained in several processes of this machine, through `accelerate launch`. The effective batch
    stays that of ``sft``, and so do the examples of every update: the result differs by rounding at most."""

    processes: Annotated[int, Field(ge=1)] | None = None
    """How many, one a GPU (or CPU processes where there is no GPU); they must divide ``sft.batch_size``. None for what
    ``config`` says, and for one without it."""
    config: str | None = None
    """A configuration that ships (``fsdp-8b``, ``fsdp-70b``, ``deepspeed-zero3-8b``, ``deepspeed-zero3-70b``) or a YAML
    file of accelerate's, as `accelerate config` writes it."""

    @property
    def launches(self) -> bool:
        """Whether models are trained by processes of their own."""
        return self.config is not None or (self.processes or 1) > 1


class SFTSection(Section):
    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Effective batch size in examples."""
    per_device_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Examples on the device at once, a divisor of the effective batch (gradient accumulation); None for all."""
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
    lora: bool = False
    """Also train the mixed draws with LoRA (paper, Table 7)."""
    baselines: Mapping[ModelName, str] = {}
    """Models that are only evaluated, by a name of your own: ``{instruct: org/name}`` (paper, Table 7)."""
    storage: Literal["delta", "full"] = "delta"
    """How fine-tuned models are kept once they are measured: small, as what differs from the base, for `sftknow
    materialize`; or as whole checkpoints."""
    engine: Literal["local", "ray"] = "local"
    """Where cells are trained and measured: in this process one after the other, or each as one task of a Ray cluster
    whose nodes see the run directory. It has no bearing on the result."""
    ray: RaySection = RaySection()


class EvaluationSection(Section):
    splits: tuple[Split, ...] = ("dev", "test", "testood")
    limit: Annotated[int, Field(ge=1)] | None = None
    """Questions for each leaf task; None for all."""
    dataset: str | None = None
    """Graded data set (folder or Hub id) that `sftknow evaluate --recipe` takes for models that name none."""


class DivergenceSection(Section):
    k: Annotated[int, Field(ge=1)] = 10
    """Largest logits of the fine-tuned model that are compared."""
    window: Annotated[int, Field(ge=1)] = 3
    """The answer must start within this many tokens of the base model's completion."""
    base_prompt: Literal["statement", "question"] = "statement"
    """What the base is shown: a statement to complete (the paper's reading), or the question of fine-tuning."""
    tuned_prompt: Literal["statement", "question"] = "statement"
    """What the fine-tuned model is shown."""
    buckets: Annotated[tuple[Bucket, ...], Field(min_length=1)] = (0, 1, 2, 3, 4)
    """Test buckets to measure. The headline is the highest; the paper measures 4."""
    bootstrap: Annotated[int, Field(ge=100)] = 2000


class ParametersSection(Section):
    region: str = "transformer"
    layers: str | None = None
    """A range of layers such as ``0-3``; None for all."""
    levels: tuple[Level, ...] = ("1%", "3%", "5%", "10%", "20%", "40%", "60%")
    strategy: str = "top"
    seed: int = 0
    epsilon: Annotated[float, Field(ge=0)] = 1e-8
    arithmetic: Literal["float32", "bfloat16"] = "float32"


class RestoreSection(Section):
    cells: tuple[str, ...] | Literal["best", "all"] = "best"
    """Which fine-tuned models are restored: the best on dev, all, or cells by name such as ``b2-n240-s0``.
    A list may hold ``best`` as well."""
    levels: tuple[Level, ...] | None = None
    """Levels to restore; None for those of ``parameters``."""
    layers: Annotated[int, Field(ge=0)] = 0
    """Also set whole layers back, this many at a time, and score each range on the test split (paper, Table 11);
    0 for none. Nothing is kept on disk but the scores."""
    layer_cells: tuple[str, ...] | None = None
    """Which fine-tuned models that is done for, ``best`` or by name; None for those of ``cells``."""


class GeneralSection(Section):
    """Other tasks (paper, Table 5): the base is fine-tuned on each task's own train split, restored and scored."""

    tasks: tuple[str, ...] = ()
    """Which: xsum, gsm8k and those that were added; none unless they are named here."""
    data: Mapping[str, str] = {}
    """Folder of each task's data; a task that is not here is taken from the Hub."""
    size: Annotated[int, Field(ge=1)] | Literal["all"] = 1920
    """Training rows of each task."""
    seed: int = 0
    levels: tuple[Level, ...] | None = None
    """Levels to restore; None for those that the grid's models are restored at."""
    few_shot: Annotated[int, Field(ge=0)] = 0
    """Examples before each question (gsm8k)."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Score only the first rows of each test split; None for all."""
    article_words: Annotated[int, Field(ge=1)] | None = None
    """Longest article in words (xsum); None for the default of `sftknow ability`."""
    max_length: Annotated[int, Field(ge=8)] = 2048
    """Longest training row in tokens, in place of that of ``sft``; whatever else stands in ``sft`` holds here too."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Rows at once while scoring."""


class Recipe(Section):
    """One experiment, from facts to report."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    description: str = ""
    model: ModelSection = ModelSection()
    facts: FactsSection = FactsSection()
    grading: GradingSection = GradingSection()
    sft: SFTSection = SFTSection()
    lora: LoraSection = LoraSection()
    tracking: TrackingSection = TrackingSection()
    accelerate: AccelerateSection = AccelerateSection()
    grid: GridSection = GridSection()
    evaluation: EvaluationSection = EvaluationSection()
    divergence: DivergenceSection = DivergenceSection()
    parameters: ParametersSection = ParametersSection()
    restore: RestoreSection = RestoreSection()
    general: GeneralSection = GeneralSection()
