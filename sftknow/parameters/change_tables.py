"""What an analysis says, as plain tables: for files (CSV, Parquet, JSON) and for whoever prints them.

Every share is a fraction of 1. Enrichment is a part's share of the selected elements ÷ its share of the region.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import pyarrow as pa
import pyarrow.parquet as pq

from sftknow.artifacts.files import atomic_file
from sftknow.checkpoints.regions import OUTSIDE, parse_layers
from sftknow.errors import CheckpointError
from sftknow.parameters.change import Analysis, TensorChange
from sftknow.records import ParameterChange

Value = str | int | float | None
Rows = Sequence[Mapping[str, Value]]
_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class LayerRange:
    """What changed in a range of layers (the ranges of the paper's Table 11)."""

    layers: str
    """As it was asked for, such as ``0-3``."""
    elements: int
    changed: int
    share: float
    """Sum of r in these layers ÷ sum of r in the region. NaN where the region's is 0 or infinite."""
    share_nonzero_base: float
    """The same without elements whose base value is 0."""


def layer_range_changes(analysis: Analysis, ranges: Sequence[str]) -> list[LayerRange]:
    """What changed in each range of layers, from the analysis of a region that holds them.

    Raises:
        CheckpointError: a range that cannot be read, or that holds no tensor of the region.
    """
    found = []
    whole = [_total(analysis.tensors, nonzero) for nonzero in (False, True)]
    for text in ranges:
        layers = parse_layers(text)
        tensors = [tensor for tensor in analysis.tensors if tensor.layer in layers]
        absent = layers - {tensor.layer for tensor in tensors}
        if absent:
            raise CheckpointError(f"layers {text}: the region {analysis.change.region} has no layer {min(absent)}")
        found.append(
            LayerRange(
                layers=text,
                elements=sum(tensor.elements for tensor in tensors),
                changed=sum(tensor.changed for tensor in tensors),
                share=_share(_total(tensors, False), whole[0]),
                share_nonzero_base=_share(_total(tensors, True), whole[1]),
            )
        )
    return found


def concentration_rows(change: ParameterChange) -> Rows:
    """By level: elements selected, those that had changed at all, share of the change (the paper's Table 3)."""
    return [
        {
            "level": level.level,
            "selected": level.selected,
            "selected_changed": level.selected - level.selected_unchanged,
            "selected_unchanged": level.selected_unchanged,
            "share_of_change": _number(level.concentration),
            "share_of_change_base_not_0": _number(level.concentration_nonzero_base),
        }
        for level in change.levels
    ]


def place_rows(change: ParameterChange, kind: str) -> Rows:
    """By ``layer`` or ``module`` and level: selected elements, share, enrichment (the paper's Tables 9 and 10)."""
    sizes: Mapping[str, int] = change.elements_by_layer if kind == "layer" else change.elements_by_module
    rows: list[dict[str, Value]] = []
    for key, elements in sizes.items():
        for level in change.levels:
            selected = (level.by_layer if kind == "layer" else level.by_module).get(key, 0)
            share = selected / level.selected if level.selected else math.nan
            rows.append(
                {
                    kind: key,
                    "elements": elements,
                    "share_of_region": elements / change.elements,
                    "level": level.level,
                    "selected": selected,
                    "share_of_selected": _number(share),
                    "enrichment": _number(share / (elements / change.elements)) if elements else None,
                }
            )
    return rows


def histogram_rows(change: ParameterChange) -> Rows:
    """Changed elements by quarter decades of r."""
    return [{"r_from": edge if math.isfinite(edge) else "inf", "elements": count} for edge, count in change.histogram]


class _TensorRows(Sequence[Mapping[str, Value]]):
    """One row a tensor, made when it is asked for: a model may have tens of thousands, with a column for each level."""

    def __init__(self, analysis: Analysis, tensors: Sequence[TensorChange]) -> None:
        self._analysis, self._tensors = analysis, tensors

    def __len__(self) -> int:
        return len(self._tensors)

    @overload
    def __getitem__(self, at: int) -> Mapping[str, Value]: ...

    @overload
    def __getitem__(self, at: slice) -> Rows: ...

    def __getitem__(self, at: int | slice) -> Mapping[str, Value] | Rows:
        if isinstance(at, slice):
            return _TensorRows(self._analysis, self._tensors[at])
        tensor = self._tensors[at]
        names = (f"selected_{level.level}" for level in self._analysis.change.levels)
        return {
            "name": tensor.name,
            "layer": OUTSIDE if tensor.layer is None else str(tensor.layer),
            "module": tensor.module,
            "elements": tensor.elements,
            "changed": tensor.changed,
            "change": _number(tensor.change),
            "change_base_not_0": _number(tensor.change_nonzero_base),
            **dict(zip(names, tensor.selected, strict=True)),
        }


def tensor_rows(analysis: Analysis) -> Rows:
    """By tensor: where it is, how many of its elements changed and are selected, and how much they changed in sum."""
    return _TensorRows(analysis, analysis.tensors)


def layer_range_rows(ranges: Sequence[LayerRange]) -> Rows:
    """By range of layers: elements, changed ones, share of the change."""
    return [
        {
            "layers": entry.layers,
            "elements": entry.elements,
            "changed": entry.changed,
            "share_of_change": _number(entry.share),
            "share_of_change_base_not_0": _number(entry.share_nonzero_base),
        }
        for entry in ranges
    ]


def all_tables(analysis: Analysis, ranges: Sequence[LayerRange] = ()) -> dict[str, Rows]:
    """Every table by its file name."""
    tables = {
        "concentration": concentration_rows(analysis.change),
        "layers": place_rows(analysis.change, "layer"),
        "modules": place_rows(analysis.change, "module"),
        "tensors": tensor_rows(analysis),
        "histogram": histogram_rows(analysis.change),
    }
    return {**tables, "layer_ranges": layer_range_rows(ranges)} if ranges else tables


def write_tables(folder: Path, tables: Mapping[str, Rows]) -> None:
    """Write each table as ``NAME.csv``, ``NAME.parquet`` and ``NAME.json``, a few rows at a time."""
    for name, rows in tables.items():
        columns = list(rows[0]) if rows else []
        with atomic_file(folder / f"{name}.csv") as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        parts = [rows[first : first + _ROWS] for first in range(0, len(rows), _ROWS)] or [rows]
        typed = [pa.Table.from_pylist([_typed(row) for row in part]) for part in parts]
        with atomic_file(folder / f"{name}.parquet") as partial:
            pq.write_table(pa.concat_tables(typed, promote_options="permissive").combine_chunks(), partial)
        with atomic_file(folder / f"{name}.json") as partial, partial.open("w", encoding="utf-8") as file:
            file.write("[\n" if rows else "[")
            for i, row in enumerate(rows):
                text = json.dumps([row], indent=2, ensure_ascii=False, allow_nan=False)
                file.write("," + text[1:-2] if i else text[2:-2])
            file.write("\n]\n" if rows else "]\n")


def _typed(row: Mapping[str, Value]) -> dict[str, Value]:
    """A column of a Parquet file has one type: the edge of the last bin of a histogram is a number there."""
    return {key: math.inf if value == "inf" else value for key, value in row.items()}


def _number(value: float) -> float | str | None:
    """JSON and CSV know no NaN and no infinity."""
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else "inf"


def _total(tensors: Sequence[TensorChange], nonzero: bool) -> float:
    return math.fsum(tensor.change_nonzero_base if nonzero else tensor.change for tensor in tensors)


def _share(part: float, whole: float) -> float:
    return part / whole if whole and math.isfinite(whole) else math.nan
