"""What fine-tuning did to a region, on disk: ``changes.json``. JSON has no NaN and no infinity: null and ``"inf"``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from sftknow.artifacts.files import read_json, write_json
from sftknow.errors import CheckpointError, RunError
from sftknow.records import LevelStatistics, ParameterChange, to_json

CHANGES = "changes.json"

_RATIOS = ("concentration", "concentration_nonzero_base")


def write_change(folder: Path, change: ParameterChange) -> None:
    """Write ``changes.json``."""
    write_json(folder / CHANGES, _finite(to_json(change)))


def read_change(folder: Path) -> ParameterChange:
    """The inverse of `write_change`. Raises CheckpointError where the file is missing or of another version."""
    file = folder / CHANGES
    try:
        value = read_json(file)
    except RunError as error:
        raise CheckpointError(str(error)) from None
    try:
        levels = tuple(LevelStatistics(**{**level, **_ratios(level)}) for level in value["levels"])
        histogram = tuple((float(edge), int(count)) for edge, count in value["histogram"])
        return ParameterChange(**{**value, "levels": levels, "histogram": histogram})
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} is not an analysis of this version ({error}); analyse again") from None


def _ratios(level: dict[str, Any]) -> dict[str, float]:
    return {name: math.nan if level[name] is None else float(level[name]) for name in _RATIOS}


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf"
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list) else value
