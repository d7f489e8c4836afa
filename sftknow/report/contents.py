"""What a run directory holds, typed: the records that every table and figure of the report is made from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from sftknow.artifacts.levels import level_of_folder, level_share
from sftknow.records import EvalRun, ParameterChange, TokenDivergence
from sftknow.report.examples import FactDivergences, MovedExample
from sftknow.report.extras import Texts, layer_range
from sftknow.report.outcomes import Questions
from sftknow.report.paper import Beside

Floats = npt.NDArray[np.float64]

BASE = "base"
"""Name of the base model's evaluation."""

BUCKET_SOURCE = re.compile(r"b([0-4])")
"""A training source that is a mastery bucket."""


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A part that this run does not have."""

    what: str
    where: str
    """The artifact that would have held it, or the way to get it."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One fine-tuning of the grid, read from its name such as ``b2-n240-s0``."""

    name: str
    source: str
    """What it was trained on: ``b0`` to ``b4``, ``mixed``, or another strategy's name."""
    size: int
    """Training facts."""
    all: bool
    """True where the cell took every fact there was (``nall``)."""
    seed: int

    @property
    def bucket(self) -> int | None:
        """The mastery bucket trained on; None for anything else."""
        match = BUCKET_SOURCE.fullmatch(self.source)
        return int(match[1]) if match else None


@dataclass(frozen=True, kw_only=True)
class Model:
    """One evaluated model: the base, a cell, or a cell restored at a level."""

    name: str
    scores: EvalRun
    """Without questions: they stay on disk until two models are compared, and are then read once."""
    questions: Questions | None


@dataclass(frozen=True, kw_only=True)
class Graded:
    """What grading found, fact by fact (all arrays have one entry a fact, in the same order)."""

    graded_by: str
    fingerprint: str
    policy: Mapping[str, Any]
    counts: Mapping[str, Mapping[int, int]]
    """Facts for each split and bucket."""
    fact_ids: tuple[str, ...]
    splits: tuple[str, ...]
    rate: Floats
    """R, between 0 and 1."""
    tries: npt.NDArray[np.int64]
    low: Floats
    """Lower end of the 95 % interval of R."""
    high: Floats
    edge: npt.NDArray[np.bool_]
    """True where the 95 % interval of R crosses a bucket's edge."""


@dataclass(frozen=True, kw_only=True)
class Exposed:
    """Graded facts whose true exposure is known (lab only); arrays have one entry a fact."""

    exposures: Floats
    """Statements about the fact in the pretraining text."""
    wrong_share: Floats
    """Share of those that named another object."""
    rate: Floats


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The restoration level that was chosen, and what it was chosen on."""

    cell: str
    level: str
    chosen_on: str
    """Split whose accuracy decided."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything a run directory holds, typed. Parts that are absent are None or empty and stand in `missing`."""

    name: str
    recipe: Mapping[str, Any] | None
    provenance: Mapping[str, Any] | None
    graded: Graded | None
    exposed: Exposed | None
    models: Mapping[str, Model]
    cells: Mapping[str, Cell]
    manifests: Mapping[str, Mapping[str, Any]]
    """``sftknow.json`` of each fine-tuned model."""
    losses: Mapping[str, tuple[tuple[float, float], ...]]
    """Training loss for each cell: (step, mean loss of the answer tokens in nats)."""
    divergences: Mapping[str, TokenDivergence]
    fact_divergences: Mapping[str, FactDivergences]
    """The divergence of each fact, for each fine-tuned model."""
    moved: Mapping[str, tuple[MovedExample, ...]]
    """The facts whose first token moved most under each fine-tuned model."""
    changes: Mapping[str, ParameterChange]
    plans: Mapping[str, Mapping[str, Any]]
    """How elements were ranked for each analysed cell: strategy, ε, arithmetic."""
    choice: Choice | None
    seconds: Mapping[str, float]
    """Wall-clock time for each kind of stage."""
    ability: Mapping[str, Mapping[str, Any]]
    """Other tasks by name (paper, Table 5): rows of levels with their metrics."""
    base_name: str | None
    """The base model as the run names it."""
    beside: Beside
    """Which of the paper's numbers stand beside this run's."""
    texts: Texts
    """Questions and answers of the test facts."""
    missing: tuple[Missing, ...] = field(default=())
    """Parts of the run that are not there yet."""
    unasked: tuple[Missing, ...] = field(default=())
    """Parts of the paper that the recipe did not ask for, with the way to get them."""

    def restored(self, cell: str) -> dict[str, Model]:
        """The evaluated restorations of a cell, by level, smallest share first. ``0%`` is the cell itself."""
        found = {"0%": self.models[cell]} if cell in self.models else {}
        for name, model in self.models.items():
            owner, at, level = name.partition("@")
            if at and owner == cell and layer_range(level) is None:
                found[level_of_folder(level)] = model
        return dict(sorted(found.items(), key=lambda item: level_share(item[0])))

    def layer_ranges(self, cell: str) -> dict[str, Model]:
        """The evaluated versions of a cell with whole layers set back, by range such as ``0-3``, in layer order."""
        found = {}
        for name, model in self.models.items():
            owner, _, level = name.partition("@")
            layers = layer_range(level)
            if owner == cell and layers is not None:
                found[layers] = model
        return dict(sorted(found.items(), key=lambda item: [int(n) for n in item[0].split("-")]))

    @property
    def restored_cells(self) -> tuple[str, ...]:
        """Cells that were scored after restoring at least one level, in grid order."""
        parts = [name.partition("@") for name in self.models]
        owners = {owner for owner, at, level in parts if at and layer_range(level) is None}
        return tuple(sorted(owners & set(self.models), key=self.order))

    def order(self, name: str) -> tuple[int, str, int, int, str]:
        """Sort key of cells: buckets first, then other strategies, by size and seed."""
        cell = self.cells.get(name)
        if cell is None:
            return (2, name, 0, 0, name)
        return (0 if cell.bucket is not None else 1, cell.source, cell.size, cell.seed, name)
