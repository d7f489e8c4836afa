"""Every score of a run in one tidy frame: a line for each model, split, bucket and metric.

The report reads its accuracies from this frame, and `sftknow.results` hands it out. A number that a table shows is
a mean or a difference of its lines.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sftknow.artifacts.levels import level_of_folder, read_control
from sftknow.records import EvalRun, GroupDivergence, TokenDivergence
from sftknow.report.cells import Cell, layer_range
from sftknow.stats import NORMAL_95

COLUMNS = {
    "model": "name of the evaluation: base, a cell such as b2-n240-s0, the same with @20pct, or another model's",
    "cell": "the fine-tuned model behind it, such as b2-n240-s0; missing for the base and for other models",
    "source": "what it was trained on: b0 to b4, mixed, lora or another strategy's name; base; baseline",
    "trained_bucket": "mastery bucket trained on; missing for anything else",
    "size": "training facts",
    "seed": "of the training draw",
    "level": "share of the elements restored, such as 20%; 0% for a fine-tuned model as it is",
    "control": "what was done instead of setting the most changed share back, to compare with: random-share, "
    "random-distance, blend-share or blend-distance; the level is that of the restoration; missing otherwise",
    "layers": "decoder layers restored as a whole, such as 0-3; missing where none were",
    "task": "cbqa_mastery, token_divergence, or another task such as xsum",
    "split": "train, dev, test or testood; missing for other tasks",
    "bucket": "mastery bucket of the questions; missing for the plain mean over the buckets",
    "topic": "Wikidata relation of the questions, where it is known; missing for all topics",
    "metric": "acc, acc_word, exact_match, ended (answers that end by themselves); kl, kl_full, top_changed, and with "
    "_beside the same with the fine-tuned model shown the other prompt; or another task's",
    "value": "share between 0 and 1; divergences in nats",
    "stderr": "standard error over questions; from the bootstrap interval for kl; missing where there is none",
    "count": "questions or facts behind the value",
}
"""The columns of the frame and what they hold."""

_DTYPES = {
    **dict.fromkeys(COLUMNS, "string"),
    **dict.fromkeys(("trained_bucket", "size", "seed", "bucket", "count"), "Int64"),
    **dict.fromkeys(("value", "stderr"), "float64"),
}

MASTERY, DIVERGENCE = "cbqa_mastery", "token_divergence"

_TASK = re.compile(r"cbqa_mastery_(?P<split>[a-z]+?)(?:_bucket_(?P<bucket>\d))?")

Place = tuple[str, int | None, str]
"""Split, bucket (None for the plain mean over buckets) and metric."""

Line = dict[str, Any]


@dataclass(frozen=True)
class Score:
    """One number of a model with what it stands on."""

    value: float
    """Share between 0 and 1."""
    stderr: float
    count: int


def score_frame(
    runs: Mapping[str, EvalRun],
    divergences: Mapping[str, TokenDivergence],
    ability: Mapping[str, Mapping[str, Any]],
    cells: Mapping[str, Cell],
) -> pd.DataFrame:
    """All scores of a run, with the columns of `COLUMNS`.

    Args:
        runs: accuracies by model.
        divergences: of the first token, by cell.
        ability: other tasks, as ``general_ability.json`` holds them.
        cells: what each fine-tuned model was trained on.
    """
    lines = [
        {"model": name, **_about(name, cells), "task": MASTERY, **line}
        for name, run in runs.items()
        for line in _accuracies(run)
    ]
    lines += [
        {"model": name, **_about(name, cells), "task": DIVERGENCE, "split": "test", **line}
        for name, found in divergences.items()
        for line in _divergences(found)
    ]
    lines += [line for task, content in ability.items() for line in _other_task(task, content)]
    return pd.DataFrame(lines, columns=list(COLUMNS)).astype(_DTYPES)


def _about(name: str, cells: Mapping[str, Cell]) -> Line:
    """What a model is, from its name and its cell."""
    owner, at, level = name.partition("@")
    layers, control = layer_range(level), read_control(level)
    cell = cells.get(owner)
    if cell is None:
        return {"source": "base" if owner == "base" else "baseline", "layers": layers}
    return {
        "cell": owner,
        "source": cell.source,
        "trained_bucket": cell.bucket,
        "size": cell.size,
        "seed": cell.seed,
        "level": None if layers else control[1] if control else level_of_folder(level) if at else "0%",
        "control": control[0] if control else None,
        "layers": layers,
    }


def _accuracies(run: EvalRun) -> Iterator[Line]:
    """A model's scores; the mean over buckets is worked out where it was not written."""
    found: dict[Place, Line] = {}
    for m in run.metrics:
        if match := _TASK.fullmatch(m.task):
            bucket = int(match["bucket"]) if match["bucket"] else None
            place = (match["split"], bucket, m.metric)
            found.setdefault(place, {"value": m.value, "stderr": m.stderr, "count": m.count})
    for split, metric in dict.fromkeys((split, metric) for split, _, metric in found):
        leaves = [line for (s, b, name), line in found.items() if s == split and name == metric and b is not None]
        if (split, None, metric) not in found:
            found[split, None, metric] = {
                "value": sum(leaf["value"] for leaf in leaves) / len(leaves),
                "stderr": math.sqrt(sum(leaf["stderr"] ** 2 for leaf in leaves)) / len(leaves),
                "count": sum(leaf["count"] for leaf in leaves),
            }
    for (split, bucket, metric), line in found.items():
        yield {"split": split, "bucket": bucket, "metric": metric, **line}


def interval_error(low: float, high: float) -> float:
    """The standard error that a 95 % interval has."""
    return (high - low) / (2 * NORMAL_95)


def _divergences(found: TokenDivergence) -> Iterator[Line]:
    groups: list[tuple[Line, TokenDivergence | GroupDivergence]] = [({"bucket": found.bucket}, found)]
    groups += [({"bucket": found.bucket, "topic": topic}, group) for topic, group in found.by_topic.items()]
    groups += [({"bucket": int(b)}, group) for b, group in found.by_bucket.items() if int(b) != found.bucket]
    for about, group in groups:
        error = interval_error(group.low, group.high)
        for metric, value, stderr in (
            ("kl", group.mean, error),
            ("kl_full", group.full_mean, math.nan),
            ("top_changed", group.top_changed, math.nan),
        ):
            yield {**about, "metric": metric, "value": value, "stderr": stderr, "count": group.count}
    if found.beside is not None:
        for line in _divergences(found.beside):
            yield {**line, "metric": f"{line['metric']}_beside"}


def _other_task(task: str, content: Mapping[str, Any]) -> Iterator[Line]:
    for row in content["rows"]:
        level = str(row["level"])
        for m in row.get("metrics", ()):
            yield {
                "model": "base" if level == "base" else f"{task}@{level}",
                "source": "base" if level == "base" else task,
                "level": None if level == "base" else level,
                "task": task,
                "metric": str(m["name"]),
                "value": math.nan if m.get("value") is None else float(m["value"]),
                "stderr": math.nan if m.get("stderr") is None else float(m["stderr"]),
                "count": m.get("count"),
            }


def accuracies(frame: pd.DataFrame) -> dict[str, dict[Place, Score]]:
    """Accuracies by model and place: the frame's lines of the mastery questions as typed records."""
    found: dict[str, dict[Place, Score]] = {}
    mine = frame[(frame["task"] == MASTERY).to_numpy(bool)]
    fields = ("model", "split", "bucket", "metric", "value", "stderr", "count")
    for model, split, bucket, metric, value, stderr, count in zip(*(mine[f].tolist() for f in fields), strict=True):
        place = (split, None if bucket is pd.NA else bucket, metric)
        found.setdefault(model, {})[place] = Score(value, stderr, count)
    return found
