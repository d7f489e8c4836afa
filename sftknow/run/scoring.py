"""Score models outside a run; used by `sftknow evaluate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from sftknow.artifacts.files import digest, read_json, write_json
from sftknow.artifacts.scores import SCORES, read_eval, write_eval
from sftknow.checkpoints.completeness import check_files
from sftknow.errors import MasteryDataError
from sftknow.evaluation.dataset import Questions, find_dataset
from sftknow.evaluation.harness import Harness
from sftknow.models.identity import files_sha256, identity_by_time
from sftknow.models.notes import ModelNotes
from sftknow.models.resolving import local_model, model_sha256
from sftknow.records import EvalRun, ModelRef, Split

INPUTS = "inputs.json"
"""Beside ``scores.json``, written after it: what the scores depend on, so that a second start knows them."""

_WAY_OUT = "pass --mastery FOLDER or --mastery org/name@revision"
_NOTES = ("*.json", "*.model", "*.jinja", "*.txt")


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One model's scores and where its questions came from."""

    scores: EvalRun
    questions: Questions
    out: Path | None
    """The folder with ``scores.json`` and ``questions.parquet``."""


def score_models(
    models: Sequence[ModelRef],
    dataset: str | None,
    *,
    splits: Sequence[Split],
    batch_size: int,
    device: str,
    out: Path | None,
    default: str | None = None,
    limit: int | None = None,
    few_shot: int = 0,
) -> Iterator[Scored]:
    """Score models one after the other; tasks are built and questions tokenised once for a data set.

    Args:
        models: folders or Hub ids.
        dataset: folder or Hub id; None takes for each model the data set that it names.
        splits: which parts to score.
        batch_size: questions a batch.
        device: to compute on.
        out: folder for the results, of several models with a folder for each; None keeps nothing. A second start skips
            models that are done and goes on within the one that was cut off.
        default: the recipe's data set, for models that name none.
        limit: score only the first questions of every bucket.
        few_shot: solved training questions before every question.

    Raises:
        MasteryDataError: there is no data set, or it cannot be used; two models would write to the same folder.
        ModelError: a model that cannot be loaded.
        HubError: the Hub refused or could not be reached.
    """
    folders = _folders(models, out)
    local = [local_model(ref) for ref in models]
    found = [find_dataset(dataset, [ModelNotes(ref)], default=default, way_out=_WAY_OUT) for ref in local]
    for ref in local:
        check_files(ref)
    harness: tuple[str, Harness] | None = None
    for asked, ref, questions, folder in zip(models, local, found, folders, strict=True):
        if harness is None or harness[0] != questions.name:
            made = Harness(
                questions, splits=splits, batch_size=batch_size, device=device, limit=limit, few_shot=few_shot
            )
            harness = (questions.name, made)
        inputs = {
            "weights": model_sha256(Path(ref.path)),
            # Tokenizer, configuration and notes of the checkpoint.
            "model": files_sha256(Path(ref.path), _NOTES),
            "data": questions.data.fingerprint,
            "splits": list(splits),
            "limit": limit,
            **({"few_shot": few_shot} if few_shot else {}),
            "dtype": ref.dtype,
            "batch_size": batch_size,
            "device": device,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }
        if folder is not None and _is_done(folder, Path(ref.path), inputs):
            scores = read_eval(folder)
        else:
            if folder is not None:
                (folder / INPUTS).unlink(missing_ok=True)
            scores = harness[1].score_path(ref, name=str(asked), work=folder, key=digest(inputs))
            if folder is not None:
                write_eval(folder, scores)
                write_json(folder / INPUTS, inputs)
        yield Scored(scores=scores, questions=questions, out=folder)


def _folders(models: Sequence[ModelRef], out: Path | None) -> list[Path | None]:
    if out is None or len(models) == 1:
        return [out] * len(models)
    names = [str(ref).replace("/", "--") if not Path(ref.path).is_dir() else Path(ref.path).name for ref in models]
    for name in names:
        if names.count(name) > 1:
            raise MasteryDataError(f"two of the models would write to {out / name}; score them apart")
    return [out / name for name in names]


def _is_done(folder: Path, model: Path, inputs: Mapping[str, Any]) -> bool:
    if not ((folder / SCORES).is_file() and (folder / INPUTS).is_file()):
        return False
    noted = read_json(folder / INPUTS)
    return bool(noted == inputs or noted == {**inputs, "weights": identity_by_time(model)})
