"""What a model of transformers calls the arguments of its ``forward``, chosen once from its signature.

transformers 5.24 renamed the key-value cache from ``past_key_values`` to ``cache``; the old name warns until it goes.
Models written by others, and older releases, keep the old one.
"""

from __future__ import annotations

import inspect
from typing import Any

CACHE_NAMES = ("cache", "past_key_values")
"""Names of the argument, and of the field of the output, that holds the key-value cache; the newest first."""


def takes(model: Any) -> frozenset[str]:
    """Names of the arguments of a model's ``forward``."""
    return frozenset(inspect.signature(model.forward).parameters)


def cache_name(model: Any) -> str | None:
    """What the model calls its key-value cache, as an argument and in its output; None where it takes none."""
    names = takes(model)
    return next((name for name in CACHE_NAMES if name in names), None)
