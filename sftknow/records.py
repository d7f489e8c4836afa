"""The records that pass between rooms: frozen, named, standard library only.

Every record here is plain data. `to_json` turns any of them into JSON-ready values; the storage room writes them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sftknow.options import Count, Options, Positive
from sftknow.shown import Shown

Split = Literal["train", "dev", "test", "testood"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test", "testood")
"""The four parts of a graded data set: training, in-domain dev, in-domain test, out-of-domain test (paper, 3.1)."""

BUCKETS: tuple[int, ...] = (0, 1, 2, 3, 4)
"""The five mastery buckets (paper, 3.1): 0 is R = 0, i is R in ((i-1)/4, i/4]."""


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One closed-book fact: subject, relation, object."""

    id: str
    """Unique within a source and stable between runs, such as ``P36/train/12``."""
    topic: str
    """Wikidata relation, such as ``P36`` (a key of the topics file)."""
    subject: str
    object: str
    """The expected answer, as the source spells it."""
    aliases: tuple[str, ...] = ()
    """Answers accepted beside `object`: the synonym table's row and the source's own, without `object` itself."""
    question: str
    """The topic's question about this subject."""
    split: Split

    @property
    def answers(self) -> tuple[str, ...]:
        """Everything that counts as correct, `object` first."""
        return (self.object, *self.aliases)


@dataclass(frozen=True, kw_only=True)
class ModelRef:
    """A model by Hub id or local folder."""

    path: str
    """Local folder, or ``org/name`` on the Hub."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; None for the default branch and for local folders."""
    dtype: str | None = None
    """Name of a torch dtype to load in (``float32``, ``bfloat16``, ``float16``); None keeps the stored one."""

    @classmethod
    def parse(cls, text: str, *, dtype: str | None = None) -> ModelRef:
        """``org/name@revision`` or a folder. A folder that exists is taken whole, at-signs included."""
        if "@" in text and not Path(text).exists():
            path, _, revision = text.rpartition("@")
            return cls(path=path, revision=revision, dtype=dtype)
        return cls(path=text, dtype=dtype)

    def __str__(self) -> str:
        return f"{self.path}@{self.revision}" if self.revision else self.path


@dataclass(frozen=True, kw_only=True)
class SamplingPolicy(Options):
    """How R was measured (paper, 3.3 and appendix F.1).

    Raises:
        OptionError: a value that nothing can be drawn with.
    """

    samples: Count = 10
    """Continuations drawn for each statement template (N_sample)."""
    temperature: Positive = 0.7
    """Sampling temperature."""
    max_new_tokens: Count = 32
    """Longest continuation in tokens."""
    seed: int = 0
    """Seed of the draws."""


@dataclass(frozen=True, kw_only=True)
class SampleTally:
    """What one statement of one fact gave."""

    fact_id: str
    template: int
    """Index of the statement template within its topic, from 0."""
    tries: int
    hits: int
    texts: tuple[str, ...] | None = None
    """The continuations, where they were asked to be kept."""


@dataclass(frozen=True, kw_only=True)
class Mastery:
    """How well one model masters one fact. R = hits / tries, kept as two integers."""

    fact_id: str
    template_hits: tuple[int, ...]
    template_tries: tuple[int, ...]
    hits: int
    tries: int
    bucket: int
    low: float
    """Lower end of the 95 % Wilson interval of R."""
    high: float
    edge: bool
    """True where that interval crosses a bucket's edge, so that another draw might have put the fact elsewhere."""

    @property
    def rate(self) -> float:
        """R of the paper (3.1)."""
        return self.hits / self.tries


@dataclass(frozen=True, kw_only=True)
class GradedFact:
    """A row of a mastery-split data set: the fact and its mastery."""

    fact: Fact
    mastery: Mastery


@dataclass(frozen=True, kw_only=True)
class TaskExample:
    """A training row of a general-ability task: what is shown, what is learned."""

    id: str
    prompt: str
    completion: str
    """What follows the prompt, its leading space included and without the end token."""


@dataclass(frozen=True, kw_only=True)
class DatasetManifest:
    """What a training draw consists of."""

    bucket: int | None
    """The mastery bucket drawn from; None for a draw over all buckets (``mixed``)."""
    size: int
    """Number of facts drawn."""
    seed: int
    fact_ids: tuple[str, ...]
    """In training order."""
    per_topic: Mapping[str, int]
    sha256: str
    """Hash of questions and answers in order."""
    short_topics: tuple[str, ...] = ()
    """Topics that had fewer facts than an equal share, whose places went to the others."""


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A fine-tuned checkpoint on disk."""

    checkpoint: Path
    base: ModelRef
    recipe: Mapping[str, Any]
    steps: int
    final_loss: float


@dataclass(frozen=True, kw_only=True)
class MetricValue:
    """One number with what it stands on."""

    task: str
    """Task or group, such as ``cbqa_mastery_test_bucket_3`` or ``cbqa_mastery_test``."""
    metric: str
    """``acc``, ``acc_word``, ``exact_match`` or ``ended``."""
    value: float
    """Share between 0 and 1."""
    stderr: float
    count: int
    """Questions behind the value."""


@dataclass(frozen=True, kw_only=True)
class QuestionResult:
    """One question, answered by one model."""

    fact_id: str
    split: Split
    bucket: int
    output: str
    acc: bool
    acc_word: bool
    exact_match: bool
    ended: bool | None = None
    """Whether the answer ended by itself, before its 16 tokens were used; None where that was not kept."""


@dataclass(frozen=True, kw_only=True)
class EvalRun(Shown):
    """One model scored on the cbqa_mastery tasks."""

    model: str
    dataset_fingerprint: str
    graded_by: str
    dtype: str | None = None
    """Dtype of the weights while the model answered."""
    dataset_repo: str | None = None
    """The data set's repository on the Hub; None where it lay in a folder."""
    dataset_revision: str | None = None
    """Its commit."""
    notes: tuple[str, ...] = ()
    """What a reader of the numbers has to know, such as that another model than the base graded the questions."""
    metrics: tuple[MetricValue, ...]
    missing: tuple[str, ...] = ()
    """Leaf tasks without a single question, which the group means leave out."""
    questions: tuple[QuestionResult, ...] = ()

    def headline(self) -> str:
        """The share of right answers in each group."""
        groups = [m for m in self.metrics if m.metric == "acc" and "_bucket_" not in m.task]
        return f"{self.model}: " + ", ".join(f"{100 * m.value:.1f} % in {m.task}" for m in groups)

    def rows(self) -> list[dict[str, Any]]:
        """One row a task or group and metric."""
        return [dict(vars(entry)) for entry in self.metrics]

    def value(self, task: str, metric: str = "acc") -> MetricValue:
        """The metric of a task or group. Raises KeyError where it was not scored."""
        for entry in self.metrics:
            if entry.task == task and entry.metric == metric:
                return entry
        raise KeyError(f"{task}/{metric}")


@dataclass(frozen=True, kw_only=True)
class GroupDivergence:
    """Token divergence of the facts of one topic or one bucket. Nats throughout."""

    mean: float
    """Mean KL(fine-tuned ‖ base) over the fine-tuned model's ten largest logits, re-normalised."""
    low: float
    """Lower end of the 95 % bootstrap interval of the mean."""
    high: float
    full_mean: float
    """Mean KL(fine-tuned ‖ base) over the whole vocabulary."""
    top_changed: float
    """Share of facts whose most likely first token is another one after fine-tuning."""
    count: int
    """Facts measured."""
    skipped: int = 0
    """Facts left out."""


@dataclass(frozen=True, kw_only=True)
class TokenDivergence:
    """How far the first predicted token moved, over many facts (paper, 4.1). Nats throughout."""

    mean: float
    """Mean KL(fine-tuned ‖ base) over the fine-tuned model's ten largest logits, re-normalised."""
    low: float
    """Lower end of the 95 % bootstrap interval of the mean."""
    high: float
    full_mean: float
    """Mean KL(fine-tuned ‖ base) over the whole vocabulary."""
    full_reverse_mean: float
    """Mean KL(base ‖ fine-tuned) over the whole vocabulary."""
    base_mass: float
    """Mean probability that the ten ids carry in the base model before re-normalising."""
    tuned_mass: float
    top_changed: float
    """Share of facts whose most likely first token is another one after fine-tuning."""
    base_answer_probability: float
    """Mean probability of the answer's first token in the base."""
    tuned_answer_probability: float
    base_answer_first: float
    """Share of facts whose answer's first token is the base's most likely one."""
    tuned_answer_first: float
    base_dummy_mass: float
    """Mean probability of "the", "a" and "an" in the base: the paper's reason for re-normalising."""
    tuned_dummy_mass: float
    count: int
    """Facts measured."""
    bucket: int
    """The bucket that all of the above is over; 4 in the paper."""
    k: int
    """Largest logits compared; 10 in the paper."""
    window: int
    """Tokens of the base's completion within which the answer had to start."""
    base_prompt: str
    """What the base was shown: ``statement`` or ``question``."""
    tuned_prompt: str
    """What the fine-tuned model was shown."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Facts left out, by reason."""
    by_topic: Mapping[str, GroupDivergence] = field(default_factory=dict)
    """The same facts, topic by topic."""
    by_bucket: Mapping[str, GroupDivergence] = field(default_factory=dict)
    """Every bucket that was measured, by its number as text."""
    beside: TokenDivergence | None = None
    """The same facts with the fine-tuned model shown the other prompt; None where only one was measured."""

    @classmethod
    def from_json(cls, **content: Any) -> TokenDivergence:
        """The inverse of `to_json`. Raises TypeError where fields are missing or unknown."""
        for name in ("by_topic", "by_bucket"):
            content[name] = {key: GroupDivergence(**value) for key, value in content.get(name, {}).items()}
        beside = content.pop("beside", None)
        return cls(**content, beside=cls.from_json(**beside) if beside else None)


@dataclass(frozen=True, kw_only=True)
class LevelStatistics:
    """One restoration level of one checkpoint pair."""

    level: str
    """The level as it was asked for, such as ``20%``."""
    selected: int
    """floor(n · f) elements."""
    selected_unchanged: int
    """Selected elements whose value is the same in both models: restoring them changes nothing."""
    concentration: float
    """Sum of r over the selected ÷ sum of r over the region (Table 3). NaN where the region did not change."""
    concentration_nonzero_base: float
    """The same without elements whose base value is 0, whose r is a division by ε alone."""
    by_layer: Mapping[str, int]
    """Selected elements for each layer index (Table 9)."""
    by_module: Mapping[str, int]
    """Selected elements for each module, such as ``mlp.down_proj`` (Table 10)."""


@dataclass(frozen=True, kw_only=True)
class ParameterChange:
    """What fine-tuning did to the parameters of a region."""

    region: str
    layers: str | None = None
    """Layer indices that the region was narrowed to, such as ``0-3``; None for all layers."""
    elements: int
    """n: parameters in the region."""
    changed: int
    """Elements of the region whose value changed; where the dtypes differ, in the dtype that they were compared in."""
    compare_in: str = "stored"
    """``coarser``: values in two dtypes were compared in the coarser one; ``stored``: as they are."""
    dtypes: str | None = None
    """Where the region is not stored in one dtype: those of the base and of the fine-tuned one, ``F32 to BF16``."""
    changed_beyond_rounding: int | None = None
    """Where the dtypes differ: elements that differ in the coarser of them."""
    changed_as_stored: int | None = None
    """Where the dtypes differ: elements whose stored values differ, by rounding alone or more."""
    elements_by_layer: Mapping[str, int]
    elements_by_module: Mapping[str, int]
    levels: tuple[LevelStatistics, ...]
    histogram: tuple[tuple[float, int], ...]
    """Histogram of r over changed elements: (lower edge of the bin, count), one bin a quarter decade."""


@dataclass(frozen=True, kw_only=True)
class LevelCut:
    """Where one level ends in the order of r (descending) and global index (ascending)."""

    level: str
    selected: int
    threshold_bits: int
    """Bit pattern (uint32) of the float32 r at the cut: all elements with larger r are selected."""
    ties: int
    """How many elements with r equal to the threshold are selected: those with the lowest global index."""
    tie_end: int | None = None
    """One past the global index of the last of them. None in a plan of an earlier version."""


@dataclass(frozen=True, kw_only=True)
class RestorePlan:
    """Everything needed to restore the same bytes anywhere."""

    strategy: str
    """``top``, ``bottom``, ``random`` or another name in `sftknow.parameters.strategies`."""
    seed: int
    """Used by ``random``."""
    region: str
    layers: str | None = None
    """Layer indices that the region was narrowed to, such as ``0-3``; None for all layers."""
    common_rows: bool = False
    """Whether tensors that differ in their number of rows were compared in the rows that both have."""
    ignore: str | None = None
    """Regular expression of tensor names that the region leaves out; None for none."""
    epsilon: float
    arithmetic: str
    """``float32`` or ``bfloat16`` (the authors' rounding)."""
    compare_in: str = "stored"
    """``coarser`` or ``stored``; see `sftknow.parameters.relative`. Plans of earlier versions are of stored values."""
    base_sha256: str
    """Hash over the names, dtypes, shapes and bytes of the base's tensors in the region."""
    tuned_sha256: str
    cuts: tuple[LevelCut, ...]


@dataclass(frozen=True, kw_only=True)
class RestoredCheckpoint:
    """A restored model on disk."""

    checkpoint: Path
    level: str
    restored: int
    """Elements set back to the base's bits whose value differed before."""


def to_json(record: Any) -> Any:
    """A record, or any nesting of records, mappings, tuples and paths, as JSON-ready values."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {f.name: to_json(getattr(record, f.name)) for f in dataclasses.fields(record)}
    if isinstance(record, Mapping):
        return {str(key): to_json(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [to_json(value) for value in record]
    return str(record) if isinstance(record, Path) else record
