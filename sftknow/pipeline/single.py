"""Single steps outside a run: score one model, compare one pair. Used by the commands of the same names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sftknow.errors import MasteryDataError
from sftknow.evaluation.harness import Harness
from sftknow.evaluation.results import write_eval
from sftknow.facts.topics import load_topics
from sftknow.parameters.change import Analysis, analyse
from sftknow.parameters.restore import restore
from sftknow.pipeline.base import resolve_base
from sftknow.pipeline.cells import level_name
from sftknow.pipeline.training import restored_manifest
from sftknow.records import EvalRun, ModelRef, RestoredCheckpoint, Split, TokenDivergence
from sftknow.storage.manifests import dataset_of_model
from sftknow.storage.mastery_data import MasteryData
from sftknow.tokens.analysis import measure_divergence
from sftknow.tokens.base import measure_base
from sftknow.tokens.forward import load_for_logits
from sftknow.tokens.selection import select_prompts
from sftknow.tokens.tables import write_divergence


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """What decides the order of the parameters of a checkpoint pair; see `sftknow.parameters.change.analyse`."""

    region: str = "transformer"
    layers: str | None = None
    strategy: str = "top"
    seed: int = 0
    epsilon: float = 1e-8
    arithmetic: str = "float32"


def local_model(ref: ModelRef) -> ModelRef:
    """The same model as a folder on this machine; from the Hub it is pulled at a commit."""
    return resolve_base(ref.path, ref.revision, ref.dtype).ref


def score_model(
    ref: ModelRef,
    dataset: Path | None,
    *,
    splits: Sequence[Split],
    batch_size: int,
    device: str,
    out: Path | None,
) -> EvalRun:
    """Score a model on a graded data set, by default the one that the model names.

    Raises:
        MasteryDataError: none was given and the model names none.
    """
    local = local_model(ref)
    if dataset is None:
        named = dataset_of_model(Path(local.path))
        if named is None:
            raise MasteryDataError(f"{ref} names no graded data set; pass --mastery FOLDER or --mastery org/name")
        dataset = Path(named[0])
        if not dataset.is_dir():
            from sftknow.hub.pull import pull

            dataset = pull("@".join(part for part in named if part), repo_type="dataset")
    harness = Harness(dataset, splits=splits, batch_size=batch_size, device=device)
    scores = harness.score_path(local, name=str(ref))
    if out is not None:
        write_eval(out, scores)
    return scores


def diverge_pair(
    base: ModelRef,
    tuned: ModelRef,
    dataset: Path,
    *,
    k: int,
    window: int,
    prompt: Literal["statement", "question"],
    topics_file: Path | None,
    batch_size: int,
    device: str,
    out: Path | None,
) -> TokenDivergence:
    """Token divergence of one pair on the data set's bucket-4 test facts (paper, 4.1)."""
    rows = MasteryData(dataset).bucket("test", 4)
    topics = load_topics(topics_file)
    selection = select_prompts(rows, {name: topic.templates for name, topic in topics.items()})
    model, tokenizer = load_for_logits(local_model(base), device)
    view = measure_base(model, tokenizer, selection, window=window, prompt=prompt, batch_size=batch_size)
    model, tokenizer = load_for_logits(local_model(tuned), device)
    result = measure_divergence(view, model, tokenizer, k=k)
    if out is not None:
        write_divergence(out, result)
    return result.summary


def analyse_pair(base: str, tuned: str, levels: Sequence[str], options: PairOptions) -> Analysis:
    """Rank the parameters of a checkpoint pair; see `sftknow.parameters.change.analyse`."""
    return analyse(
        Path(local_model(ModelRef.parse(base)).path),
        Path(local_model(ModelRef.parse(tuned)).path),
        levels,
        region=options.region,
        layers=options.layers,
        strategy=options.strategy,
        seed=options.seed,
        epsilon=options.epsilon,
        arithmetic=options.arithmetic,
    )


def restore_pair(
    base: str, tuned: str, levels: Sequence[str], out: Path, options: PairOptions
) -> list[RestoredCheckpoint]:
    """Restore a checkpoint at one level (into ``out``) or several (into folders of ``out`` named after the levels)."""
    found = ModelRef.parse(base)
    resolved = resolve_base(found.path, found.revision, None)
    local = replace(resolved.ref, dtype=None)
    tuned_folder = Path(local_model(ModelRef.parse(tuned)).path)
    plan = analyse_pair(local.path, str(tuned_folder), levels, options).plan
    restored = []
    for level in levels:
        target = out if len(levels) == 1 else out / level_name(level)
        manifest = restored_manifest(resolved, tuned_folder, target)
        restored.append(restore(Path(local.path), tuned_folder, plan, level, target, manifest=manifest))
    return restored
