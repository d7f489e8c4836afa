"""sftknow: what did fine-tuning do to what a language model knows, and how to undo the damage.

The names below are the public surface. They are imported when they are first used, so that ``import sftknow`` is light.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Fact": "sftknow.records",
    "Harness": "sftknow.evaluation.harness",
    "MasteryData": "sftknow.artifacts.mastery_data",
    "MatchRule": "sftknow.answers",
    "ModelLevels": "sftknow.parameters.in_memory",
    "ModelRef": "sftknow.records",
    "SFTRecipe": "sftknow.training.recipe",
    "SamplingPolicy": "sftknow.records",
    "SftknowError": "sftknow.errors",
    "Synonyms": "sftknow.answers",
    "TransformersSampler": "sftknow.grading.transformers_sampler",
    "analyse": "sftknow.parameters.change",
    "apply_patch": "sftknow.parameters.patch",
    "contains": "sftknow.answers",
    "fine_tune": "sftknow.training.train",
    "grade_facts": "sftknow.grading.shards",
    "load_facts": "sftknow.facts.sources",
    "load_recipe": "sftknow.recipes.load",
    "load_topics": "sftknow.facts.topics",
    "measure_divergence": "sftknow.divergence.analysis",
    "publish": "sftknow.publishing.publish",
    "pull": "sftknow.models.pull",
    "rescore": "sftknow.run.rescoring",
    "restore": "sftknow.parameters.restore",
    "restore_": "sftknow.parameters.in_memory",
    "restore_levels": "sftknow.parameters.restore",
    "results": "sftknow.report.collect",
    "write_patch": "sftknow.parameters.patch",
    "write_report": "sftknow.report.compose",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sftknow' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
