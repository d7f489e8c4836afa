"""Where the data folders lie, inside an installed wheel or beside the package in a checkout; and the user's cache."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def _first_folder(*candidates: Path) -> Path:
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"none of these folders is there: {', '.join(map(str, candidates))}; reinstall sftknow")


def task_folder() -> Path:
    """The folder of the cbqa_mastery YAML files, for lm-eval's ``--include_path``."""
    spec = importlib.util.find_spec("lm_eval")
    inside_lm_eval = Path(spec.origin).parent / "tasks" / "cbqa_mastery" if spec and spec.origin else PACKAGE
    return _first_folder(PACKAGE.parent / "lm_eval_tasks", inside_lm_eval)


def card_folder() -> Path:
    """The folder of the Hub card templates."""
    return _first_folder(PACKAGE.parent / "hub_cards", PACKAGE / "hub_cards")


def lab_folder() -> Path:
    """The folder of what ships for the lab: ``model/`` and ``facts.parquet``."""
    return PACKAGE / "lab" / "data"


def quick_facts_file() -> Path:
    """The facts of ``--facts quick``."""
    return PACKAGE / "facts" / "quick" / "facts.parquet"


def recipe_folder() -> Path:
    """The folder of the recipes that ship with the package."""
    return PACKAGE / "recipes"


def cache_folder() -> Path:
    """The user's folder for what can be made or fetched again: ``$SFTKNOW_CACHE``, else ``~/.cache/sftknow``."""
    own = os.environ.get("SFTKNOW_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(base) / "sftknow"
