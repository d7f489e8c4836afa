"""Token divergence of fine-tuned models from one base, in a run and for `sftknow divergence`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from sftknow.artifacts.divergence import write_divergence
from sftknow.artifacts.mastery_data import MasteryData
from sftknow.checkpoints.adapters import is_adapter
from sftknow.divergence.analysis import DivergenceResult, measure_divergence
from sftknow.divergence.base import BaseView, measure_base
from sftknow.divergence.forward import first_token_logits, load_for_logits
from sftknow.divergence.options import DivergenceOptions, Shown
from sftknow.divergence.selection import PromptChoice, select_prompts
from sftknow.errors import MasteryDataError
from sftknow.facts.topics import Topic, load_topics
from sftknow.models.limits import most_positions, refuse_long
from sftknow.models.loading import load_config, load_tokenizer
from sftknow.models.resolving import BaseModel, local_model, resolve_base
from sftknow.prompts import question_prompt
from sftknow.records import GradedFact, ModelRef
from sftknow.run.checkpoint_pairs import LocalPair, refuse_swapped
from sftknow.run.related import refuse_unrelated


def view_base(
    base: ModelRef, rows: Sequence[GradedFact], topics: Mapping[str, Topic], options: DivergenceOptions
) -> BaseView:
    """What the base predicts on graded test facts, once for all models that are compared with it (paper, 4.1).

    Raises:
        MasteryDataError: there is nothing to measure.
        ModelError: the base cannot be read, or its context is too short for a prompt.
    """
    templates = {name: topic.templates for name, topic in topics.items()}
    selection = select_prompts(rows, templates, buckets=options.buckets)
    tokenizer, positions = load_tokenizer(base), most_positions(load_config(base))
    for form in get_args(Shown):
        # The base goes on for the window and the answer's own tokens; fine-tuned models are shown either prompt.
        completed = form == options.base_prompt
        texts = [
            _shown(choice, form) + (f" {max(choice.fact.answers, key=len)}" if completed else "")
            for choice in selection.choices
        ]
        refuse_long(
            str(base),
            tokenizer,
            texts,
            new_tokens=options.window if completed else 0,
            positions=positions,
            way_out="Leave those facts out",
        )
    return measure_base(
        *load_for_logits(base, options.device),
        selection,
        window=options.window,
        prompt=options.base_prompt,
        batch_size=options.batch_size,
    )


def _shown(choice: PromptChoice, form: Shown) -> str:
    return choice.statement if form == "statement" else question_prompt(choice.fact.question)


def measure(view: BaseView, model: Any, tokenizer: Any, options: DivergenceOptions) -> DivergenceResult:
    """How far the first predicted token of a loaded model is from the base's, shown either prompt."""
    return measure_divergence(
        view, model, tokenizer, k=options.k, prompt=options.tuned_prompt, bootstrap=options.bootstrap, seed=0
    )


def next_logits(view: BaseView, model: Any) -> Tensor:
    """A model's logits of the token after what the base was shown, float32, shape (prompts, vocabulary)."""
    found: Tensor | None = None
    for places, logits in first_token_logits(model, view.prompt_ids, view.batch_size):
        found = torch.empty(len(view.prompt_ids), logits.shape[-1]) if found is None else found
        found[places] = logits
    assert found is not None, "a base view without a prompt is refused"
    return found


def rows_of(data: MasteryData, options: DivergenceOptions) -> list[GradedFact]:
    """The test facts of the buckets that are measured."""
    return [row for bucket in dict.fromkeys(options.buckets) for row in data.bucket("test", bucket)]


def diverge_pairs(
    base: ModelRef, tuned: Sequence[ModelRef], dataset: Path, options: DivergenceOptions, *, out: Path | None
) -> Iterator[DivergenceResult]:
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
        CheckpointError: base and fine-tuned model are swapped.
        ModelError: a model cannot be read or compared, or was not fine-tuned from the base.
    """
    data = MasteryData(dataset)
    resolved = resolve_base(base.path, base.revision, base.dtype)
    folders = [Path(local_model(ref).path) for ref in tuned]
    for ref, folder in zip(tuned, folders, strict=True):
        if not is_adapter(folder):
            refuse_swapped(LocalPair(base=resolved, tuned=folder), str(base), str(ref))
        if not options.any_base:
            refuse_unrelated(Path(resolved.ref.path), folder, names=(str(base), str(ref)), option="--any-base")
    if not options.any_base:
        check_graded_by(data, resolved)
    view = view_base(resolved.ref, rows_of(data, options), load_topics(options.topics_file), options)
    for ref, folder, target in zip(tuned, folders, _targets(out, folders), strict=True):
        model, tokenizer = load_for_logits(ModelRef(path=str(folder), dtype=ref.dtype), options.device)
        result = measure(view, model, tokenizer, options)
        if target is not None:
            write_divergence(target, result)
        yield result


def graded_by_another(data: MasteryData, base: BaseModel) -> bool:
    """Whether the manifest names other weights and another model: what one base knows well tells nothing of another."""
    weights = data.manifest.get("graded_by_sha256")
    return not (weights is None or weights == base.sha256 or data.graded_by == base.name)


def check_graded_by(data: MasteryData, base: BaseModel) -> None:
    """Raise MasteryDataError for facts that another model was graded on."""
    if graded_by_another(data, base):
        raise MasteryDataError(
            f"{data.folder} was graded by {data.graded_by}, not by {base.name}; give that model as BASE, grade the "
            f"facts by this one (sftknow grade {base.name} …), or pass --any-base to measure all the same"
        )


def _targets(out: Path | None, folders: Sequence[Path]) -> list[Path | None]:
    if out is None or len(folders) == 1:
        return [out] * len(folders)
    names = [folder.name for folder in folders]
    # Two models may lie in folders of the same name; their place tells them apart.
    return [out / (name if names.count(name) == 1 else f"{i}-{name}") for i, name in enumerate(names)]
