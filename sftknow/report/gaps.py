"""What a run directory lacks: parts that a whole run has, and parts of the paper that nobody asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sftknow.report.aggregate import chosen_for
from sftknow.report.cells import Cell, layer_range, named
from sftknow.report.contents import BASE, Missing, Report

_OF_BUCKET = re.compile(r"(?:^|-)b[0-4]$")


def missing(report: Report) -> tuple[Missing, ...]:
    """Parts of a whole run that are not there."""
    tuned = [name for name in report.models if name in report.cells]
    checks = (
        (report.recipe is None, "the recipe", "recipe.yaml"),
        (report.provenance is None, "versions, seeds and hashes", "provenance.json"),
        (report.graded is None, "the mastery grading", "mastery/dataset/"),
        (BASE not in report.models, "the base model's accuracy", "evaluation/base/scores.json"),
        (not tuned, "the accuracy of fine-tuned models", "evaluation/<cell>/scores.json"),
        (not report.losses, "the training loss", "models/<cell>/loss.json"),
        (not report.divergences, "the token divergence", "divergence/<cell>/divergence.json"),
        (not report.changes, "the change of parameters", "changes/<cell>/changes.json"),
        (not report.restored_cells, "the accuracy of restored models", "evaluation/<cell>@<level>/scores.json"),
        (report.choice is None, "the chosen restoration level", "choice.json"),
    )
    gaps = [Missing(what=what, where=where) for absent, what, where in checks if absent]
    for absent, what, where in _single(report, bool(tuned)):
        if absent:
            gaps.append(Missing(what=f"{what} {_some(absent)}", where=where))
    return tuple(gaps)


def _single(report: Report, scored: bool) -> list[tuple[list[str], str, str]]:
    """Single models that a part lacks which others have: names, the part, and where it would be."""
    asked = [name for name in asked_cells(report.recipe) if _can_be_filled(report, name)]
    known = [name for name in report.manifests if name in report.cells]
    untrained = [name for name in asked if name not in report.manifests and name not in report.models]
    unscored = [name for name in known if name not in report.models] if scored else []
    unmoved = [name for name in known if name not in report.divergences] if report.divergences else []
    unranked = [name for name in known if name not in report.changes] if report.changes else []
    return [
        (untrained if known else [], "the training of", "models/<cell>/"),
        (sorted(unscored, key=report.order), "the accuracy of", "evaluation/<cell>/scores.json"),
        (sorted(unmoved, key=report.order), "the token divergence of", "divergence/<cell>/divergence.json"),
        (sorted(unranked, key=report.order), "the change of parameters of", "changes/<cell>/changes.json"),
        (_unrestored(report), "the accuracy after restoring", "evaluation/<cell>@<level>/scores.json"),
        (_layers_unscored(report), "the accuracy after restoring whole layers of", "evaluation/<cell>@layers-<range>/"),
        (_uncontrolled(report), "what restoring is compared with of", "evaluation/<cell>@random-share-<level>-<draw>/"),
        (_tasks_unscored(report), "other tasks:", "ability/general_ability.json"),
    ]


def _some(names: Sequence[str], most: int = 8) -> str:
    """A list that stays readable."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _section(recipe: Mapping[str, Any] | None, name: str) -> Mapping[str, Any]:
    found = (recipe or {}).get(name)
    return found if isinstance(found, Mapping) else {}


def asked_cells(recipe: Mapping[str, Any] | None) -> list[str]:
    """Names of the cells that a run's recipe asks for; none where it does not say its seeds, sizes and buckets."""
    grid = _section(recipe, "grid")
    if not all(isinstance(grid.get(key), list) for key in ("buckets", "sizes", "seeds")):
        return []
    sources = [f"b{bucket}" for bucket in grid["buckets"]] + [s for s in ("mixed", "lora") if grid.get(s)]
    for strategy in grid.get("strategies") or ():
        on = grid.get("strategies_on") or ["mixed"]
        sources += [strategy if each == "mixed" else f"{strategy}-b{each}" for each in on]
    over_all = grid.get("mixed_sizes") or grid["sizes"]
    return [
        f"{source}-n{size}-s{seed}"
        for source in sources
        for size in (grid["sizes"] if _OF_BUCKET.search(source) else over_all)
        for seed in grid["seeds"]
    ]


def _can_be_filled(report: Report, name: str) -> bool:
    """False for a cell that was left out, as its bucket has fewer training facts than it asks for."""
    counts = report.graded.counts["train"] if report.graded else {}
    cell = Cell.read(name, None, counts)
    if (
        cell is None
        or not counts
        or any(name.rpartition("-s")[0] == other.rpartition("-s")[0] for other in report.cells)
    ):
        return True
    return max(cell.size, 1) <= (sum(counts.values()) if cell.bucket is None else counts[cell.bucket])


def _meant(report: Report, names: Sequence[str]) -> list[str]:
    """The cells that a recipe names; a name without a seed stands for those of all seeds."""
    asked = asked_cells(report.recipe)
    return [cell for name in names if name != "best" for cell in named(asked, name) or [name]]


def _unrestored(report: Report) -> list[str]:
    """Levels that the recipe asks for and a restored cell lacks, and cells it names that have none."""
    if not report.restored_cells:
        return []
    section = _section(report.recipe, "restore")
    levels = section.get("levels") or _section(report.recipe, "parameters").get("levels") or []
    named = section.get("cells")
    cells = asked_cells(report.recipe) if named == "all" else [] if named == "best" else _meant(report, named or [])
    cells = sorted({*report.restored_cells, *cells}, key=report.order)
    lacking = []
    for cell in cells:
        found = report.restored(cell)
        absent = [str(level) for level in levels if str(level) not in found]
        if absent:
            lacking.append(cell if len(absent) == len(levels) else f"{cell} ({', '.join(absent)})")
    return lacking


def _layers_unscored(report: Report) -> list[str]:
    section = _section(report.recipe, "restore")
    if not section.get("layers"):
        return []
    named = section.get("layer_cells")
    cells = report.restored_cells if named is None else _meant(report, named)
    return [cell for cell in cells if not report.layer_ranges(cell)]


def _uncontrolled(report: Report) -> list[str]:
    if not _section(report.recipe, "restore").get("controls"):
        return []
    return [cell for cell in report.restored_cells if chosen_for(report, cell) != "0%" and not report.controls(cell)]


def _tasks_unscored(report: Report) -> list[str]:
    return [str(task) for task in _section(report.recipe, "general").get("tasks") or [] if task not in report.ability]


def unasked(report: Report) -> tuple[Missing, ...]:
    """Parts of the paper that this run was not asked for, each with the way to get it."""
    ranges = [name for name in report.models if layer_range(name.partition("@")[2]) is not None]
    sources = {cell.source for cell in report.cells.values()}
    checks = (
        (
            not report.scored("train"),
            "accuracy on the training facts (Table 6)",
            "add train to evaluation.splits in the recipe",
        ),
        (
            not report.ability and not _tasks_unscored(report),
            "other tasks (Table 5)",
            "general.tasks and general.data; or sftknow ability BASE --tasks xsum,gsm8k --size 1920 --out RUN/ability",
        ),
        ("mixed" not in sources, "the mixed draw (Table 7)", "grid.mixed: true"),
        ("lora" not in sources, "LoRA (Table 7)", "grid.lora: true"),
        (not report.other_models, "a model to compare with, such as an instruct version (Table 7)", "grid.baselines"),
        (
            not ranges and not _section(report.recipe, "restore").get("layers"),
            "whole layers restored (Table 11)",
            "restore.layers, the number of layers to set back at a time",
        ),
        (bool(sources) and not report.several_seeds, "the spread over training draws", "several grid.seeds"),
    )
    return tuple(Missing(what=what, where=where) for absent, what, where in checks if absent)
