"""Parts of a run that stand beside its grid: which base it is of, other tasks, layer ranges, loss curves, texts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sftknow.artifacts.files import read_json
from sftknow.artifacts.mastery_data import bucket_file
from sftknow.errors import RunError
from sftknow.report.paper import recognise

_LAYERS = re.compile(r"layers-(\d+(?:-\d+)?)")


def loss_curve(path: Path) -> tuple[tuple[float, float], ...]:
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


def layer_range(level: str) -> str | None:
    """``layers-0-3`` → ``0-3``: the decoder layers set back as a whole; None for the name of a share."""
    match = _LAYERS.fullmatch(level)
    return match[1] if match else None


def base_name(*sources: Mapping[str, Any] | None) -> str | None:
    """The base model's name: from the provenance, else from the recipe, else from a manifest, in the order given."""
    for source in sources:
        for key, field in (("base", "name"), ("model", "path"), ("base", "path")):
            part = (source or {}).get(key)
            if isinstance(part, Mapping) and isinstance(part.get(field), str):
                return str(part[field])
    return None


def paper_model(run: Path, name: str | None) -> str | None:
    """The paper's name of the run's base, by its name or by ``models/base/config.json``; None for other models."""
    path = run / "models" / "base" / "config.json"
    config = None
    if path.is_file():
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError):
            config = None  # the base's own file, not an artifact of the run: without it the name decides
    return recognise(name, config if isinstance(config, dict) else None)


def general_ability(run: Path) -> dict[str, Mapping[str, Any]]:
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


class Texts:
    """Questions and answers of the graded facts, read at first use.

    Args:
        dataset: the graded data set's folder.
        splits: which parts may be asked for.
    """

    def __init__(self, dataset: Path, splits: Sequence[str]) -> None:
        self._dataset, self._splits = dataset, tuple(splits)

    @cached_property
    def _texts(self) -> dict[str, tuple[str, str]]:
        found: dict[str, tuple[str, str]] = {}
        for split in self._splits:
            for bucket in range(5):
                path = self._dataset / bucket_file(split, bucket)
                try:
                    table = pq.read_table(path, columns=["fact_id", "question", "object"]).to_pydict()
                except FileNotFoundError:
                    continue
                except (pa.ArrowException, OSError, KeyError) as error:
                    raise RunError(f"{path} cannot be read ({error}); redo the stage that wrote it") from None
                rows = zip(table["fact_id"], table["question"], table["object"], strict=True)
                found.update((fact_id, (question, answer)) for fact_id, question, answer in rows)
        return found

    def of(self, fact_id: str) -> tuple[str, str] | None:
        """(question, answer); None where the fact is not in the data set."""
        return self._texts.get(fact_id)
