"""Reads what a run directory holds into one `Report`; whatever is not there is named, never guessed.

Only files are read (JSON, Parquet, YAML): this room knows the artifacts, not the code that wrote them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml

from sftknow.artifacts.files import read_json
from sftknow.artifacts.knowledge import KNOWLEDGE
from sftknow.artifacts.manifests import MANIFEST
from sftknow.artifacts.mastery_data import MasteryData, bucket_file
from sftknow.errors import RunError
from sftknow.records import (
    BUCKETS,
    SPLITS,
    EvalRun,
    GroupDivergence,
    LevelStatistics,
    MetricValue,
    ParameterChange,
    TokenDivergence,
)
from sftknow.report import gaps
from sftknow.report.by_fact import FactDivergences, Questions, Texts, moved_most, read_columns
from sftknow.report.cells import Cell
from sftknow.report.contents import Choice, Exposed, Graded, Model, Report
from sftknow.report.frame import accuracies, score_frame
from sftknow.report.paper import Beside, recognise, unlike
from sftknow.untrusted import load_json

R = TypeVar("R")

_GRADED = ("fact_id", "rate", "tries", "low", "high", "edge")
_REDO = "redo the stage that wrote it"


def collect(run: Path) -> Report:
    """Read a run directory, whole or partial.

    Raises:
        RunError: it is no run directory, or a file in it is damaged; the message names the file.
    """
    if not run.is_dir():
        raise RunError(f"{run} is not there; give the directory that `sftknow run` wrote")
    manifests = {p.parent.name: _mapping(p) for p in _found(run, f"models/*/{MANIFEST}")}
    evaluations = {p.parent.name: _evaluation(p) for p in _found(run, "evaluation/*/scores.json")}
    divergences = {p.parent.name: _divergence(_mapping(p), p) for p in _found(run, "divergence/*/divergence.json")}
    changes = {p.parent.name: _change(p) for p in _found(run, "changes/*/changes.json")}
    losses = {p.parent.name: _loss_curve(p) for p in _found(run, "models/*/loss.json")}
    graded = _graded(run / "mastery" / "dataset")
    names = {*manifests, *evaluations, *divergences, *changes, *losses}
    train = graded.counts["train"] if graded else {}
    sizes = {name: manifest.get("sft", {}).get("size") for name, manifest in manifests.items()}
    cells = {name: cell for name in sorted(names) if (cell := Cell.read(name, sizes.get(name), train)) is not None}
    ability = _ability(run)
    frame = score_frame(evaluations, divergences, ability, cells)
    scores = accuracies(frame)
    models = {
        name: Model(name=name, scores=scores.get(name, {}), questions=Questions.of(run / "evaluation" / name))
        for name in evaluations
    }
    recipe = _yaml(run / "recipe.yaml")
    provenance = _mapping(run / "provenance.json") if (run / "provenance.json").is_file() else None
    base = _base_name(provenance, recipe, *manifests.values())
    report = Report(
        name=run.resolve().name,
        recipe=recipe,
        provenance=provenance,
        graded=graded,
        exposed=_exposed(run / "facts" / "exposures.parquet", graded),
        frame=frame,
        models=models,
        cells=cells,
        manifests=manifests,
        losses={name: curve for name, curve in losses.items() if curve},
        divergences=divergences,
        fact_divergences={n: FactDivergences(run / "divergence" / n, d.bucket) for n, d in divergences.items()},
        moved={name: moved_most(run / "divergence" / name, d.bucket) for name, d in divergences.items()},
        changes=changes,
        plans={p.parent.name: _mapping(p) for p in _found(run, "changes/*/plan.json")},
        choice=_choice(run / "choice.json"),
        seconds=_seconds(run),
        ability=ability,
        base_name=base,
        beside=Beside(model=_paper_model(run, base), unlike=unlike(recipe)),
        texts=Texts(run / "mastery" / "dataset", ("dev", "test", "testood")),
        knowledge={p.parent.name: _mapping(p) for p in _found(run, f"knowledge/*/{KNOWLEDGE}")},
    )
    if graded is None and not models and not changes and not divergences and report.recipe is None:
        raise RunError(f"{run} holds nothing of a run yet; start one with: sftknow run lab --out {run}")
    return dataclasses.replace(report, missing=gaps.missing(report), unasked=gaps.unasked(report))


def results(run: str | Path) -> pd.DataFrame:
    """Every score of a run in one tidy frame: a line for each model, split, bucket and metric.

    Its columns are those of `sftknow.report.frame.COLUMNS`, where each is explained: ``model``, ``cell``, ``source``,
    ``trained_bucket``, ``size``, ``seed``, ``level``, ``control``, ``layers``, ``task``, ``split``, ``bucket``,
    ``topic``, ``metric``, ``value``, ``stderr`` and ``count``. Accuracies are shares between 0 and 1, divergences are
    in nats.

    Raises:
        RunError: ``run`` is no run directory, or a file in it is damaged; the message names the file.
    """
    return collect(Path(run)).frame


def _found(run: Path, pattern: str) -> list[Path]:
    """Files that match, without those in folders still being written (their names begin with a dot)."""
    return sorted(p for p in run.glob(pattern) if not any(n.startswith(".") for n in p.relative_to(run).parts))


def _mapping(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise RunError(f"{path} does not hold a JSON object; delete it and start again")
    return content


def _yaml(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is damaged ({' '.join(str(error).split())})") from None
    return content if isinstance(content, dict) else {"recipe": content}


def _divergence(content: dict[str, Any], path: Path) -> TokenDivergence:
    beside = content.pop("beside", None)
    for name in ("by_topic", "by_bucket"):
        groups = content.get(name) or {}
        content[name] = {key: _record(GroupDivergence, values, path) for key, values in groups.items()}
    found = _record(TokenDivergence, content, path)
    return dataclasses.replace(found, beside=_divergence(beside, path)) if beside else found


def _record(make: Callable[..., R], values: Any, path: Path) -> R:
    """A record from JSON, whatever else stands beside its fields.

    JSON has neither not-a-number nor infinity: null stands for the one and "inf" for the other.
    """
    names = [f.name for f in dataclasses.fields(make)]  # type: ignore[arg-type]
    written = {None: math.nan, "inf": math.inf}
    plain = {n: values[n] for n in names if n in values}
    try:
        return make(**{n: written.get(v, v) if v is None or isinstance(v, str) else v for n, v in plain.items()})
    except TypeError as error:
        raise RunError(f"{path} lacks a field ({error}); it was written by another version, redo that stage") from None


def _evaluation(path: Path) -> EvalRun:
    content = _mapping(path)
    metrics = tuple(_record(MetricValue, m, path) for m in content.get("metrics", ()))
    return _record(EvalRun, {**content, "metrics": metrics, "questions": ()}, path)


def _change(path: Path) -> ParameterChange:
    content = _mapping(path)
    levels = tuple(_record(LevelStatistics, level, path) for level in content.get("levels", ()))
    return _record(ParameterChange, {**content, "levels": levels}, path)


def _graded(folder: Path) -> Graded | None:
    if not (folder / MANIFEST).is_file():
        return None
    data = MasteryData(folder)
    tables, splits = [], []
    for split in SPLITS:
        for bucket in BUCKETS:
            table = read_columns(folder / bucket_file(split, bucket), _GRADED, remedy=_REDO)
            tables.append(table)
            splits += [split] * table.num_rows
    whole = pa.concat_tables(tables)
    return Graded(
        graded_by=data.graded_by,
        fingerprint=data.fingerprint,
        policy=data.manifest.get("policy") or {},
        counts={split: {b: data.count(split, b) for b in BUCKETS} for split in SPLITS},
        fact_ids=tuple(whole["fact_id"].to_pylist()),
        splits=tuple(splits),
        rate=whole["rate"].to_numpy().astype(np.float64),
        tries=whole["tries"].to_numpy().astype(np.int64),
        low=whole["low"].to_numpy().astype(np.float64),
        high=whole["high"].to_numpy().astype(np.float64),
        edge=np.asarray(whole["edge"].to_pylist(), dtype=np.bool_),
    )


def _exposed(path: Path, graded: Graded | None) -> Exposed | None:
    if graded is None or not path.is_file():
        return None
    table = read_columns(path, ("fact_id", "exposures", "wrong_share"), remedy=_REDO)
    rate = dict(zip(graded.fact_ids, graded.rate.tolist(), strict=True))
    ids = table["fact_id"].to_pylist()
    known = [i for i, fact_id in enumerate(ids) if fact_id in rate]
    if not known:
        return None
    return Exposed(
        exposures=table["exposures"].to_numpy().astype(np.float64)[known],
        wrong_share=np.nan_to_num(table["wrong_share"].to_numpy().astype(np.float64)[known]),
        rate=np.array([rate[ids[i]] for i in known]),
    )


def _choice(path: Path) -> Choice | None:
    if not path.is_file():
        return None
    content = _mapping(path)
    try:
        return Choice(
            cell=str(content["cell"]),
            level=str(content["level"]),
            chosen_on=str(content.get("chosen_on", "an unnamed split")),
        )
    except KeyError as error:
        raise RunError(f"{path} lacks {error}; redo the restoration stage") from None


def _seconds(run: Path) -> dict[str, float]:
    """Time for each kind of stage: the first part of the stage's name, summed over everything below it."""
    total: dict[str, float] = {}
    marks = run / "stages"
    for depth in ("*", "*/*", "*/*/*"):
        for path in _found(marks, f"{depth}.json"):
            kind = path.relative_to(marks).parts[0].removesuffix(".json")
            seconds = _mapping(path).get("seconds")
            if isinstance(seconds, (int, float)):
                total[kind] = total.get(kind, 0.0) + float(seconds)
    return total


def _loss_curve(path: Path) -> tuple[tuple[float, float], ...]:
    """(step, loss) from a list of losses, of pairs or of log entries, or from an object of such lists."""
    content = read_json(path)
    if isinstance(content, dict):
        losses: Any = next((content[k] for k in ("loss", "losses", "log", "curve", "log_history") if k in content), [])
        steps = next((content[k] for k in ("step", "steps") if isinstance(content.get(k), list)), None)
        content = list(zip(steps, losses, strict=False)) if steps is not None else losses
    curve = []
    for place, entry in enumerate(content, start=1):
        step, loss = place, entry
        if isinstance(entry, dict):
            step, loss = entry.get("step", place), entry.get("loss")
        elif isinstance(entry, (list, tuple)):
            step, loss = entry
        if isinstance(loss, (int, float)) and math.isfinite(loss):
            curve.append((float(step), float(loss)))
    return tuple(curve)


def _base_name(*sources: Mapping[str, Any] | None) -> str | None:
    """The base model's name: from the provenance, else from the recipe, else from a manifest, in the order given."""
    for source in sources:
        for key, field in (("base", "name"), ("model", "path"), ("base", "path")):
            part = (source or {}).get(key)
            if isinstance(part, Mapping) and isinstance(part.get(field), str):
                return str(part[field])
    return None


def _paper_model(run: Path, name: str | None) -> str | None:
    """The paper's name of the run's base, by its name or by ``models/base/config.json``; None for other models."""
    path = run / "models" / "base" / "config.json"
    config = None
    if path.is_file():
        try:
            config = load_json(path, lenient=True)
        except RunError:
            config = None  # the base's own file, not an artifact of the run: without it the name decides
    return recognise(name, config if isinstance(config, dict) else None)


def _ability(run: Path) -> dict[str, Mapping[str, Any]]:
    """Other tasks (Table 5): what ``sftknow ability`` wrote into the run directory, by task.

    Found as ``general_ability.json`` in the run directory or in a folder of it; of one task in several files the last
    by path counts. Raises RunError where a file is damaged.
    """
    tasks: dict[str, Mapping[str, Any]] = {}
    for path in sorted([*run.glob("general_ability.json"), *run.glob("*/general_ability.json")]):
        if any(part.startswith(".") for part in path.relative_to(run).parts):
            continue
        content = read_json(path)
        found = content.get("tasks") if isinstance(content, dict) else None
        if not isinstance(found, dict) or not all(isinstance(t.get("rows"), list) for t in found.values()):
            raise RunError(f"{path} holds no tasks with rows; run `sftknow ability` again")
        tasks.update(found)
    return tasks
