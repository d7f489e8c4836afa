"""The arena: every trained model measured in the same way, as it is and after methods that move it towards its base.

One model is loaded and moved in memory from level to level. Of each method the level is chosen on dev questions and
only that one is measured in full. Of plain fine-tuning all levels of the interpolation are: they are the line that
others are compared with. Everything measured is on disk at once, so that a start after a kill measures nothing twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sftknow.artifacts.arena import BASE, NOTHING, Entry, arena_file, read_entries, write_entries
from sftknow.artifacts.choice import Measured, choose
from sftknow.artifacts.files import read_json, write_json
from sftknow.artifacts.levels import level_name
from sftknow.artifacts.scores import read_scores
from sftknow.artifacts.stages import Stage
from sftknow.errors import CheckpointError, RunError
from sftknow.parameters.candidates import Candidate, Candidates, Maker
from sftknow.parameters.methods import METHODS
from sftknow.parameters.options import Resources
from sftknow.parameters.placing import as_far, place_
from sftknow.recipes.schema import Recipe
from sftknow.records import BUCKETS, Split
from sftknow.run.arena_asking import (
    Asked,
    Draw,
    Examiner,
    grouped,
    question_scores,
)
from sftknow.run.cells import Cell
from sftknow.run.grading import topics_sha256
from sftknow.run.steps import Step
from sftknow.run.workbench import Workbench

if TYPE_CHECKING:
    from sftknow.run.cell_steps import CellSteps

LINE = "interpolation"
"""The method whose levels are all measured in full for plain fine-tuning."""
RANKED = ("relative", "absolute", "random", "smallest", "per-tensor", LINE)
"""What the ranking by relative change is compared with, at equal share and at equal distance; it comes first."""
_FOUND, _ENTRIES = "measured", "entries.json"


def in_arena(recipe: Recipe, cell: Cell) -> bool:
    """Whether a cell's model is measured at all."""
    return _methods(recipe, cell) or _ranking(recipe, cell)


def _methods(recipe: Recipe, cell: Cell) -> bool:
    return _drawn_from(cell) in recipe.arena.of


def _ranking(recipe: Recipe, cell: Cell) -> bool:
    return _plain(cell) and _drawn_from(cell) in recipe.arena.ranking_of


def _plain(cell: Cell) -> bool:
    return not cell.lora and cell.strategy is None


def _drawn_from(cell: Cell) -> int | str:
    return "mixed" if cell.bucket is None else cell.bucket


def levels_of(recipe: Recipe, method: str) -> Sequence[str]:
    """Levels of a method that compete on dev."""
    return recipe.arena.levels.get(method) or METHODS.get(method).strengths


def asked_of(recipe: Recipe, cell: Cell, size: int | None, facts: Mapping[Split, int] | None) -> int | None:
    """Questions and statements that a cell's model answers in the arena; None where that is not known yet.

    Args:
        size: training facts.
        facts: of each split.
    """
    if size is None or facts is None:
        return None
    most = len(BUCKETS) * (recipe.evaluation.limit or max(facts.values()))
    dev, test, ood = (min(facts[split], most) for split in ("dev", "test", "testood"))
    statements = (size + test) * recipe.arena.statements
    count = statements
    for method in recipe.arena.after if _methods(recipe, cell) else ():
        levels = len(levels_of(recipe, method))
        full = levels if method == LINE and _plain(cell) else 1
        count += levels * dev + full * (statements + test + ood)
    ranked = (2 * len(RANKED) - 1) * len(recipe.arena.ranking) if _ranking(recipe, cell) else 0
    return count + ranked * statements


def _depends(bench: Workbench) -> dict[str, Any]:
    """What all measurements of an arena depend on, apart from the model's weights."""
    recipe = bench.recipe
    return {
        "base": bench.base.sha256,
        "data": bench.dataset.fingerprint,
        "topics": topics_sha256(bench.topics),
        "statements": recipe.arena.statements,
        "limit": recipe.evaluation.limit,
        "splits": recipe.evaluation.splits,
        "match": recipe.grading.rule,
        "dtype": recipe.model.dtype,
        "batch_size": recipe.model.batch_size,
        "divergence": bench.divergence.settings(),
    }


def base_step(bench: Workbench, cells: Sequence[Cell]) -> Step:
    """Ask the base what the models of all draws are asked; ``arena/base.json`` has one entry a draw."""
    draws = dict.fromkeys((cell.bucket, cell.size, cell.seed) for cell in cells if in_arena(bench.recipe, cell))
    stage = bench.directory.stage("arena/base", {**_depends(bench), "draws": list(draws)})

    def work(folder: Path) -> None:
        asked = Asked(bench)
        test, learned = asked.test, {wanted: asked.training(wanted) for wanted in draws}
        examiner = Examiner(bench, *bench.asked(Path(bench.base.ref.path)))
        everything = {fact.id: fact for facts in (*test.values(), *learned.values()) for fact in facts}
        hits = examiner.hits(everything.values())
        nowhere = {"kl": 0.0, "changed": 0.0, "distance": 0.0}
        same = {**grouped(test, hits), **question_scores(read_scores(bench.path / "evaluation" / BASE))}
        write_entries(
            arena_file(bench.path, BASE),
            [
                _entry(
                    Cell(bucket=bucket, size=len(facts), seed=seed),
                    {**nowhere, "scores": {**grouped({"learned": facts}, hits), **same}},
                    cell=BASE,
                    strategy=BASE,
                )
                for (bucket, _, seed), facts in learned.items()
            ],
        )

    return Step.of(stage, f"asking the base the facts of {len(draws)} draws in statements", work)


def _entry(drawn: Cell, found: Mapping[str, Any], **more: Any) -> Entry:
    given = {"options": {}, "after": NOTHING, "level": None, "chosen": True, "seconds": 0.0, "peak_bytes": 0, **more}
    return Entry(
        bucket=drawn.bucket,
        size=drawn.size or 0,
        seed=drawn.seed,
        relative_seconds=None,
        relative_peak=None,
        scores={name: (right, asked) for name, (right, asked) in found["scores"].items()},
        **{**given, **{name: found[name] for name in ("kl", "changed", "distance")}},
    )


@dataclass(frozen=True)
class _Kept:
    """What was measured of a model so far: a file for each level."""

    folder: Path

    def get(self, name: str, measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """What is on disk under that name, measured now where nothing is."""
        file = self.folder / f"{level_name(name).replace(' ', '-')}.json"
        if not file.is_file():
            write_json(file, measure())
        return dict(read_json(file))


class CellArena:
    """One trained model in the arena.

    Args:
        steps: of the model.
    """

    def __init__(self, steps: CellSteps) -> None:
        self.steps, self.bench, self.cell = steps, steps.bench, steps.cell
        self.recipe = self.bench.recipe

    def step(self, model: Any) -> Step:
        """Measure the model and what the methods make of it.

        Args:
            model: the `TunedModel`.
        """
        return Step.of(self.stage, f"the arena: {self.steps.name}", lambda folder: self._measure(model, folder))

    @property
    def stage(self) -> Stage:
        """Where its measurements lie; the file that others read is made of them by `write_arena`."""
        arena, methods = self.recipe.arena, _methods(self.recipe, self.cell)
        inputs = {
            **_depends(self.bench),
            "weights": self.steps.weights,
            "after": {name: levels_of(self.recipe, name) for name in arena.after} if methods else {},
            "choose_by": self.recipe.restore.choose_by,
            "ranking": arena.ranking if _ranking(self.recipe, self.cell) else (),
        }
        return self.bench.directory.stage(f"arena/{self.steps.name}", inputs)

    def _measure(self, model: Any, folder: Path) -> dict[str, Any]:
        rows: list[dict[str, Any]] = []
        left_out: dict[str, str] = {}
        room = _Ring(self, model, _Kept(folder / _FOUND))
        rows.append(room.as_trained())
        for method in self.recipe.arena.after if _methods(self.recipe, self.cell) else ():
            try:
                rows += room.after(method)
            except CheckpointError as error:  # nothing changed, most of all
                left_out[method] = str(error)
        if _ranking(self.recipe, self.cell):
            try:
                rows += room.ranking()
            except CheckpointError as error:
                left_out["ranking"] = str(error)
        write_json(folder / _ENTRIES, _once(rows))
        return {"left_out": left_out}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What was measured. Raises RunError where the stage is not complete."""
        if not self.stage.complete:
            raise RunError(f"{self.stage.folder} is not complete")
        return list(read_json(self.stage.folder / _ENTRIES))

    def entries(self, plain: tuple[float, int] | None) -> list[Entry]:
        """All entries of the model.

        Args:
            plain: seconds and bytes that plain fine-tuning took for the same draw; None where there is none.
        """
        cell, cost = self.cell, self.steps.cost
        setup = self.bench.training(cell).recipe
        options: dict[str, Any] = {}
        if setup.lora is not None:
            options = dict(vars(setup.lora))
        elif setup.strategy is not None:
            options = {name: value for name, value in setup.strategy.record().items() if name != "name"}
        name = "lora" if cell.lora else cell.strategy or "plain"
        size = cell.size or len(Asked(self.bench).training((cell.bucket, None, cell.seed)))
        found = []
        for row in self.rows:
            seconds = round(cost[0] + row["seconds"], 3)
            entry = _entry(
                replace(cell, size=size),
                row,
                cell=cell.name,
                strategy=name,
                options=options,
                seconds=seconds,
                peak_bytes=cost[1],
                **{key: row[key] for key in ("after", "level", "chosen")},
            )
            if plain is not None and plain[0]:
                peak = round(cost[1] / plain[1], 4) if plain[1] else None
                entry = replace(entry, relative_seconds=round(seconds / plain[0], 4), relative_peak=peak)
            found.append(entry)
        return found


class _Ring:
    """A loaded model at one level after the other. It is loaded when the first thing is measured."""

    def __init__(self, arena: CellArena, model: Any, kept: _Kept) -> None:
        self.bench, self.cell, self.recipe = arena.bench, arena.cell, arena.recipe
        self._name, self._model, self._kept = arena.steps.name, model, kept

    @cached_property
    def _examiner(self) -> Examiner:
        return Examiner(self.bench, *self.bench.asked(self._model.checkpoint))

    @cached_property
    def _learned(self) -> Any:
        wanted: Draw = (self.cell.bucket, self.cell.size, self.cell.seed)
        return Asked(self.bench).training(wanted)

    @cached_property
    def _candidates(self) -> Candidates:
        arena = self.recipe.arena
        wanted = [Candidate(name, level) for name in arena.after for level in levels_of(self.recipe, name)]
        if _ranking(self.recipe, self.cell):
            wanted += [Candidate(name, level) for name in RANKED for level in arena.ranking]
        return Candidates(
            Path(self.bench.base.ref.path),
            self._model.checkpoint,
            list(dict.fromkeys(wanted)),
            seed=self.cell.seed,
            ignore=self.bench.order.ignore,
            resources=Resources(threads=torch.get_num_threads()),
        )

    def _row(self, made: Callable[[], Maker | None], what: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Move the model and measure it; the seconds are those that the method took."""
        model = self._examiner.model
        clock = time.monotonic if torch.cuda.is_available() else time.process_time
        began = clock()
        maker = made()
        place = place_(model, self._candidates, maker)
        seconds = 0.0 if maker is None else round(clock() - began, 3)
        return {**vars(place), "seconds": seconds, "kl": None, **what()}

    def _at(self, candidate: Candidate, what: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        return self._row(lambda: self._candidates.maker(candidate), what)

    def as_trained(self) -> dict[str, Any]:
        """The model as it is; its questions were asked by the run's own evaluation."""
        run = read_scores(self.bench.path / "evaluation" / self._name)
        found = self._kept.get(NOTHING, lambda: self._row(lambda: None, self._without_questions))
        scores = {**question_scores(run), **found["scores"]}
        return {**found, "scores": scores, "after": NOTHING, "level": None, "chosen": True}

    def _without_questions(self) -> dict[str, Any]:
        examiner = self._examiner
        return {"scores": examiner.statements(self._learned), "kl": examiner.divergence(self.bench.base_logits)}

    def _in_full(self) -> dict[str, Any]:
        run = self._examiner.questions("test", "testood", name=self._name)
        found = self._without_questions()
        return {**found, "scores": {**question_scores(run), **found["scores"]}}

    def after(self, method: str) -> Iterator[dict[str, Any]]:
        """A method's levels: all on dev, and in full the one that is chosen there, or all of plain's line."""
        levels = levels_of(self.recipe, method)
        on_dev = {level: self._on_dev(Candidate(method, level)) for level in levels}
        dev = read_scores(self.bench.path / "evaluation" / self._name)
        measured = {level: Measured(**found["measured"]) for level, found in on_dev.items()}
        chosen = choose(measured, Measured.of(dev, "dev"), self.recipe.restore.choose_by)
        for level in levels:
            row = {key: value for key, value in on_dev[level].items() if key != "measured"}
            if level == chosen or (method == LINE and _plain(self.cell)):
                candidate = Candidate(method, level)
                full = self._kept.get(candidate.name, lambda c=candidate: self._at(c, self._in_full))  # type: ignore[misc]
                row |= {"kl": full["kl"], "scores": {**row["scores"], **full["scores"]}}
            yield {**row, "after": method, "level": level, "chosen": level == chosen}

    def _on_dev(self, candidate: Candidate) -> dict[str, Any]:
        def ask() -> dict[str, Any]:
            run = self._examiner.questions("dev", name=self._name)
            return {"scores": question_scores(run), "measured": vars(Measured.of(run, "dev"))}

        return self._kept.get(f"{candidate.name} on dev", lambda: self._at(candidate, ask))

    def ranking(self) -> Iterator[dict[str, Any]]:
        """Relative change against other rankings, at equal shares and at equal distances from the base."""
        for share in self.recipe.arena.ranking:
            first = self._ranked(RANKED[0], share, None)
            yield first
            for method in RANKED[1:]:
                yield self._ranked(method, share, None)
                yield self._ranked(method, share, first["distance"])

    def _ranked(self, method: str, share: str, distance: float | None) -> dict[str, Any]:
        """Measure a method at a share, or where it leaves a distance."""
        level = share if distance is None else f"as {share}"

        def made() -> Maker:
            if distance is None:
                return self._candidates.maker(Candidate(method, share))
            return as_far(self._candidates, method, distance)[1]

        def ask() -> dict[str, Any]:
            return {"scores": self._examiner.statements(self._learned)}

        found = self._kept.get(f"{method} {level} ranked", lambda: self._row(made, ask))
        return {**found, "after": method, "level": level, "chosen": False}


def _once(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a level: of two that were measured, both scores."""
    found: dict[tuple[str, str | None], dict[str, Any]] = {}
    for row in rows:
        there = found.get((row["after"], row["level"]))
        if there is not None:
            row = {**row, **there, "scores": {**row["scores"], **there["scores"]}}
        found[row["after"], row["level"]] = row
    return list(found.values())


def write_arena(bench: Workbench, cells: Sequence[CellSteps]) -> None:
    """Write the file of every cell that is measured, with what it cost against plain fine-tuning of the same draw.

    What is there and right already is left alone.
    """
    for steps in cells:
        if in_arena(bench.recipe, steps.cell) and steps.training.complete:
            _write(bench, steps)


def _write(bench: Workbench, steps: CellSteps) -> None:
    arena, name = CellArena(steps), steps.name
    if not arena.stage.complete:
        return
    plain = type(steps)(bench, replace(steps.cell, lora=False, strategy=None))
    entries = arena.entries(plain.cost if plain.training.complete else None)
    file = arena_file(bench.path, name)
    there: Sequence[Entry] = ()
    with suppress(RunError):
        there = read_entries(file)
    if list(there) == entries:
        return
    write_entries(file, entries)
    for method, why in arena.stage.outputs["left_out"].items():
        bench.say(f"{name}: {method} is left out: {why}")
