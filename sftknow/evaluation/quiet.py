"""Silence while lm-eval works inside this process."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from sftknow.models.loading import quiet_libraries


@contextmanager
def quiet_evaluation() -> Iterator[None]:
    """Keep lm-eval and transformers from talking about what is meant so here; errors are still shown."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with quiet_libraries():
            yield
    finally:
        logger.setLevel(level)
