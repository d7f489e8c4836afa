"""What a run directory lacks: parts that a whole run has, and parts of the paper that nobody asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftknow.report.extras import layer_range

if TYPE_CHECKING:
    from sftknow.report.collect import Report

BASE = "base"


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A part that this run does not have."""

    what: str
    where: str
    """The artifact that would have held it, or the way to get it."""


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
    unscored = sorted(set(report.manifests) - set(report.models), key=report.order)
    unscored = [name for name in unscored if name in report.cells or name == BASE]
    if unscored and tuned:
        gaps.append(Missing(what=f"the accuracy of {', '.join(unscored)}", where="evaluation/<cell>/scores.json"))
    return tuple(gaps)


def unasked(report: Report) -> tuple[Missing, ...]:
    """Parts of the paper that this run was not asked for, each with the way to get it."""
    trained = any(m.task == "cbqa_mastery_train" for model in report.models.values() for m in model.scores.metrics)
    baselines = [name for name in report.models if name != BASE and "@" not in name and name not in report.cells]
    ranges = [name for name in report.models if layer_range(name.partition("@")[2]) is not None]
    sources = {cell.source for cell in report.cells.values()}
    several = len({cell.seed for cell in report.cells.values()}) > 1
    checks = (
        (
            not trained,
            "accuracy on the training facts (Table 6)",
            "add train to evaluation.splits in the recipe",
        ),
        (
            not report.ability,
            "other tasks (Table 5)",
            "sftknow ability BASE --tasks xsum,gsm8k --data TASK=FOLDER --out RUN/ability",
        ),
        ("mixed" not in sources, "the mixed draw (Table 7)", "grid.mixed: true"),
        ("lora" not in sources, "LoRA (Table 7)", "grid.lora: true"),
        (not baselines, "a model to compare with, such as an instruct version (Table 7)", "grid.baselines"),
        (
            not ranges,
            "whole layers restored (Table 11)",
            "sftknow restore BASE MODEL --layer-sweep 4 --out DIR, then sftknow evaluate DIR/layers-0-3 with --out "
            "RUN/evaluation/<cell>@layers-0-3, and so on",
        ),
        (bool(sources) and not several, "the spread over training draws", "several grid.seeds"),
    )
    return tuple(Missing(what=what, where=where) for absent, what, where in checks if absent)
