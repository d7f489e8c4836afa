"""Compare two models: find what was scored already, score the rest, pair the questions; used by `sftknow compare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sftknow.artifacts.comparisons import Comparison, write_comparison
from sftknow.artifacts.files import read_json
from sftknow.artifacts.manifests import dataset_of_model
from sftknow.artifacts.mastery_data import MasteryData
from sftknow.artifacts.scores import SCORES, read_eval, write_eval
from sftknow.checkpoints.adapters import is_adapter
from sftknow.checkpoints.deltas import is_delta
from sftknow.errors import MasteryDataError, ModelError, RunError
from sftknow.evaluation.comparison import compare
from sftknow.models.identity import weights_sha256
from sftknow.models.options import ModelOptions
from sftknow.models.resolving import local_model
from sftknow.records import SPLITS, EvalRun, Fact, ModelRef, Split

_DEFAULT_SPLITS: tuple[Split, ...] = ("test", "testood")


@dataclass(frozen=True, kw_only=True)
class _Side:
    """One of the two, as far as it is known before anything is scored."""

    text: str
    """As the user wrote it."""
    scores: EvalRun | None
    """What an earlier evaluation gave; None where the model has to be scored now."""
    model: ModelRef | None
    """A local folder, where there are no scores yet."""
    dataset: Path | None
    """The graded data set of the evaluation, or the one that the model names, where that is on this machine."""


def compare_models(
    a: str,
    b: str,
    *,
    run: Path | None = None,
    dataset: Path | None = None,
    splits: Sequence[Split] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    out: Path | None = None,
    scoring: ModelOptions | None = None,
) -> Comparison:
    """Compare two models on the same questions.

    Each side is one of: a name within the run (``base``, ``b3-n60-s0``, ``b3-n60-s0@5pct``); the folder of an
    evaluation; a model's folder, whose evaluation is taken where it lies in a run that scored these very weights; a Hub
    id or ``lab``. What has no evaluation is scored now, both on one data set.

    Args:
        a: the one that differences start from.
        b: the other.
        run: a run directory in which the names are looked up.
        dataset: the graded data set; None for that of the side that has one.
        splits: compare these only; None for all that both were, or can be, scored on.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        out: write the comparison there, and the evaluations that were made for it into ``a/`` and ``b/``.
        scoring: how sides without an evaluation are scored.

    Raises:
        RunError: no such run, or an evaluation that is not whole.
        ModelError: there is no such model.
        MasteryDataError: no data set is named, or the two cannot be compared; see `sftknow.evaluation.comparison`.
    """
    if run is not None and not run.is_dir():
        raise RunError(f"there is no run directory {run}; give the folder that `sftknow run` wrote")
    sides = [_find(text, run) for text in (a, b)]
    found = _dataset(sides, dataset)
    if any(side.scores is None for side in sides):
        if found is None:
            raise MasteryDataError(f"neither {a} nor {b} names a graded data set that is here; pass --mastery DATA")
        sides = _score(sides, found, splits, scoring or ModelOptions(), out)
    first, second = (_named(side) for side in sides)
    if first.model == second.model:
        first, second = (replace(one, model=side.text) for one, side in zip((first, second), sides, strict=True))
    comparison = compare(first, second, facts=_facts(first, found), splits=splits, resamples=resamples, seed=seed)
    if out is not None:
        write_comparison(out, comparison)
    return comparison


def _named(side: _Side) -> EvalRun:
    if side.scores is None:
        raise AssertionError(side.text)
    return side.scores


def _find(text: str, run: Path | None) -> _Side:
    """What the user means by one side. Nothing is scored here."""
    if run is not None:
        name = text.replace("%", "pct")
        cell, _, level = name.partition("@")
        places = (run / "evaluation" / name, run / "restored" / cell / level if level else run / "models" / name)
        for place in places:
            if (place / SCORES).is_file() or (place / "config.json").is_file() or is_delta(place):
                return _from_folder(text, place)
        if not Path(text).exists() and "/" not in text and text != "lab":
            known = sorted(folder.parent.name for folder in run.glob(f"evaluation/*/{SCORES}"))
            raise RunError(f"{run} has no model {text}; it scored: {', '.join(known) or 'none yet'}")
    if Path(text).is_dir():
        return _from_folder(text, Path(text))
    local = local_model(ModelRef.parse(text))
    return _Side(text=text, scores=None, model=local, dataset=_dataset_of_model(Path(local.path)))


def _from_folder(text: str, folder: Path) -> _Side:
    if (folder / SCORES).is_file():
        return _stored(text, folder)
    if not (folder / "config.json").is_file() and not is_delta(folder) and not is_adapter(folder):
        raise ModelError(
            f"{folder} is neither a model (config.json) nor an evaluation (scores.json); in a run the evaluations are "
            "the folders of evaluation/, and --run RUN takes their names"
        )
    known = _evaluation_of(folder.resolve())
    if known is not None:
        return _stored(text, known)
    return _Side(text=text, scores=None, model=ModelRef(path=str(folder)), dataset=_dataset_of_model(folder))


def _stored(text: str, folder: Path) -> _Side:
    data = folder.resolve().parent.parent / "mastery" / "dataset"
    return _Side(text=text, scores=read_eval(folder), model=None, dataset=data if data.is_dir() else None)


def _evaluation_of(model: Path) -> Path | None:
    """Where the run that a model's folder lies in scored these very weights; None where it did not."""
    if model.parent.name == "models":
        run, name = model.parent.parent, model.name
    elif model.parent.parent.name == "restored":
        run, name = model.parent.parent.parent, f"{model.parent.name}@{model.name}"
    else:
        return None
    folder, marks = run / "evaluation" / name, run / "stages"
    mark = marks / "evaluation" / f"{name}.json"
    if not (folder / SCORES).is_file() or not mark.is_file():
        return None
    scored = read_json(mark).get("inputs", {}).get("weights")
    if scored == weights_sha256(model):
        return folder
    written = marks / "restored" / model.parent.name / f"{model.name}.json"
    if not written.is_file() or read_json(written).get("inputs", {}).get("weights") != scored:
        return None
    # A run names a restored model's weights by what they are made of; they are those while nobody writes them anew.
    done = written.stat().st_mtime_ns
    return folder if all(file.stat().st_mtime_ns <= done for file in model.glob("*.safetensors")) else None


def _dataset_of_model(folder: Path) -> Path | None:
    named = dataset_of_model(folder)
    if named is None:
        return None
    if Path(named[0]).is_dir():
        return Path(named[0])
    if named[0].count("/") == 1 and not named[0].startswith((".", "/", "~")):
        from sftknow.models.pull import pull

        return pull("@".join(part for part in named if part), repo_type="dataset")
    return None


def _dataset(sides: Sequence[_Side], given: Path | None) -> Path | None:
    """The data set for scoring and for the questions' texts, checked against every evaluation there is."""
    wanted = {side.text: side.scores.dataset_fingerprint for side in sides if side.scores is not None}
    if given is not None:
        fingerprint = MasteryData(given).fingerprint
        for text, other in wanted.items():
            if other != fingerprint:
                raise MasteryDataError(
                    f"{text} was scored on another graded data set than {given} (fingerprints {other[:12]} and "
                    f"{fingerprint[:12]}); give its model instead of its evaluation, to score it on {given}"
                )
        return given
    found = {side.text: side.dataset for side in sides if side.dataset is not None}
    prints = {text: MasteryData(folder).fingerprint for text, folder in found.items()}
    unscored = {text: prints[text] for text in prints if text not in wanted}
    if wanted:
        fitting = [found[text] for text in found if prints[text] in wanted.values()]
        return fitting[0] if fitting else None
    if len(set(unscored.values())) > 1:
        one, two = found.values()
        raise MasteryDataError(f"the models name different graded data sets ({one} and {two}); choose with --mastery")
    return next(iter(found.values()), None)


def _score(
    sides: Sequence[_Side],
    dataset: Path,
    splits: Sequence[Split] | None,
    scoring: ModelOptions,
    out: Path | None,
) -> list[_Side]:
    """Score what has no evaluation yet: one harness, so that the tasks are built once."""
    from sftknow.evaluation.harness import Harness  # lm-eval takes seconds to load, and two evaluations need none

    there = [side.scores for side in sides if side.scores is not None]
    asked = {question.split for scores in there for question in scores.questions if question.split != "train"}
    wanted = tuple(splits or (split for split in SPLITS if split in asked) if there else splits or _DEFAULT_SPLITS)
    harness = Harness(dataset, splits=wanted or _DEFAULT_SPLITS, batch_size=scoring.batch_size, device=scoring.device)
    done = []
    for side, letter in zip(sides, "ab", strict=True):
        if side.model is None:
            done.append(side)
            continue
        scores = harness.score_path(replace(side.model, dtype=scoring.dtype), name=side.text)
        if out is not None:
            write_eval(out / letter, scores)
        done.append(replace(side, scores=scores))
    return done


def _facts(run: EvalRun, dataset: Path | None) -> dict[tuple[str, str], Fact] | None:
    """The facts behind the questions, by split and id, where the data set is here and is the right one."""
    if dataset is None or MasteryData(dataset).fingerprint != run.dataset_fingerprint:
        return None
    data = MasteryData(dataset)
    asked = {question.split for question in run.questions}
    return {(split, row.fact.id): row.fact for split in SPLITS if split in asked for row in data.split(split)}
