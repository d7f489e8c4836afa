"""A fine-tuned model in memory that is moved from level to level and scored at each, without a checkpoint of it."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import Any

from sftknow.artifacts.levels import UNTOUCHED
from sftknow.evaluation.harness import Harness
from sftknow.models.loading import load_model, load_tokenizer
from sftknow.parameters.in_memory import ModelLevels
from sftknow.records import EvalRun, ModelRef, RestorePlan
from sftknow.run.checkpoint_pairs import LocalPair


class MovedModel:
    """What scores the levels of one pair. The model is loaded once, when the first level is asked for.

    Args:
        pair: with the whole weights of both.
        harness: the questions.
        dtype: to load in; None for what the model's config names.
        device: ``auto``, ``cpu``, ``cuda`` …
    """

    def __init__(self, pair: LocalPair, harness: Harness, *, dtype: str | None, device: str) -> None:
        self._pair, self._harness, self._dtype, self._device = pair, harness, dtype, device
        self._levels: ModelLevels | None = None
        self._plan: RestorePlan | None = None

    def score(
        self,
        plan: RestorePlan,
        level: str,
        *,
        name: str,
        work: Path,
        key: str,
        fact_ids: Collection[str] | None = None,
    ) -> EvalRun:
        """Move the model to a level of a plan and score it; the other arguments are those of `Harness.score`.

        Raises:
            CheckpointError: the model cannot be moved between levels in memory; see `ModelLevels`.
            ModelError, MasteryDataError: as `Harness.score_path`.
        """
        model, tokenizer = self._loaded
        if self._levels is None or plan is not self._plan:
            if self._levels is not None:
                self._levels.to(UNTOUCHED)
            self._levels = ModelLevels(model, self._pair.base_folder, self._pair.tuned, plan)
            self._plan = plan
        self._levels.to(level)
        return self._harness.score(model, tokenizer, name=name, fact_ids=fact_ids, work=work, key=key)

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        ref = ModelRef(path=str(self._pair.tuned), dtype=self._dtype)
        return load_model(ref, device=self._device), load_tokenizer(ref)
