"""An analysis on disk: ``changes.json``, ``plan.json`` and ``tensors.parquet`` in one folder."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sftknow.artifacts.changes import read_change, write_change
from sftknow.artifacts.files import atomic_file, write_json
from sftknow.errors import CheckpointError
from sftknow.parameters.change import Analysis, TensorChange
from sftknow.records import RestorePlan
from sftknow.untrusted import load_json, shaped

PLAN = "plan.json"
TENSORS = "tensors.parquet"


def write_analysis(folder: Path, analysis: Analysis) -> None:
    """Write the three files, the plan last."""
    rows = {
        "name": [tensor.name for tensor in analysis.tensors],
        "layer": pa.array([tensor.layer for tensor in analysis.tensors], pa.int32()),
        "module": [tensor.module for tensor in analysis.tensors],
        "elements": pa.array([tensor.elements for tensor in analysis.tensors], pa.int64()),
        "changed": pa.array([tensor.changed for tensor in analysis.tensors], pa.int64()),
        "change": pa.array([tensor.change for tensor in analysis.tensors], pa.float64()),
        "change base not 0": pa.array([tensor.change_nonzero_base for tensor in analysis.tensors], pa.float64()),
    }
    for i, level in enumerate(analysis.change.levels):
        counts = [tensor.selected[i] for tensor in analysis.tensors]
        rows[f"selected {level.level}"] = pa.array(counts, pa.int64())
    with atomic_file(folder / TENSORS) as partial:
        pq.write_table(pa.table(rows), partial)
    write_change(folder, analysis.change)
    write_plan(folder / PLAN, analysis.plan)


def read_analysis(folder: Path) -> Analysis:
    """The inverse of `write_analysis`.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    change = read_change(folder)
    try:
        rows = pq.read_table(folder / TENSORS).to_pylist()
        tensors = tuple(
            TensorChange(
                name=row["name"],
                layer=row["layer"],
                module=row["module"],
                elements=row["elements"],
                changed=row["changed"],
                selected=tuple(row[f"selected {level.level}"] for level in change.levels),
                change=row.get("change", math.nan),
                change_nonzero_base=row.get("change base not 0", math.nan),
            )
            for row in rows
        )
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise CheckpointError(f"{folder / TENSORS} is missing or damaged ({error}); analyse again") from None
    return Analysis(change=change, plan=read_plan(folder / PLAN), tensors=tensors)


def write_plan(file: str | Path, plan: RestorePlan) -> None:
    """Write a plan as JSON: small, and enough to restore the same bytes anywhere."""
    file = Path(file)
    write_json(file, plan)


def read_plan(file: str | Path) -> RestorePlan:
    """The inverse of `write_plan`. Raises CheckpointError where the file is missing or no plan."""
    file = Path(file)
    value = load_json(file, error=CheckpointError, way_out="analyse again")
    return shaped(
        value, RestorePlan, f"{file} is no plan of this version", error=CheckpointError, way_out="analyse again"
    )
