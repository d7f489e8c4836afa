"""Reads what a run directory holds into one `Report`; whatever is not there is named, never guessed.

Only files are read (JSON, Parquet, YAML): this room knows the artifacts, not the code that wrote them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from sftknow.artifacts.files import read_json
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
from sftknow.report.cells import Cell
from sftknow.report.contents import Choice, Exposed, Graded, Model, Report
from sftknow.report.examples import FactDivergences, moved_most
from sftknow.report.extras import Texts, base_name, general_ability, loss_curve, paper_model
from sftknow.report.frame import accuracies, score_frame
from sftknow.report.outcomes import Questions
from sftknow.report.paper import Beside

R = TypeVar("R")


def collect(run: Path) -> Report:
    """Read a run directory, whole or partial.

    Raises:
        RunError: it is no run directory, or a file in it is damaged; the message names the file.
    """
    if not run.is_dir():
        raise RunError(f"{run} is not there; give the directory that `sftknow run` wrote")
    manifests = {p.parent.name: _mapping(p) for p in _found(run, f"models/*/{MANIFEST}")}
    evaluations = {p.parent.name: _evaluation(p) for p in _found(run, "evaluation/*/scores.json")}
    divergences = {p.parent.name: _divergence(p) for p in _found(run, "divergence/*/divergence.json")}
    changes = {p.parent.name: _change(p) for p in _found(run, "changes/*/changes.json")}
    losses = {p.parent.name: loss_curve(p) for p in _found(run, "models/*/loss.json")}
    graded = _graded(run / "mastery" / "dataset")
    names = {*manifests, *evaluations, *divergences, *changes, *losses}
    train = graded.counts["train"] if graded else {}
    sizes = {name: manifest.get("sft", {}).get("size") for name, manifest in manifests.items()}
    cells = {name: cell for name in sorted(names) if (cell := Cell.read(name, sizes.get(name), train)) is not None}
    ability = general_ability(run)
    frame = score_frame(evaluations, divergences, ability, cells)
    scores = accuracies(frame)
    models = {
        name: Model(name=name, scores=scores.get(name, {}), questions=Questions.of(run / "evaluation" / name))
        for name in evaluations
    }
    recipe = _yaml(run / "recipe.yaml")
    provenance = _mapping(run / "provenance.json") if (run / "provenance.json").is_file() else None
    base = base_name(provenance, recipe, *manifests.values())
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
        beside=Beside(model=paper_model(run, base)),
        texts=Texts(run / "mastery" / "dataset", ("dev", "test", "testood")),
    )
    if graded is None and not models and not changes and not divergences and report.recipe is None:
        raise RunError(f"{run} holds nothing of a run yet; start one with: sftknow run lab --out {run}")
    return dataclasses.replace(report, missing=gaps.missing(report), unasked=gaps.unasked(report))


def results(run: str | Path) -> pd.DataFrame:
    """Every score of a run in one tidy frame: a line for each model, split, bucket and metric.

    Its columns are those of `sftknow.report.frame.COLUMNS`, where each is explained: ``model``, ``cell``, ``source``,
    ``trained_bucket``, ``size``, ``seed``, ``level``, ``layers``, ``task``, ``split``, ``bucket``, ``topic``,
    ``metric``, ``value``, ``stderr`` and ``count``. Accuracies are shares between 0 and 1, divergences are in nats.

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


def _divergence(path: Path) -> TokenDivergence:
    content = _mapping(path)
    for name in ("by_topic", "by_bucket"):
        groups = content.get(name) or {}
        content[name] = {key: _record(GroupDivergence, values, path) for key, values in groups.items()}
    return _record(TokenDivergence, content, path)


def _record(make: Callable[..., R], values: Any, path: Path) -> R:
    """A record from JSON, whatever else stands beside its fields.

    JSON has neither not-a-number nor infinity: null stands for the one and "inf" for the other.
    """
    names = [f.name for f in dataclasses.fields(make)]  # type: ignore[arg-type]
    special = {None: math.nan, "inf": math.inf}
    plain = {n: values[n] for n in names if n in values}
    try:
        return make(**{n: special.get(v, v) if v is None or isinstance(v, str) else v for n, v in plain.items()})
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
            table = _parquet(folder / bucket_file(split, bucket), ("fact_id", "rate", "tries", "low", "high", "edge"))
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


def _parquet(path: Path, columns: Sequence[str]) -> Any:
    try:
        return pq.read_table(path, columns=list(columns))
    except (FileNotFoundError, pa.ArrowInvalid, KeyError) as error:
        raise RunError(f"{path} cannot be read ({error}); redo the stage that wrote it") from None


def _exposed(path: Path, graded: Graded | None) -> Exposed | None:
    if graded is None or not path.is_file():
        return None
    table = _parquet(path, ("fact_id", "exposures", "wrong_share"))
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
