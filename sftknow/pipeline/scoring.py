"""Score one model outside a run; used by `sftknow evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sftknow.errors import MasteryDataError
from sftknow.evaluation.harness import Harness
from sftknow.evaluation.results import write_eval
from sftknow.pipeline.base import local_model
from sftknow.records import EvalRun, ModelRef, Split
from sftknow.storage.manifests import dataset_of_model


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
