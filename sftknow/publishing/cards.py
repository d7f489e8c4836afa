"""Model and data set cards: typed contexts in, markdown out.

The templates lie in ``hub_cards/``. They are rendered strictly: a name that a context does not have is an error, and a
field without a value is refused before rendering, so that no card shows a blank. What a run does not know is said in
words by the template, where a field may be None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import DatasetCardData, EvalResult, ModelCardData

from sftknow.artifacts.choice import BESIDE, FORM
from sftknow.artifacts.mastery_data import EVERYTHING, bucket_file, configurations
from sftknow.publishing.benchmark import eval_results
from sftknow.publishing.picture import Bar, interval_bars
from sftknow.publishing.rendering import LINES, SPLIT_WORDS, VERBATIM, interval, refuse_blanks, render
from sftknow.records import BUCKETS, LevelStatistics, MetricValue, ParameterChange, Split


@dataclass(frozen=True, kw_only=True)
class Licence:
    """What others may do with it."""

    id: str
    """The Hub's identifier, such as ``apache-2.0``, ``llama3`` or ``other``."""
    name: str | None = None
    """Needed where `id` is ``other``."""
    link: str | None = None

    @property
    def metadata(self) -> dict[str, str]:
        """As a card's metadata names it."""
        named = {"license": self.id, "license_name": self.name, "license_link": self.link}
        return {key: value for key, value in named.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model or data set that something was made from."""

    name: str
    """What it is called, never a path of somebody's machine."""
    hub_id: str | None
    """``org/name``; None for what is not on the Hub."""
    revision: str | None


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the model was fine-tuned."""

    bucket: int | None
    """Mastery bucket of the training facts; None for a draw over all buckets."""
    size: int
    """Training facts."""
    seed: int
    recipe: Mapping[str, str]
    """Setting → value, as text."""


@dataclass(frozen=True, kw_only=True)
class Restoration:
    """What was set back to the base model's values."""

    level: str
    strategy: str
    region: str
    restored: int | None
    """Elements whose bits were changed by it; None where that was not recorded."""
    change: ParameterChange | None
    """Of the fine-tuned model, with this level among others; None where that was not recorded."""
    chosen_on: str | None
    """The split that this level was chosen on, such as ``dev``; None where it is one level of a sweep."""
    chosen_by: str | None = None
    """By what, in words; None where it is one level of a sweep, or that was not recorded."""
    method: str | None = None
    """Of a repair: what was done, and whose method it is; None, as the next two, where a level was restored."""
    repair: str | None = None
    error_of_adapter: float | None = None

    @property
    def selected(self) -> LevelStatistics | None:
        """What was selected at this level; None without `change`."""
        levels = self.change.levels if self.change else ()
        return next((level for level in levels if level.level == self.level), None)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """One model's accuracies."""

    name: str
    """Heading of its column."""
    values: Mapping[str, MetricValue]
    """Task or group → containment accuracy (``acc``)."""
    beside: Mapping[str, Mapping[str, MetricValue]] = field(default_factory=dict)
    """The same for what stands beside it, as far as it was measured: metric → task or group → value."""


@dataclass(frozen=True, kw_only=True)
class RestoredLevel:
    """A restored version of the model."""

    level: str
    branch: str | None
    """Where it lies in the repository; None where it is not on the Hub."""
    chosen: bool
    scores: Scores


@dataclass(frozen=True, kw_only=True)
class GradedData:
    """The graded data set that the model was trained and scored on."""

    source: Source
    fingerprint: str | None


@dataclass(frozen=True, kw_only=True)
class ModelCardContext:
    """Everything a model card says."""

    repo_id: str
    branch: str = "main"
    """Where in the repository the model lies."""
    branches: tuple[str, ...] = ()
    """Other branches of the repository that hold restored versions of this model."""
    licence: Licence
    notice: str | None = field(metadata=LINES)
    """Words that the licence wants shown with the model; None where it wants none."""
    language: tuple[str, ...]
    base: Source
    adapter: Source | None = None
    """The LoRA adapter that the fine-tuned model is, merged into the base; None for one that was stored whole."""
    training: Training | None
    """None for a restored model whose fine-tuning was not done here."""
    restoration: Restoration | None
    scores: tuple[Scores, ...]
    """Earlier stages first, this model last; empty where it was not scored."""
    data: GradedData | None
    results: str | None = None
    """Repository with every answer and score of the run that the model is part of; None where there is none."""
    report: str | None = None
    """Space with the run's report; None where there is none."""
    levels: tuple[RestoredLevel, ...] = ()
    """Of an unrestored model: how its restored versions score, the smallest level first."""
    chosen_on: str | None = None
    """The split that one of `levels`, or the model as it is, was chosen on; None where none was."""
    chosen_by: str | None = None
    """By what, in words; None where nothing was chosen, or that was not recorded."""
    example: tuple[str, str] | None = field(default=None, metadata=VERBATIM)
    """A question that the model answers, and its answer; None where its answers were not kept."""
    invented: bool = False
    """True where what the model knows is the lab's invented world."""
    sftknow_version: str

    @property
    def level_splits(self) -> tuple[Split, ...]:
        """The splits that every level and the model itself were scored on."""
        scored = [self.scores[-1].values, *(level.scores.values for level in self.levels)] if self.levels else []
        return tuple(s for s in SPLIT_WORDS if scored and all(f"cbqa_mastery_{s}" in values for values in scored))


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the data set."""

    name: str
    type: str = field(metadata=VERBATIM)
    meaning: str


@dataclass(frozen=True, kw_only=True)
class DatasetCardContext:
    """Everything a data set card says."""

    repo_id: str
    licence: Licence
    language: tuple[str, ...]
    graded_by: Source
    policy: Mapping[str, str]
    facts: Source | None
    """Where the facts come from; None where that was not recorded."""
    counts: Mapping[Split, Mapping[int, int]]
    """Facts for each split and bucket."""
    sizes: Mapping[str, tuple[int, int]]
    """Bytes of each Parquet file and of the table in it, by the file's path."""
    removed: Mapping[str, int] = field(default_factory=dict)
    """Facts of the source that were left out, by reason."""
    topics: Mapping[str, Mapping[Split, int]]
    """Facts for each topic and split."""
    columns: tuple[Column, ...]
    edge: int
    """Facts whose interval of R crosses a bucket's edge."""
    tries: tuple[int, int]
    """Fewest and most samples behind one fact's R."""
    fingerprint: str
    sftknow_version: str

    invented: bool = False
    """True where the facts are those of the lab's invented world."""

    @property
    def total(self) -> int:
        """Facts in all."""
        return sum(sum(buckets.values()) for buckets in self.counts.values())

    @property
    def example(self) -> tuple[Split, int]:
        """A split and a bucket with facts, to show how one is loaded."""
        filled = [(split, bucket) for split, row in self.counts.items() for bucket, count in row.items() if count]
        return ("test", 3) if ("test", 3) in filled else filled[-1]

    @property
    def empty(self) -> tuple[str, ...]:
        """Buckets without a single fact, such as ``dev/bucket_3``."""
        return tuple(f"{s}/bucket_{b}" for s, row in self.counts.items() for b, n in row.items() if n == 0)


def render_model_card(context: ModelCardContext) -> str:
    """The README.md of a model repository.

    Raises:
        HubError: a field is blank.
    """
    refuse_blanks(context, context.repo_id)
    return render(
        "model_card.md.j2",
        card=context,
        metadata=model_metadata(context).to_yaml(),
        rows=score_rows(context),
        form=_form(context),
    )


def _form(context: ModelCardContext) -> dict[str, str]:
    """The measures of form that a version of the model was scored on, in words."""
    tasks = {f"cbqa_mastery_{split}" for split in context.level_splits}
    scores = [*context.scores[-1:], *(level.scores for level in context.levels)]
    return {name: words for name, words in FORM.items() if any(tasks & set(s.beside.get(name, ())) for s in scores)}


LEVELS_PICTURE = "levels.svg"


def render_levels(context: ModelCardContext) -> str | None:
    """A drawing of how the restored versions score on the test split, beside the model itself; None without them."""
    if "test" not in context.level_splits:
        return None
    own = ("0%", not any(level.chosen for level in context.levels) and context.chosen_on is not None)
    rows = [(*own, context.scores[-1])] + [(level.level, level.chosen, level.scores) for level in context.levels]
    bars = []
    for name, chosen, scores in rows:
        value = scores.values["cbqa_mastery_test"]
        bars.append(Bar(f"restored {name}", value.value, *interval(value), chosen))
    return interval_bars(f"{SPLIT_WORDS['test']}: accuracy in percent, 95 % interval", bars)


def render_eval_results(context: ModelCardContext) -> str | None:
    """The Hub's evaluation-results file of this model: YAML; None where it was not scored on a data set of the Hub."""
    data = context.data.source if context.data else None
    if not context.scores or data is None or data.hub_id is None:
        return None
    results = f"datasets/{context.results}" if context.results else None
    source = ("Every answer and score of the run", results) if results else ("Model card", context.repo_id)
    return eval_results(context.scores[-1].values, dataset=data.hub_id, revision=data.revision, source=source)


def render_dataset_card(context: DatasetCardContext) -> str:
    """The README.md of a graded data set's repository. Raises HubError where a field is blank."""
    refuse_blanks(context, context.repo_id)
    return render("dataset_card.md.j2", card=context, metadata=dataset_metadata(context).to_yaml())


def model_metadata(context: ModelCardContext) -> ModelCardData:
    """The card's YAML head. Names are those of `ModelCardData`: the client would write a misspelt one as it is."""
    data = context.data.source.hub_id if context.data else None
    results = _results(context)
    given: dict[str, Any] = {
        "language": list(context.language),
        **context.licence.metadata,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": context.base.hub_id,
        "base_model_relation": "finetune" if context.base.hub_id else None,
        "datasets": [data] if data else None,
        "tags": [
            "sftknow",
            "trl",
            "sft",
            "closed-book-qa",
            *(["parameter-restoration"] if context.restoration else []),
        ],
        **({"model_name": context.repo_id.split("/")[1], "eval_results": results} if results else {}),
    }
    return ModelCardData(**{name: value for name, value in given.items() if value is not None})


def dataset_metadata(context: DatasetCardContext) -> DatasetCardData:
    """The card's YAML head; its configurations make ``load_dataset(repo, "test", split="bucket_3")`` work, and
    ``load_dataset(repo, split="test")`` for all buckets at once.

    See `sftknow.artifacts.mastery_data.configurations`.
    """
    configs = configurations(context.counts)
    filled = {config["config_name"]: config["data_files"] for config in configs[1:]}
    info = [_dataset_info(context, EVERYTHING, {split: (split, tuple(BUCKETS)) for split in filled})]
    info += [
        _dataset_info(context, split, {part["split"]: (split, (int(part["split"][-1]),)) for part in parts})
        for split, parts in filled.items()
    ]
    return DatasetCardData(
        language=list(context.language),
        **context.licence.metadata,
        task_categories=["question-answering"],
        tags=["sftknow", "closed-book-qa", "knowledge-mastery"],
        size_categories=[_size_category(context.total)],
        source_datasets=[context.facts.hub_id if context.facts and context.facts.hub_id else "original"],
        pretty_name=f"Facts graded by {context.graded_by.name}",
        dataset_info=info,
        configs=configs,
    )


def _dataset_info(
    context: DatasetCardContext, name: str, parts: Mapping[str, tuple[Split, tuple[int, ...]]]
) -> dict[str, Any]:
    """What the Hub's viewer and `datasets` are told beforehand of one configuration: columns and sizes.

    Args:
        context: of the card.
        name: of the configuration.
        parts: its splits, each made of some buckets of a split of the data set.
    """
    counts = {part: {b: context.counts[split][b] for b in buckets} for part, (split, buckets) in parts.items()}
    files = {
        part: [context.sizes[bucket_file(split, b)] for b in buckets if counts[part][b]]
        for part, (split, buckets) in parts.items()
    }
    sizes = {part: (sum(file for file, _ in found), sum(table for _, table in found)) for part, found in files.items()}
    return {
        "config_name": name,
        "features": [_feature(column.name, column.type) for column in context.columns],
        "splits": [
            {"name": part, "num_bytes": sizes[part][1], "num_examples": sum(row.values())}
            for part, row in counts.items()
        ],
        "download_size": sum(file for file, _ in sizes.values()),
        "dataset_size": sum(table for _, table in sizes.values()),
    }


def _feature(name: str, arrow: str) -> dict[str, Any]:
    """An Arrow type's name in the words of `datasets`."""
    inner = arrow.removeprefix("list<").removesuffix(">").rpartition(": ")[2]
    word = {"double": "float64", "float": "float32"}.get(inner, inner)
    return {"name": name, "list" if arrow.startswith("list<") else "dtype": word}


def score_rows(context: ModelCardContext) -> tuple[tuple[str, tuple[MetricValue | None, ...]], ...]:
    """Rows of the accuracy table: (what was asked, one value a column or None where that model was not scored)."""
    rows = []
    for split, words in SPLIT_WORDS.items():
        tasks = [(f"cbqa_mastery_{split}_bucket_{b}", f"{words}, bucket {b}") for b in BUCKETS]
        for task, label in [*tasks, (f"cbqa_mastery_{split}", f"**{words}, mean of the buckets**")]:
            values = tuple(scores.values.get(task) for scores in context.scores)
            if any(value is not None for value in values):
                rows.append((label, values))
        for metric, title in BESIDE.items():
            values = tuple(scores.beside.get(metric, {}).get(f"cbqa_mastery_{split}") for scores in context.scores)
            if any(value is not None for value in values):
                rows.append((f"{words}, mean: {title}", values))
    return tuple(rows)


def _results(context: ModelCardContext) -> list[EvalResult]:
    if not context.scores:
        return []
    data = context.data.source if context.data else None
    results = []
    scores = context.scores[-1]
    measured = [(task, value, "accuracy", "Accuracy (containment)") for task, value in scores.values.items()]
    exact = scores.beside.get("exact_match", {})
    measured += [(task, value, "exact_match", "Exact match") for task, value in exact.items() if "bucket" not in task]
    for task, value, metric_type, metric_name in measured:
        split = next((s for s in SPLIT_WORDS if task.removeprefix("cbqa_mastery_").split("_")[0] == s), None)
        if split is None:
            continue
        results.append(
            EvalResult(
                task_type="question-answering",
                task_name="Closed-book question answering",
                dataset_type=data.hub_id if data and data.hub_id else "cbqa_mastery",
                dataset_name=task,
                dataset_config=split,
                dataset_split=task.removeprefix(f"cbqa_mastery_{split}_") if "bucket" in task else "mean of buckets",
                dataset_revision=data.revision if data else None,
                metric_type=metric_type,
                metric_name=metric_name,
                metric_value=round(100 * value.value, 2),
            )
        )
    return results


def _size_category(count: int) -> str:
    for limit, name in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")):
        if count < limit:
            return name
    return "1M<n<10M"
