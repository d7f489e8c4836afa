"""A fine-tuned model that is scored at level after level of its restoration.

It is moved in memory from one to the next, without a checkpoint of it, where it holds every tensor of the region in one
stretch. Else each level is written to a folder of its own, scored from there, and removed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from sftknow.artifacts.levels import UNTOUCHED, parse_level
from sftknow.checkpoints.reader import listed
from sftknow.evaluation.harness import Harness
from sftknow.models.loading import load_model, load_tokenizer
from sftknow.parameters.between import blend_
from sftknow.parameters.in_memory import ModelLevels, unplaced
from sftknow.parameters.restore import restore_levels
from sftknow.records import EvalRun, ModelRef, RestorePlan
from sftknow.run.checkpoint_pairs import LocalPair


class MovedModel:
    """What scores the levels of one pair. A model that is moved is loaded once, when the first level is asked for.

    Args:
        pair: with the whole weights of both.
        harness: the questions.
        dtype: to load in; None for what the model's config names.
        device: ``auto``, ``cpu``, ``cuda`` …
        say: gets a line where levels have to be written.
    """

    def __init__(
        self, pair: LocalPair, harness: Harness, *, dtype: str | None, device: str, say: Callable[[str], object] = print
    ) -> None:
        self._pair, self._harness, self._dtype, self._device, self._say = pair, harness, dtype, device, say
        self._levels: ModelLevels | None = None
        self._plan: RestorePlan | None = None

    def prepare(self, plan: RestorePlan) -> None:
        """Find out whether the model can be moved between the levels of a plan, and say so where it cannot."""
        if self._plan is plan:
            return
        if self._levels is not None:
            self._levels.to(UNTOUCHED)
        self._plan, self._levels = plan, None
        base, tuned = self._pair.base_folder, self._pair.tuned
        missing = unplaced(self._loaded[0], base, tuned, plan)
        if not missing:
            self._levels = ModelLevels(self._loaded[0], base, tuned, plan)
            return
        del self._loaded  # levels are loaded one by one
        self._say(
            f"{tuned.name} cannot be moved between levels in memory, since transformers packs {listed(missing, 1)} in "
            "another order: each level is written to a folder, scored and removed"
        )

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
        """Score the model at a level of a plan; the other arguments are those of `Harness.score`.

        Raises:
            CheckpointError: the pair is not that of the plan; no room for a level that has to be written.
            ModelError, MasteryDataError: as `Harness.score_path`.
        """
        self.prepare(plan)
        asked = partial(self._harness.score, name=name, fact_ids=fact_ids, work=work, key=key)
        if self._levels is not None:
            self._levels.to(level)
            return asked(*self._loaded)
        if parse_level(level) == 0:
            return asked(*self._load(self._pair.tuned))
        written = work.with_name(f".{work.name}.model")
        restore_levels(self._pair.base_folder, self._pair.tuned, plan, {level: written})
        try:
            return asked(*self._load(written))
        finally:
            shutil.rmtree(written, ignore_errors=True)

    def _load(self, folder: Path) -> tuple[Any, Any]:
        ref = ModelRef(path=str(folder), dtype=self._dtype)
        return load_model(ref, device=self._device), load_tokenizer(ref)

    def score_after(self, move: Callable[[Any], None], *, name: str, work: Path, key: str) -> EvalRun:
        """Score the model with the weights that `move` gives it, and give it its own back; see `Harness.score`.

        Raises:
            CheckpointError: the model cannot be moved in memory.
        """
        if self._levels is not None:
            self._levels.to(UNTOUCHED)
        model, tokenizer = self._loaded
        try:
            move(model)
            return self._harness.score(model, tokenizer, name=name, work=work, key=key)
        finally:
            blend_(model, self._pair.base_folder, self._pair.tuned, 0.0)

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        return self._load(self._pair.tuned)
