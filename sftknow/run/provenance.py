"""Where the numbers of a run come from: versions, machine, seeds, hashes."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import torch

from sftknow.dependencies import installed
from sftknow.facts.sources import FactSet
from sftknow.models.resolving import BaseModel
from sftknow.recipes.schema import Recipe

_PACKAGES = (
    "sftknow", "torch", "transformers", "trl", "lm_eval", "datasets", "evaluate", "huggingface_hub", "safetensors",
    "numpy",
)  # fmt: skip


def surroundings() -> dict[str, Any]:
    """Versions and machine of this start."""
    return {
        "packages": {name: installed(name) or "not installed" for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def provenance(
    recipe: Recipe,
    base: BaseModel,
    facts: FactSet,
    hashes: dict[str, str],
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that a reader needs to repeat the run. No path of this machine but the user's own words.

    Args:
        before: what the run's last start recorded. Where its versions or machine were others, they are kept under
            ``earlier``: part of the numbers may be from there.
    """
    here = surroundings()
    earlier = list(before.get("earlier", ())) if before else []
    then = {name: before[name] for name in here if name in before} if before else here
    if then not in (here, *earlier):
        earlier.append(then)
    return {
        **here,
        **({"earlier": earlier} if earlier else {}),
        "threads": torch.get_num_threads(),
        "base": {"name": base.name, "weights_sha256": base.sha256},
        "facts": {
            "source": facts.source,
            "sha256": facts.sha256,
            "count": len(facts.facts),
            "removed": facts.removed,
            "official_release": facts.official,
        },
        "hashes": hashes,
        "seeds": {
            "facts": recipe.facts.seed,
            "grading": recipe.grading.seed,
            "grid": list(recipe.grid.seeds),
            "parameters": recipe.parameters.seed,
        },
    }
