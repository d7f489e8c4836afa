"""The report of one checkpoint pair: its analysis, every table of it, and figures, in one folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from sftknow.errors import CheckpointError
from sftknow.parameters.change import Analysis
from sftknow.parameters.change_tables import LayerRange, all_tables, layer_range_changes, write_tables
from sftknow.parameters.tables import write_analysis


def range_changes(analysis: Analysis, sweep: str) -> list[LayerRange]:
    """What changed in every N layers of the region, or in ranges such as ``0-3,4-7``.

    Raises:
        CheckpointError: neither a number nor ranges, or layers that the region has not.
    """
    if not re.fullmatch(r"\s*\d{1,5}\s*", sweep):
        return layer_range_changes(analysis, [part.strip() for part in sweep.split(",")])
    layers = sorted({tensor.layer for tensor in analysis.tensors if tensor.layer is not None})
    each = int(sweep)
    if each < 1 or not layers:
        raise CheckpointError(f"cannot make ranges of {each} layers of the region {analysis.change.region}")
    parts = [layers[i : i + each] for i in range(0, len(layers), each)]
    return layer_range_changes(analysis, [f"{part[0]}-{part[-1]}" for part in parts])


def write_change_report(folder: Path, analysis: Analysis, ranges: Sequence[LayerRange] = ()) -> None:
    """Write ``tables/`` (CSV, Parquet, JSON), ``figures/`` (SVG, PNG) and the analysis itself, the plan last."""
    from sftknow.report.changes import change_panels, write_panels

    write_tables(folder / "tables", all_tables(analysis, ranges))
    write_panels(folder / "figures", change_panels(analysis.change))
    write_analysis(folder, analysis)
