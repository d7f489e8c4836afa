"""Card contexts from artifacts: every value is read from what a run wrote, none is typed by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from sftknow import __version__
from sftknow.artifacts.choice import BESIDE, ChooseBy, rule_words
from sftknow.artifacts.levels import level_name
from sftknow.artifacts.manifests import read_manifest
from sftknow.artifacts.mastery_data import SCHEMA, MasteryData, bucket_file
from sftknow.errors import HubError
from sftknow.models.pull import origin
from sftknow.publishing.cards import (
    Column,
    DatasetCardContext,
    GradedData,
    Licence,
    ModelCardContext,
    Restoration,
    RestoredLevel,
    Scores,
    Source,
    Training,
)
from sftknow.publishing.licences import Papers, check_named, check_terms, licence_from, licence_of_folder
from sftknow.publishing.runs import ModelEvaluation, find_evaluation, whole_manifest
from sftknow.records import (
    BUCKETS,
    SPLITS,
    EvalRun,
    MetricValue,
    ModelRef,
    Split,
    to_json,
)
from sftknow.resources import lab_folder

_OWN = Licence(id="apache-2.0")
"""Of the lab's model and facts, which are part of this package."""

LAB_MODEL = "the lab model of sftknow"
_LAB_FACTS = "the synthetic world of sftknow's lab"

_SHIPPED_FACTS: Mapping[str, tuple[str, Licence]] = {
    "lab": (_LAB_FACTS, _OWN),
    "quick": ("facts of EntityQuestions that ship with sftknow", Licence(id="mit")),
}
"""What cards call the facts in this package, and their licence (sftknow/facts/quick/LICENSE), by the source's name."""

_MEANINGS: Mapping[str, str] = {
    "fact_id": "unique within the source of the facts",
    "topic": "Wikidata relation",
    "subject": "what the question is about",
    "object": "the expected answer",
    "aliases": "answers accepted beside it",
    "question": "the question shown in fine-tuning and evaluation",
    "split": "train, dev, test or testood",
    "bucket": "mastery bucket, 0 to 4",
    "rate": "R: hits ÷ tries",
    "hits": "samples that contain the answer",
    "tries": "samples drawn",
    "low": "lower end of the 95 % Wilson interval of R",
    "high": "its upper end",
    "edge": "true where that interval crosses a bucket's edge",
    "template_hits": "hits for each statement template",
    "template_tries": "samples for each statement template",
}


def build_model_context(
    folder: Path,
    *,
    repo_id: str,
    branch: str = "main",
    branches: tuple[str, ...] = (),
    results: str | None = None,
    report: str | None = None,
    evaluation: ModelEvaluation | None = None,
    licence: Licence | None = None,
    papers: Papers | None = None,
    base_repo: str | None = None,
    dataset_repo: str | None = None,
) -> ModelCardContext:
    """What the card of a fine-tuned or restored model says.

    Args:
        folder: a model folder with its ``sftknow.json``.
        repo_id: where it will lie, ``org/name``.
        branch: on which branch there.
        branches: other branches there that hold restored versions of it.
        results: repository with the answers and scores of its run.
        report: Space with the report of its run.
        evaluation: its scores; None looks for them in the run directory that the folder belongs to.
        licence: given by the user; None takes it from the manifest or from the base model's card.
        papers: licence files that the base came with.
        base_repo: the base's ``org/name[@revision]`` where the manifest knows a local folder only.
        dataset_repo: the graded data set's ``org/name[@revision]``.

    Raises:
        HubError: the folder is no finished model, or a licence is missing.
    """
    manifest = whole_manifest(folder)
    if not manifest.get("base") or not (manifest.get("sft") or manifest.get("restoration")):
        raise HubError(f"{folder} is neither fine-tuned nor restored: there is no card for it", repo_id=repo_id)
    base = named_source(base_repo) if base_repo else source_of(manifest["base"], folder)
    found = evaluation if evaluation is not None else find_evaluation(folder)
    terms = licence or licence_of_model(folder, manifest) or _no_licence(repo_id, f"its base {base.name}")
    return ModelCardContext(
        repo_id=repo_id,
        branch=branch,
        branches=branches,
        results=results,
        report=report,
        levels=_levels(found, branches) if found else (),
        chosen_on=found.chosen_on if found else None,
        chosen_by=_rule(found.chosen_by) if found else None,
        example=found.example if found else None,
        invented=base.name == LAB_MODEL,
        licence=terms,
        notice=check_terms(terms, repo_id, papers or Papers(), base=base.name),
        language=_language(manifest),
        base=base,
        adapter=source_of(manifest["adapter"], folder) if manifest.get("adapter") else None,
        training=_training(manifest),
        restoration=_restoration(manifest, found),
        scores=tuple(_scores(name, run) for name, run in found.runs) if found else (),
        data=_graded_data(manifest, dataset_repo),
        sftknow_version=__version__,
    )


def build_dataset_context(
    folder: Path, *, repo_id: str, licence: Licence | None = None, graded_by_repo: str | None = None
) -> DatasetCardContext:
    """What the card of a graded data set says; it reads every Parquet file.

    Args:
        folder: a graded data set with its ``sftknow.json``.
        repo_id: where it will lie, ``org/name``.
        licence: given by the user; None takes the manifest's.
        graded_by_repo: the grading model's ``org/name[@revision]`` where the manifest knows a local folder only.

    Raises:
        HubError: the licence of the facts is missing.
        MasteryDataError: the folder is no whole graded data set.
    """
    data = MasteryData(folder)
    manifest = data.manifest
    graded_by = manifest.get("graded_by") or graded_by_repo
    if not graded_by:
        raise HubError(f"{folder / 'sftknow.json'} does not say which model graded it", repo_id=repo_id)
    rows = _facts(folder)
    if not rows.num_rows:
        raise HubError(f"{folder} holds not a single fact", repo_id=repo_id)
    tries = rows["tries"].to_pylist()
    terms = licence or licence_of_facts(manifest) or _no_licence(repo_id, "the source of its facts", "--data-licence")
    check_named(terms, repo_id)
    facts = _source_of_facts(manifest, folder)
    return DatasetCardContext(
        repo_id=repo_id,
        licence=terms,
        language=_language(manifest),
        graded_by=named_source(graded_by_repo) if graded_by_repo else source_of(graded_by, folder),
        policy=_grading(manifest),
        removed={str(reason): int(count) for reason, count in (manifest.get("removed") or {}).items()},
        facts=facts,
        invented=facts is not None and facts.name == _LAB_FACTS,
        counts={split: {b: data.count(split, b) for b in BUCKETS} for split in SPLITS},
        sizes={path: _sizes(folder / path) for path in (bucket_file(s, b) for s in SPLITS for b in BUCKETS)},
        topics=_topics(rows),
        columns=tuple(Column(name=f.name, type=str(f.type), meaning=_MEANINGS[f.name]) for f in SCHEMA),
        edge=sum(rows["edge"].to_pylist()),
        tries=(min(tries), max(tries)),
        fingerprint=data.fingerprint,
        sftknow_version=__version__,
    )


def licence_of_model(folder: Path, manifest: Mapping[str, Any]) -> Licence | None:
    """The licence that the manifest, or the base model's own card on this machine, names; None where neither does."""
    named = licence_from(manifest) or licence_from(_mapping(manifest.get("base")))
    if named:
        return named
    path = local_base(folder, manifest)
    if path is None:
        return None
    if path == (lab_folder() / "model").resolve():
        return _OWN
    beside = read_manifest(path, "model") if path.is_dir() else None
    return licence_from(beside or {}) or licence_of_folder(path)


def local_base(folder: Path, manifest: Mapping[str, Any]) -> Path | None:
    """The base model's folder on this machine; None where there is none."""
    path = str(_mapping(manifest.get("base")).get("path") or "")
    if path == "lab":
        return (lab_folder() / "model").resolve()
    for candidate in (Path(path), folder / path):
        if path and candidate.is_dir():
            return candidate.resolve()
    return None


def source_of(named: Any, folder: Path) -> Source:
    """A model or data set as a manifest names it: text, or a mapping with ``repo``, ``path``, ``source`` or ``name``.

    A Hub id is believed where a revision, or the key ``repo``, stands beside it: ``models/tiny`` alone may be a folder.
    """
    entry = _mapping(named)
    text = str(next((entry[key] for key in ("repo", "path", "source", "name") if entry.get(key)), "")).strip()
    cached = origin(text)
    if cached:
        return Source(name=cached.repo_id, hub_id=cached.repo_id, revision=cached.commit)
    if text == "lab" or Path(text) == lab_folder() / "model":
        return Source(name=LAB_MODEL, hub_id=None, revision=None)
    ref = ModelRef.parse(text)
    revision = ref.revision or entry.get("revision")
    local = Path(text).exists() or (folder / text).exists()
    if is_hub_id(ref.path) and not local and (revision or "repo" in entry):
        return Source(name=ref.path, hub_id=ref.path, revision=revision)
    return Source(name=Path(text).name or text, hub_id=None, revision=revision)


def manifest_name(source: Source) -> str:
    """What a manifest calls a model, so that commands find it again: ``lab`` for the lab's own."""
    return "lab" if source.name == LAB_MODEL else source.hub_id or source.name


def named_source(text: str) -> Source:
    """``org/name[@revision]`` as the user gave it. Raises HubError where that is no Hub id."""
    path, _, revision = text.partition("@")
    if not is_hub_id(path):
        raise HubError(f"{text!r} is no repository on the Hub: give it as org/name or org/name@revision")
    return Source(name=path, hub_id=path, revision=revision or None)


def is_hub_id(text: str) -> bool:
    """True for what could be ``org/name`` on the Hub."""
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return text.count("/") == 1


def licence_of_facts(manifest: Mapping[str, Any]) -> Licence | None:
    """The licence of a graded data set's facts: the manifest's, or that of a source known here; None for others."""
    facts, name = _named_facts(manifest)
    named = licence_from(manifest) or licence_from(facts)
    if named or name not in _SHIPPED_FACTS:
        return named or (_SHIPPED_FACTS["quick"][1] if facts.get("official_release") is True else None)
    return _SHIPPED_FACTS[name][1]


def _named_facts(manifest: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """What a manifest says of the source of its facts, and the source's name."""
    facts = _mapping(manifest.get("source") or manifest.get("facts"))
    return facts, str(facts.get("source") or facts.get("path") or "")


def _source_of_facts(manifest: Mapping[str, Any], folder: Path) -> Source | None:
    facts, name = _named_facts(manifest)
    if name in _SHIPPED_FACTS:
        return Source(name=_SHIPPED_FACTS[name][0], hub_id=None, revision=None)
    return source_of(facts, folder) if facts else None


def _no_licence(repo_id: str, whose: str, option: str = "--licence") -> Licence:
    raise HubError(
        f"no licence is known for {repo_id}: pass the licence of {whose} ({option}, such as mit or apache-2.0)",
        repo_id=repo_id,
    )


def _language(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    # The 24 topics and their templates are English; a run on others says so in its manifest.
    named = manifest.get("language") or "en"
    return (named,) if isinstance(named, str) else tuple(named)


def _training(manifest: Mapping[str, Any]) -> Training | None:
    sft = manifest.get("sft")
    if not sft:
        return None
    size = sft.get("size") or len(sft.get("fact_ids") or ())
    told = {**_flat(sft.get("recipe") or {}), **_outcome(sft)}
    return Training(bucket=sft.get("bucket"), size=size, seed=sft.get("seed", 0), recipe=told)


def _outcome(sft: Mapping[str, Any]) -> dict[str, str]:
    """How the training went: steps, last loss, machine, versions; what was recorded of it."""
    versions = sft.get("versions") or {}
    told = {
        "steps": sft.get("steps"),
        "final loss": f"{sft['final_loss']:.4f} nats a token" if isinstance(sft.get("final_loss"), float) else None,
        "hardware": sft.get("device"),
        "processes": sft.get("processes"),
        "framework versions": ", ".join(f"{name} {version}" for name, version in versions.items()) or None,
    }
    return {name: str(value) for name, value in told.items() if value is not None}


def _restoration(manifest: Mapping[str, Any], evaluation: ModelEvaluation | None) -> Restoration | None:
    made = manifest.get("restoration")
    if not made:
        return None
    change = evaluation.change if evaluation else None
    if change and all(level.level != made["level"] for level in change.levels):
        change = None
    return Restoration(
        level=made["level"],
        strategy=made["strategy"],
        region=made["region"] + (f", layers {made['layers']}" if made.get("layers") else ""),
        restored=made.get("restored"),
        change=change,
        chosen_on=(evaluation.chosen_on if evaluation else None) or made.get("chosen_on"),
        chosen_by=_rule((evaluation.chosen_by if evaluation else None) or _mapping(made.get("choice")).get("by")),
        method=f"{made['method']} ({made.get('source')})" if made.get("method") else None,
        repair=(made.get("repair") or {}).get("sentence"),
        error_of_adapter=made.get("error"),
    )


def _rule(by: Any) -> str | None:
    """How a level was chosen, in words."""
    return rule_words(by) if by in get_args(ChooseBy) else None


def _levels(found: ModelEvaluation, branches: tuple[str, ...]) -> tuple[RestoredLevel, ...]:
    levels = []
    for level, run in found.restored:
        branch = f"restore-{level_name(level)}"
        levels.append(
            RestoredLevel(
                level=level,
                branch=branch if branch in branches else None,
                chosen=level == found.chosen,
                scores=_scores(level, run),
            )
        )
    return tuple(levels)


def _scores(name: str, run: EvalRun) -> Scores:
    beside: dict[str, dict[str, MetricValue]] = {}
    for metric in run.metrics:
        if metric.metric in BESIDE:
            beside.setdefault(metric.metric, {})[metric.task] = metric
    return Scores(name=name, values={m.task: m for m in run.metrics if m.metric == "acc"}, beside=beside)


def _graded_data(manifest: Mapping[str, Any], dataset_repo: str | None) -> GradedData | None:
    named = manifest.get("mastery_dataset") or {}
    if dataset_repo:
        source = named_source(dataset_repo)
    elif named.get("repo"):
        source = Source(name=named["repo"], hub_id=named["repo"], revision=named.get("revision"))
    elif named:
        source = Source(name="a graded data set", hub_id=None, revision=None)
    else:
        return None
    return GradedData(source=source, fingerprint=named.get("fingerprint"))


def _grading(manifest: Mapping[str, Any]) -> dict[str, str]:
    """How R was measured: the sampling policy, the statements used, the rule by which a sample counts as a hit."""
    known = {**(manifest.get("policy") or {}), **(manifest.get("match") or {})}
    if "certainty" in manifest:
        known["decided early, with certainty"] = manifest["certainty"]
    if "templates" in manifest:
        known["statement templates"] = manifest["templates"] or "all of each topic"
    return _flat(known)


def _sizes(path: Path) -> tuple[int, int]:
    return path.stat().st_size, pq.read_table(path).nbytes


def _facts(folder: Path) -> pa.Table:
    columns = ["topic", "split", "edge", "tries"]
    return pa.concat_tables(pq.read_table(folder / bucket_file(s, b), columns=columns) for s in SPLITS for b in BUCKETS)


def _topics(rows: pa.Table) -> dict[str, dict[Split, int]]:
    counted = rows.group_by(["topic", "split"]).aggregate([([], "count_all")]).to_pylist()
    found = {(row["topic"], row["split"]): int(row["count_all"]) for row in counted}
    topics = sorted({topic for topic, _ in found}, key=lambda t: (len(t), t))
    return {topic: {split: found.get((topic, split), 0) for split in SPLITS} for topic in topics}


def _flat(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings as text, in their order; those without a value say ``none``."""
    return {
        str(name): "none" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in to_json(settings).items()
    }


def _mapping(named: Any) -> Mapping[str, Any]:
    return named if isinstance(named, Mapping) else {"path": named} if named else {}
