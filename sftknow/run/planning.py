"""What a run would do: stages, samples, steps, questions, disk and time, without doing any of it (`--dry-run`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sftknow.artifacts.knowledge import EXAMPLES, KNOWLEDGE
from sftknow.artifacts.levels import UNTOUCHED
from sftknow.artifacts.scores import SCORES
from sftknow.artifacts.stages import RunDirectory
from sftknow.errors import FactsAwayError, FactsError, HubError
from sftknow.machine import free_space
from sftknow.models.identity import weights_sha256
from sftknow.models.loading import load_config
from sftknow.models.look import UnreachableError, look
from sftknow.models.resolving import BaseModel, resolve_base
from sftknow.progress import counted
from sftknow.recipes.schema import Recipe
from sftknow.records import BUCKETS, ModelRef, Split
from sftknow.report.paper import recognise
from sftknow.run.arena import asked_of, in_arena
from sftknow.run.cells import Cell, levels_of, names_of
from sftknow.run.checks import check_counts, check_machine, check_words
from sftknow.run.controls import control_names
from sftknow.run.estimating import best_rates
from sftknow.run.rates import Rate
from sftknow.run.space import ModelSize, Part, model_size, parts, restored_cells
from sftknow.run.standing import Standing, left_to_write, nothing_done, standing
from sftknow.run.workbench import Workbench

OFFICIAL = "entity-questions"
OFFICIAL_COUNTS: dict[Split, int] = {"train": 75_944, "dev": 9_580, "test": 9_555, "testood": 11_613}
"""Facts of the official release of EntityQuestions after its filters; training and tests as in the paper's Table 1."""

STORED = {
    "LLaMA-2-7B": ModelSize(parameters=6_738_415_616, dtype="float16"),
    "LLaMA-2-13B": ModelSize(parameters=13_015_864_320, dtype="float16"),
    "LLaMA-2-70B": ModelSize(parameters=68_976_648_192, dtype="float16"),
    "LLaMA-3-8B": ModelSize(parameters=8_030_261_248, dtype="bfloat16"),
    "LLaMA-3-70B": ModelSize(parameters=70_553_706_496, dtype="bfloat16"),
}
"""The paper's models as Meta published them for transformers; used where the Hub cannot be asked."""

_STATEMENTS = 21
_BY_CELL = ("training", "evaluation", "divergence", "changes", "arena")
"""Stages that ``grid.processes`` share."""


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """One stage of a run: how much of it is left, and how long that takes."""

    name: str
    work: str
    """How much, in words."""
    rate: Rate | None
    seconds: float | None
    """None where nothing is known of it."""


@dataclass(kw_only=True)
class RunPlan:
    """What a run would do."""

    recipe: Recipe
    path: Path
    model: ModelSize | None = None
    model_name: str = ""
    layers: int | None = None
    """Decoder layers of the model."""
    facts: dict[Split, int] | None = None
    statements: int | None = None
    """Of all facts together."""
    now: Standing
    bucket_counts: tuple[int, ...] | None = None
    """Training facts of each bucket, once they are graded."""
    parts: list[Part] = field(default_factory=list)
    free: int = 0
    """Bytes free where the run directory is or would be."""
    stages: list[StageTime] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    """What could not be read, and why."""
    notes: list[str] = field(default_factory=list)
    """What the numbers rest on."""

    @property
    def questions(self) -> int | None:
        """Asked of each model."""
        if self.facts is None:
            return None
        section = self.recipe.evaluation
        if section.limit is None:
            return sum(self.facts[split] for split in section.splits if split != "train")
        return sum(min(self.facts[split], 5 * section.limit) for split in section.splits if split != "train")

    def examples(self, cell: Cell) -> int | None:
        """Training facts of a cell; of ``all``, before the grading, a fifth of all facts for each bucket."""
        if cell.size is not None:
            return cell.size
        if self.bucket_counts is not None:
            return sum(self.bucket_counts) if cell.bucket is None else self.bucket_counts[cell.bucket]
        if self.facts is None:
            return None
        return self.facts["train"] if cell.bucket is None else self.facts["train"] // len(BUCKETS)

    def steps(self, cell: Cell) -> int | None:
        """Updates of a cell's training."""
        examples, sft = self.examples(cell), self.recipe.sft
        return None if examples is None else math.ceil(examples / sft.batch_size) * sft.epochs


def plan_run(
    recipe: Recipe,
    path: Path,
    *,
    say: Callable[[str], None] = lambda line: None,
    measure: Callable[[Workbench], dict[str, Rate]] | None = None,
) -> RunPlan:
    """Find out what a run would do. Writes nothing in the run directory.

    Args:
        recipe: what is asked.
        path: the run directory, there or not.
        say: gets a line where something takes a moment.
        measure: times a few batches; None for `sftknow.run.calibrating.calibrate`.

    Raises:
        RecipeError, ModelError, FactsError, HubError, CheckpointError, DeviceError: what the run itself would say at
            its start, but for what cannot be reached now: that is told in the plan.
    """
    check_words(recipe)
    plan = RunPlan(recipe=recipe, path=path, now=nothing_done(recipe))
    bench = _bench(plan)
    if bench is not None:
        check_machine(bench)
    _read_facts(plan, bench or Workbench(recipe, RunDirectory(path), say))
    if bench is not None and plan.facts is not None and not plan.unread:
        plan.now = standing(bench)
        if not plan.now.graded:
            check_counts(bench, plan.notes.append)
        else:
            plan.bucket_counts = tuple(bench.dataset.count("train", bucket) for bucket in BUCKETS)
    _, plan.free = free_space(path)
    if plan.model is not None:
        left = left_to_write(
            recipe,
            plan.now,
            facts=sum(plan.facts.values()) if plan.facts else 0,
            questions=plan.questions or 0,
            statements=plan.statements or 0,
        )
        plan.parts = list(parts(recipe, plan.model, left))
    add_times(plan, best_rates(plan, bench, say, measure))
    return plan


def _bench(plan: RunPlan) -> Workbench | None:
    """The bench, where the base model is on this machine; its size is noted in any case, if it can be had."""
    recipe, model = plan.recipe, plan.recipe.model
    on_hub = model.path != "lab" and not Path(model.path).is_dir() and model.path.count("/") == 1
    if not on_hub or model.path.startswith((".", "/", "~")):
        base = resolve_base(model.path, model.revision, model.named_dtype)
    else:
        named = ModelRef.parse(model.path)
        plan.model_name = str(named)
        try:
            found = look(ModelRef(path=named.path, revision=model.revision or named.revision))
        except UnreachableError as error:
            plan.unread.append(f"the model: {error}")
            paper = recognise(named.path)
            if paper is not None:
                plan.model = STORED[paper]
                plan.notes.append(f"the size is that of {paper}, as recorded with sftknow")
            return None
        plan.model_name = found.name
        if found.cached is None:
            size = 4 if found.dtype == "float32" else 2
            plan.model = ModelSize(
                parameters=found.weights // size, dtype=found.dtype or "bfloat16", other_files=found.other_files
            )
            plan.notes.append(
                f"the model is not here yet: {found.weights / 1e9:,.1f} GB come from the Hub into its cache"
                + ("" if found.dtype else "; its config may not be read, so 16 bits a parameter are assumed")
            )
            return None
        ref = ModelRef(path=str(found.cached), dtype=model.named_dtype)
        base = BaseModel(ref=ref, name=found.name, sha256=weights_sha256(found.cached))
    plan.model_name, plan.model = base.name, model_size(Path(base.ref.path))
    plan.layers = getattr(load_config(base.ref).get_text_config(), "num_hidden_layers", None)
    return Workbench(recipe, RunDirectory(plan.path), lambda line: None, base=base)


def _read_facts(plan: RunPlan, bench: Workbench) -> None:
    section = plan.recipe.facts
    wanted = plan.recipe.grading.templates
    try:
        facts = bench.facts
    except (FactsError, HubError) as error:
        if section.source != OFFICIAL and not _away(error):
            raise
        plan.unread.append(f"the facts: {error}")
        if section.source == OFFICIAL:
            plan.facts = dict(OFFICIAL_COUNTS)
            if section.limit:
                most = {split: section.limit if split == "train" else -(-section.limit // 4) for split in plan.facts}
                plan.facts = {split: min(count, most[split]) for split, count in plan.facts.items()}
            plan.statements = sum(plan.facts.values()) * (len(set(wanted)) if wanted else _STATEMENTS)
            plan.notes.append("the number of facts is that of the official release, as recorded with sftknow")
        return
    plan.facts = facts.counts()
    each = {
        name: sum(wanted is None or i in wanted for i in range(len(topic.templates)))
        for name, topic in bench.topics.items()
    }
    plan.statements = sum(each[fact.topic] for fact in facts.facts)


def _away(error: FactsError | HubError) -> bool:
    """Whether the facts may be right and cannot be fetched now."""
    if isinstance(error, HubError):
        return error.reason not in ("missing", "revision", "name")
    return isinstance(error, FactsAwayError)


def add_times(plan: RunPlan, rates: Mapping[str, Rate]) -> None:
    """Fill in the plan's stages with what is left of each and how long that takes."""
    beside = plan.recipe.grid.processes
    plan.stages = [
        StageTime(
            name=name,
            work=work,
            rate=rates.get(kind),
            seconds=None
            if units is None or kind not in rates
            else (calls * rates[kind].fixed + units * rates[kind].each) / (beside if name in _BY_CELL else 1),
        )
        for name, kind, work, calls, units in _stages(plan)
    ]


def _total(counts: Collection[int | None]) -> int | None:
    """Their sum; None where one is not known."""
    return None if None in counts else sum(count or 0 for count in counts)


def _stages(plan: RunPlan) -> Iterator[tuple[str, str, str, int, float | None]]:
    """Of each stage: its name, the kind of its rate, how much is left in words, how often it starts, and units."""
    recipe, now = plan.recipe, plan.now
    samples = recipe.grading.samples
    if now.graded:
        yield "grading", "grading", "done", 0, 0
    elif plan.facts is None or plan.statements is None:
        yield "grading", "grading", f"? facts × statements × {samples} samples", 0, None
    else:
        count, total = sum(plan.facts.values()), plan.statements * samples
        upto = "at most " if recipe.grading.certainty else ""
        work = (
            f"{counted(count, 'fact')}, {upto}{counted(plan.statements, 'statement')} × {counted(samples, 'sample')} "
            f"= {total:,}"
        )
        yield "grading", "grading", work, 1, total
    left = now.cells_left
    training = [cell for cell in left if cell.name not in now.trained]
    steps = [plan.steps(cell) for cell in training]
    examples = [plan.examples(cell) for cell in training]
    known = _total(steps)
    words = (
        counted(len(training), "cell")
        if len(training) == len(now.cells)
        else f"{len(training)} of {counted(len(now.cells), 'cell')}"
    )
    if training:
        words += f", {counted(_total(examples), 'example')}, {counted(known, 'step')}"
    yield "training", "training", words, len(training), known
    levels = now.levels - now.restored
    others = len(recipe.grid.asked) + 1 - len(now.scored)
    models = others + len(left) + levels
    per_model = plan.questions
    own = sum(plan.examples(cell) or 0 for cell in left) if "train" in recipe.evaluation.splits else 0
    asked = None if per_model is None else models * per_model + own
    words = f"{counted(models, 'model')} × {counted(per_model, 'question')}"
    words += f" + {own:,} of their own training" if own else ""
    yield "evaluation", "evaluation", words, models, asked
    yield "divergence", "divergence", counted(len(left), "model"), 0, len(left)
    words = f"{counted(len(left), 'model')}, {counted(len(recipe.parameters.levels), 'level')}"
    yield "changes", "changes", words, 0, len(left)
    each = len(levels_of(recipe))
    of_each = f"{counted(levels // each if each else 0, 'model')} × {counted(each, 'level')}"
    words = counted(levels, "checkpoint") if now.restored else of_each
    yield "restoring", "restoring", words, 0, levels
    if recipe.restore.controls and levels_of(recipe):
        cells, each = restored_cells(recipe), sum(1 for _ in control_names(UNTOUCHED, recipe.restore.controls))
        test = plan.facts["test"] if plan.facts else None
        words = f"{counted(cells, 'model')} × {counted(each, 'control')} × {counted(test, 'question')}"
        yield "controls", "evaluation", words, cells, None if test is None else cells * each * test
    if recipe.restore.layers:
        named = recipe.restore.layer_cells
        cells = restored_cells(recipe) if named is None else len(names_of(recipe.grid, named, "restore.layer_cells"))
        ranges = None if plan.layers is None else math.ceil(plan.layers / recipe.restore.layers)
        test = plan.facts["test"] if plan.facts else None
        units = None if ranges is None or test is None else cells * ranges * test
        words = f"{counted(cells, 'model')} × {counted(ranges, 'range')} × {counted(test, 'question')}"
        yield "layer ranges", "evaluation", words, cells, units
    yield from _arena(plan)
    yield from _format(plan)
    if recipe.general.tasks:
        yield "other tasks", "-", ", ".join(recipe.general.tasks), 0, None


def _arena(plan: RunPlan) -> Iterator[tuple[str, str, str, int, float | None]]:
    """What the arena asks, as `_stages`: each completed statement counts as a question."""
    recipe = plan.recipe
    left = [cell for cell in plan.now.cells_left if in_arena(recipe, cell)]
    if left:
        counts = {cell: asked_of(recipe, cell, plan.examples(cell), plan.facts) for cell in left}
        units = _total(counts.values())
        words = f"{counted(len(left), 'model')}, {counted(units, 'question')} and statements"
        yield "arena", "evaluation", words, len(left), units


def _format(plan: RunPlan) -> Iterator[tuple[str, str, str, int, float | None]]:
    """What tells format from knowledge (`sftknow.run.regrading`), as `_stages`."""
    section, facts = plan.recipe.evaluation, plan.facts
    if section.examples and plan.now.cells and not (plan.path / "evaluation" / EXAMPLES / SCORES).is_file():
        questions = None if facts is None else sum(facts[s] for s in ("test", "testood") if s in section.splits)
        words = f"{counted(questions, 'question')}, {section.examples} before each"
        yield "base with examples", "evaluation", words, 1, questions
    if section.regrade and plan.now.cells and not any((plan.path / "knowledge").glob(f"*/{KNOWLEDGE}")):
        count = None if facts is None else min(section.regrade, facts["test"])
        units = None
        if facts is not None and count is not None and plan.statements is not None:
            units = 2 * count * plan.statements / sum(facts.values()) * plan.recipe.grading.samples
        yield "grading again", "grading", f"2 models × {counted(count, 'fact')}", 2, units
