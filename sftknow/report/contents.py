"""What a run directory holds, typed: the records that every table and figure of the report is made from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from sftknow.artifacts.choice import ChooseBy
from sftknow.artifacts.knowledge import EXAMPLES
from sftknow.artifacts.levels import by_share, level_of_folder, read_control
from sftknow.records import ParameterChange, TokenDivergence
from sftknow.report.by_fact import FactDivergences, MovedExample, Questions, Texts
from sftknow.report.cells import Cell, Kind, layer_range
from sftknow.report.frame import Place, Score
from sftknow.report.paper import Beside

Floats = npt.NDArray[np.float64]

BASE = "base"
"""Name of the base model's evaluation."""

SPLIT_TITLES = {"train": "training", "dev": "dev", "test": "in-domain test", "testood": "out-of-domain test"}


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A part that this run does not have."""

    what: str
    where: str
    """The artifact that would have held it, or the way to get it."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """One evaluated model: the base, a cell, or a cell restored at a level."""

    name: str
    scores: Mapping[Place, Score]
    """Its lines of the frame of scores."""
    questions: Questions | None
    """They stay on disk until two models are compared, and are then read once."""

    def score(self, split: str, bucket: int | None = None, metric: str = "acc") -> Score | None:
        """A score on a split: the plain mean over its buckets or one bucket; None where there is none."""
        return self.scores.get((split, bucket, metric))


@dataclass(frozen=True, kw_only=True)
class Training(Kind):
    """The cells of one kind: the same training with different seeds."""

    cells: tuple[Cell, ...]
    models: tuple[Model, ...]
    """Those that were evaluated, one a seed."""

    @property
    def name(self) -> str:
        """Such as ``b2-n240``."""
        return f"{self.source}-n{'all' if self.all else self.size}"


@dataclass(frozen=True, kw_only=True)
class Restored(Kind):
    """A training with those of its seeds that were scored after restoring; or a model beside the grid by itself."""

    name: str
    """In words."""
    in_grid: bool
    runs: Mapping[str, Mapping[str, Model]]
    """For each cell its models by level, smallest share first; ``0%`` is the cell itself."""

    @property
    def phrase(self) -> str:
        return super().phrase if self.in_grid else self.name

    def at(self, level: str) -> list[Model]:
        """The models at a level, one for each seed that was restored at it."""
        return [run[level] for run in self.runs.values() if level in run]

    def plain(self, level: str) -> list[Model]:
        """The same seeds as they were trained."""
        return [run["0%"] for run in self.runs.values() if level in run]

    @property
    def shared_levels(self) -> list[str]:
        """Levels that every seed was restored at, smallest share first."""
        return by_share(set.intersection(*(set(run) for run in self.runs.values())) - {"0%"})

    def scored(self, split: str) -> Restored:
        """The seeds whose unrestored model was scored on a split."""
        return replace(self, runs={name: run for name, run in self.runs.items() if run["0%"].score(split)})


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
    frame: pd.DataFrame
    """Every score; see `frame.COLUMNS`."""
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
    knowledge: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Mastery before and after, of models that were graded as the base was: ``knowledge.json`` by model."""
    missing: tuple[Missing, ...] = field(default=())
    """Parts of the run that are not there yet."""
    unasked: tuple[Missing, ...] = field(default=())
    """Parts of the paper that the recipe did not ask for, with the way to get them."""

    @cached_property
    def trainings(self) -> tuple[Training, ...]:
        """Evaluated cells by source and size: buckets first."""
        return self._trainings(cell for name, cell in self.cells.items() if name in self.models)

    @cached_property
    def every_training(self) -> tuple[Training, ...]:
        """As `trainings`, with cells that were not evaluated."""
        return self._trainings(self.cells.values())

    def _trainings(self, cells: Iterable[Cell]) -> tuple[Training, ...]:
        members: dict[tuple[str, bool, int], list[Cell]] = {}
        for cell in sorted(cells, key=lambda c: self.order(c.name)):
            members.setdefault((cell.source, cell.all, 0 if cell.all else cell.size), []).append(cell)
        found = [
            Training(
                source=own[0].source,
                size=own[0].size,
                all=own[0].all,
                cells=tuple(own),
                models=tuple(self.models[c.name] for c in own if c.name in self.models),
            )
            for own in members.values()
        ]
        return tuple(sorted(found, key=lambda t: (t.bucket is None, t.source, t.size, t.all)))

    def without_seed(self, seed: int) -> Report:
        """The report as it would be without a training draw."""
        gone = {name for name, cell in self.cells.items() if cell.seed == seed}
        return replace(
            self,
            cells={name: cell for name, cell in self.cells.items() if name not in gone},
            models={name: model for name, model in self.models.items() if name.partition("@")[0] not in gone},
            divergences={name: found for name, found in self.divergences.items() if name not in gone},
        )

    @cached_property
    def large_size(self) -> int | None:
        """The largest size that at least two buckets, bucket 0 among them, were trained on (`all` left out)."""
        found = [t for t in self.trainings if t.bucket is not None and not t.all]
        with_unknown = {t.size for t in found if t.bucket == 0}
        return max((t.size for t in found if t.bucket != 0 and t.size in with_unknown), default=None)

    @property
    def other_models(self) -> dict[str, Model]:
        """Models beside the grid, such as an instruct version."""
        own = {BASE, EXAMPLES, *self.cells}
        return {n: m for n, m in self.models.items() if "@" not in n and n not in own}

    @property
    def several_seeds(self) -> bool:
        """Whether a cell's seed has to be named."""
        return len({cell.seed for cell in self.cells.values()}) > 1

    def title(self, name: str) -> str:
        """A cell in words, such as ``bucket 2, 240 facts``; the seed is named where the run has several."""
        cell = self.cells.get(name)
        return name if cell is None else f"{cell.title}, seed {cell.seed}" if self.several_seeds else cell.title

    def phrase(self, name: str) -> str:
        """A cell in running text, such as ``240 facts of bucket 2``; the seed is named where the run has several."""
        cell = self.cells.get(name)
        return name if cell is None else f"{cell.phrase} (seed {cell.seed})" if self.several_seeds else cell.phrase

    def scored(self, *splits: str) -> list[str]:
        """Those of the splits that at least one model was scored on."""
        return [s for s in splits if any(m.score(s) for m in self.models.values())]

    @property
    def choosing_split(self) -> str:
        """Where the best of several is picked: dev where it was scored, else the in-domain test."""
        return "dev" if self.scored("dev") else "test"

    @property
    def choosing_by(self) -> ChooseBy:
        """How the run chooses the best model and its level; before it was asked, by containment."""
        section = (self.recipe or {}).get("restore")
        by: ChooseBy = (section or {}).get("choose_by", "acc") if isinstance(section, Mapping) else "acc"
        return by

    @cached_property
    def _versions(self) -> dict[str, dict[str, Model]]:
        """Models with something restored: by cell, then by what was restored."""
        found: dict[str, dict[str, Model]] = {}
        for name, model in self.models.items():
            owner, at, level = name.partition("@")
            if at:
                found.setdefault(owner, {})[level] = model
        return found

    def restored(self, cell: str) -> dict[str, Model]:
        """The evaluated restorations of a cell, by level, smallest share first. ``0%`` is the cell itself."""
        found = {"0%": self.models[cell]} if cell in self.models else {}
        versions = self._versions.get(cell, {}).items()
        found |= {
            level_of_folder(level): model
            for level, model in versions
            if layer_range(level) is None and read_control(level) is None
        }
        return {level: found[level] for level in by_share(found)}

    @cached_property
    def restored_trainings(self) -> tuple[Restored, ...]:
        """Every training of which a seed was restored, then restored models beside the grid."""
        found = []
        for t in self.trainings:
            runs = {c.name: self.restored(c.name) for c in t.cells if c.name in self.restored_cells}
            if runs:
                found.append(Restored(source=t.source, size=t.size, all=t.all, name=t.title, in_grid=True, runs=runs))
        others = [name for name in self.restored_cells if name not in self.cells]
        return (
            *found,
            *(Restored(source=n, size=0, all=False, name=n, in_grid=False, runs={n: self.restored(n)}) for n in others),
        )

    def controls(self, cell: str) -> dict[str, dict[str, list[Model]]]:
        """What restoring a cell is compared with, as far as it was scored: by level and kind, one model a draw."""
        found: dict[str, dict[str, list[Model]]] = {}
        for name, model in sorted(self._versions.get(cell, {}).items()):
            if control := read_control(name):
                found.setdefault(control[1], {}).setdefault(control[0], []).append(model)
        return found

    def layer_ranges(self, cell: str) -> dict[str, Model]:
        """The evaluated versions of a cell with whole layers set back, by range such as ``0-3``, in layer order."""
        versions = self._versions.get(cell, {}).items()
        found = {layers: model for level, model in versions if (layers := layer_range(level)) is not None}
        return dict(sorted(found.items(), key=lambda item: [int(n) for n in item[0].split("-")]))

    @cached_property
    def restored_cells(self) -> tuple[str, ...]:
        """Cells that were scored after restoring at least one level, in grid order."""
        owners = {name for name in self._versions if name in self.models and len(self.restored(name)) > 1}
        return tuple(sorted(owners, key=self.order))

    def order(self, name: str) -> tuple[int, str, int, int, str]:
        """Sort key of cells: buckets first, then other strategies, by size and seed."""
        cell = self.cells.get(name)
        if cell is None:
            return (2, name, 0, 0, name)
        return (0 if cell.bucket is not None else 1, cell.source, cell.size, cell.seed, name)
