"""Token divergence of fine-tuned models from one base outside a run; used by `sftknow divergence`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sftknow.artifacts.divergence import write_divergence
from sftknow.artifacts.mastery_data import MasteryData
from sftknow.divergence.analysis import measure_divergence
from sftknow.divergence.base import measure_base
from sftknow.divergence.forward import load_for_logits
from sftknow.divergence.selection import select_prompts
from sftknow.errors import MasteryDataError
from sftknow.facts.topics import load_topics
from sftknow.models.resolving import BaseModel, local_model, resolve_base
from sftknow.records import BUCKETS, ModelRef, TokenDivergence

Shown = Literal["statement", "question"]


@dataclass(frozen=True, kw_only=True)
class DivergenceOptions:
    """What decides the numbers; see `sftknow.divergence.base.measure_base` and `sftknow.divergence.analysis`."""

    k: int = 10
    window: int = 3
    base_prompt: Shown = "statement"
    tuned_prompt: Shown = "statement"
    buckets: tuple[int, ...] = BUCKETS
    topics_file: Path | None = None
    batch_size: int = 64
    device: str = "auto"
    any_base: bool = False
    """Measure also where the data set was graded by another model."""


def diverge_pairs(
    base: ModelRef, tuned: Sequence[ModelRef], dataset: Path, options: DivergenceOptions, *, out: Path | None
) -> Iterator[TokenDivergence]:
    """Token divergence of each fine-tuned model on the data set's test facts (paper, 4.1); the base runs once.

    Args:
        base: the pretrained model.
        tuned: models that were fine-tuned from it.
        dataset: a graded data set's folder.
        options: how.
        out: the folder for one model's files; with several, one folder each in it, named after the model's. None
            writes nothing.

    Raises:
        MasteryDataError: the data set was graded by another model, or holds nothing to measure.
        ModelError: a model cannot be read or compared.
    """
    data = MasteryData(dataset)
    resolved = resolve_base(base.path, base.revision, base.dtype)
    if not options.any_base:
        check_graded_by(data, resolved)
    folders = [Path(local_model(ref).path) for ref in tuned]
    rows = [row for bucket in sorted(set(options.buckets)) for row in data.bucket("test", bucket)]
    templates = {name: topic.templates for name, topic in load_topics(options.topics_file).items()}
    selection = select_prompts(rows, templates, buckets=options.buckets)
    view = measure_base(
        *load_for_logits(resolved.ref, options.device),
        selection,
        window=options.window,
        prompt=options.base_prompt,
        batch_size=options.batch_size,
    )
    for ref, folder, target in zip(tuned, folders, _targets(out, folders), strict=True):
        model, tokenizer = load_for_logits(ModelRef(path=str(folder), dtype=ref.dtype), options.device)
        result = measure_divergence(view, model, tokenizer, k=options.k, prompt=options.tuned_prompt)
        if target is not None:
            write_divergence(target, result)
        yield result.summary


def check_graded_by(data: MasteryData, base: BaseModel) -> None:
    """Refuse facts that another model was graded on: what one base knows well tells nothing of another.

    Raises:
        MasteryDataError: the manifest names other weights and another model.
    """
    weights = data.manifest.get("graded_by_sha256")
    if weights is None or weights == base.sha256 or data.graded_by == base.name:
        return
    raise MasteryDataError(
        f"{data.folder} was graded by {data.graded_by}, not by {base.name}; give that model as BASE, grade the facts "
        f"by this one (sftknow grade {base.name} …), or pass --any-base to measure all the same"
    )


def _targets(out: Path | None, folders: Sequence[Path]) -> list[Path | None]:
    if out is None or len(folders) == 1:
        return [out] * len(folders)
    names = [folder.name for folder in folders]
    # Two models may lie in folders of the same name; their place tells them apart.
    return [out / (name if names.count(name) == 1 else f"{i}-{name}") for i, name in enumerate(names)]
