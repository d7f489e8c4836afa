"""What fine-tuning did to a region, on disk: ``changes.json``. JSON has no NaN and no infinity: null and ``"inf"``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from sftknow.artifacts.files import write_json
from sftknow.errors import CheckpointError
from sftknow.records import ParameterChange, to_json
from sftknow.untrusted import load_json, shaped

CHANGES = "changes.json"

_WORDS: dict[str | None, float] = {None: math.nan, "inf": math.inf}
_RATIOS = ("concentration", "concentration_nonzero_base")


def write_change(folder: Path, change: ParameterChange) -> None:
    """Write ``changes.json``."""
    write_json(folder / CHANGES, _finite(to_json(change)))


def read_change(folder: Path) -> ParameterChange:
    """The inverse of `write_change`. Raises CheckpointError where the file is missing or of another version."""
    file = folder / CHANGES
    value = load_json(file, error=CheckpointError, way_out="analyse again")
    what = f"{file} is no analysis of this version"
    return shaped(_floats(value), ParameterChange, what, error=CheckpointError, way_out="analyse again")


def _floats(value: Any) -> Any:
    """The inverse of `_finite`, where it may be needed."""
    levels, bins = (value.get(name) for name in ("levels", "histogram")) if isinstance(value, dict) else (None, None)
    for level in levels if isinstance(levels, list) else ():
        if isinstance(level, dict):
            level |= {name: _WORDS.get(level[name], level[name]) for name in _RATIOS if _is_word(level.get(name, 0))}
    for one in bins if isinstance(bins, list) else ():
        if isinstance(one, list) and one and _is_word(one[0]):
            one[0] = _WORDS.get(one[0], one[0])
    return value


def _is_word(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf"
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list) else value
