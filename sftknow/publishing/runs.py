"""What a run directory knows about one of its models: scores, parameter change, how it was made.

Only files are read, in the layout that the pipeline writes.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftknow.artifacts.changes import CHANGES, read_change
from sftknow.artifacts.files import read_json
from sftknow.artifacts.levels import by_share, level_name, level_of_folder
from sftknow.artifacts.manifests import MANIFEST, read_manifest
from sftknow.artifacts.mastery_data import MasteryData
from sftknow.artifacts.scores import QUESTIONS, SCORES, read_eval, read_scores
from sftknow.errors import HubError
from sftknow.records import BUCKETS, EvalRun, ParameterChange


@dataclass(frozen=True, kw_only=True)
class ModelEvaluation:
    """What is known about a model's scores and change, from the run it belongs to."""

    runs: Sequence[tuple[str, EvalRun]]
    """(heading, scores): earlier stages first, the model itself last."""
    change: ParameterChange | None = None
    chosen_on: str | None = None
    """The split that the restoration level was chosen on; of an unrestored model, that one of its levels was."""
    chosen_by: str | None = None
    """By what; see `sftknow.artifacts.choice.ChooseBy`."""
    restored: Sequence[tuple[str, EvalRun]] = ()
    """(level, scores) of the restored versions of an unrestored model, the smallest level first."""
    chosen: str | None = None
    """The level of these that was chosen; ``0%`` where restoring nothing was."""
    example: tuple[str, str] | None = None
    """A question of the test split that the model answers, and its answer."""


def find_evaluation(folder: Path) -> ModelEvaluation | None:
    """Scores and change from the run that a model folder belongs to; None where it belongs to none or was not scored.

    Reads ``evaluation/<model>/scores.json``, ``changes/<cell>/changes.json`` and ``choice.json`` there.
    """
    place = _place_in_run(folder)
    if place is None:
        return None
    run, cell, level = place
    if level:
        stages = [("base model", "base"), ("fine-tuned", cell), ("this model (restored)", f"{cell}@{level}")]
    else:
        stages = [("base model", "base"), ("this model (fine-tuned)", cell)]
    paths = [(heading, run / "evaluation" / name) for heading, name in stages]
    if not (paths[-1][1] / SCORES).is_file():
        return None
    changes, choice = run / "changes" / cell, run / "choice.json"
    chosen = read_json(choice) if choice.is_file() else {}
    here = chosen.get("cell") == cell
    chosen_here = here and level_name(str(chosen.get("level"))) == level
    scored = (run / "evaluation").glob(f"{glob.escape(cell)}@*/{SCORES}") if not level else ()
    folders = {level_of_folder(path.parent.name.partition("@")[2]): path.parent for path in scored}
    return ModelEvaluation(
        runs=[(heading, read_scores(path)) for heading, path in paths if (path / SCORES).is_file()],
        change=read_change(changes) if level and (changes / CHANGES).is_file() else None,
        chosen_on=chosen.get("chosen_on") if chosen_here or (here and not level) else None,
        chosen_by=chosen.get("chosen_by") if chosen_here or (here and not level) else None,
        restored=[(name, read_scores(folders[name])) for name in by_share(folders)],
        chosen=str(chosen.get("level")) if here and not level else None,
        example=_example(run, paths[-1][1]),
    )


def _example(run: Path, evaluation: Path) -> tuple[str, str] | None:
    """The first test question that was answered with nothing but the answer, of the best mastered bucket that has one.

    None where the answers or the data set are not there, or there is no such question.
    """
    data = run / "mastery" / "dataset"
    if not (evaluation / QUESTIONS).is_file() or not (data / MANIFEST).is_file():
        return None
    answered = {q.fact_id: q for q in read_eval(evaluation).questions if q.split == "test" and q.exact_match}
    for bucket in reversed(BUCKETS):
        for row in MasteryData(data).bucket("test", bucket):
            if row.fact.id in answered:
                return row.fact.question.strip(), answered[row.fact.id].output.strip()
    return None


def given_evaluation(folder: Path, scores: Sequence[Path], changes: Path | None) -> ModelEvaluation:
    """Scores and change from folders that `sftknow evaluate --out` and `sftknow changes --out` wrote.

    Args:
        folder: the model's.
        scores: earlier stages first, the model's own last.
        changes: of the fine-tuned model that was restored.

    Raises:
        HubError: the scores are not over the data set that the model names.
    """
    runs = []
    own = (whole_manifest(folder).get("mastery_dataset") or {}).get("fingerprint")
    for place in scores:
        run = read_scores(place)
        if own and run.dataset_fingerprint != own:
            raise HubError(f"{place} holds scores over another graded data set than the one that {folder} names")
        last = place == scores[-1]
        runs.append(("this model" if last else Path(run.model.partition("@")[0]).name, run))
    return ModelEvaluation(runs=runs, change=read_change(changes) if changes else None)


def whole_manifest(folder: Path) -> dict[str, Any]:
    """A model's manifest; that of a restored model in a run gets the ``sft`` entry of the cell that it was made from.

    Raises:
        HubError: the folder has no manifest.
    """
    manifest = read_manifest(folder, "model")
    if manifest is None:
        raise HubError(f"{folder} has no sftknow.json: it is no finished model of sftknow")
    place = _place_in_run(folder)
    if place and place[2] and not manifest.get("sft"):
        run, cell, _ = place
        tuned = read_manifest(run / "models" / cell, "model") or {}
        manifest |= {"sft": tuned["sft"]} if tuned.get("sft") else {}
    return manifest


def _place_in_run(folder: Path) -> tuple[Path, str, str | None] | None:
    """(run, cell, level) of ``<run>/models/<cell>`` or ``<run>/restored/<cell>/<level>``; None for other folders."""
    folder = folder.resolve()
    if folder.parent.parent.name == "restored":
        return folder.parents[2], folder.parent.name, folder.name
    if folder.parent.name == "models":
        return folder.parents[1], folder.name, None
    return None
