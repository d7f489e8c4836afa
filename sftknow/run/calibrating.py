"""A few real batches of every stage, timed on this machine: what a time estimate rests on where nothing ran yet."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import TypeVar

import torch

from sftknow.artifacts.mastery_data import write_mastery_data
from sftknow.checkpoints.deltas import write_delta
from sftknow.divergence.forward import load_for_logits
from sftknow.errors import MasteryDataError
from sftknow.evaluation.harness import Harness
from sftknow.facts.prompts import Statements
from sftknow.grading.mastery import grade
from sftknow.grading.shards import Engine, plan_shards
from sftknow.models.loading import find_device, load_model, load_tokenizer
from sftknow.parameters.restore import restore_levels
from sftknow.progress import progress
from sftknow.records import SPLITS, Fact, GradedFact, Mastery, ModelRef
from sftknow.run.rates import ON_THE_SPOT, Rate
from sftknow.run.replicas import load_sampler
from sftknow.run.space import ModelSize
from sftknow.run.token_pairs import measure, view_base
from sftknow.run.workbench import Workbench
from sftknow.training.train import fine_tune

SMALL = {"cpu": 30_000_000, "cuda": 3_000_000_000}
"""Parameters up to which a few batches take seconds."""

_FACTS, _STEPS, _QUESTIONS = 64, 10, 256
_ENOUGH = 2.5
"""Seconds of grading after which no further facts are tried."""

T = TypeVar("T")


def small_enough(model: ModelSize, device: str) -> bool:
    """Whether `calibrate` takes seconds."""
    # A device that this machine lacks is no obstacle to a plan for a model that nobody would try here.
    return model.parameters <= max(SMALL.values()) and model.parameters <= SMALL.get(find_device(device).type, 0)


def calibrate(bench: Workbench) -> dict[str, Rate]:
    """Do a little of every stage in a temporary folder and time it.

    Args:
        bench: recipe, facts and base model; nothing is written in its run directory.
    """
    rates: dict[str, Rate] = {}
    recipe = bench.recipe
    with tempfile.TemporaryDirectory(prefix="sftknow-") as name, progress(5, "measuring", unit="stages") as bar:
        folder = Path(name)
        with redirect_stderr(StringIO()):  # the stages' own bars
            rows, rates["grading"] = _grading(bench)
            bar.update()
            tuned, rates["training"] = _training(bench, folder)
            bar.update()
            rates["evaluation"] = _evaluation(bench, folder, tuned)
            bar.update()
            ref = ModelRef(path=str(tuned), dtype=recipe.model.named_dtype)
            rates["divergence"] = _divergence(bench, rows, ref)
            bar.update()
            rates |= _parameters(bench, folder, tuned)
            bar.update()
    return rates


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    began = time.monotonic()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.monotonic() - began


def _some(facts: Sequence[Fact], count: int) -> list[Fact]:
    """Facts from everywhere: how well they are known decides how long they take."""
    return random.Random(0).sample(facts, min(count, len(facts)))


def _grading(bench: Workbench) -> tuple[list[GradedFact], Rate]:
    recipe = bench.recipe
    section = replace(recipe.grading, engine="local")
    sampler = load_sampler(bench.base, section, device=recipe.model.device, rule=section.rule)
    assert not isinstance(sampler, Engine)
    facts = _some(bench.facts.facts, 8 * _FACTS)
    # Each shard of its own, as a plan would sort all of them by topic.
    shards = [
        plan_shards(
            [(fact, Statements(bench.topics[fact.topic], fact.subject)) for fact in facts[start : start + _FACTS]],
            section.policy,
            Path(),
            shard_size=_FACTS,
            templates=section.templates,
        )[0]
        for start in range(0, len(facts), _FACTS)
    ]
    rows: list[GradedFact] = []
    tries, spent = 0, 0.0
    for shard in shards:
        began = time.monotonic()
        tallies = sampler.sample(shard.requests, section.policy)
        spent += time.monotonic() - began
        tries += shard.size * section.samples
        for fact in shard.facts:
            mastery = grade(fact.id, [tally for tally in tallies if tally.fact_id == fact.id])
            rows.append(GradedFact(fact=fact, mastery=mastery))
        if spent >= _ENOUGH:
            break
    return rows, Rate(each=spent / tries, basis=ON_THE_SPOT)


def _training(bench: Workbench, folder: Path) -> tuple[Path, Rate]:
    """Two trainings, a short and a longer one: what every cell costs, and what a step does."""
    recipe = bench.training().recipe
    facts = [fact for fact in bench.facts.facts if fact.split == "train"]
    ref = replace(bench.base.ref, dtype=None)
    bench.loaded_base  # noqa: B018 - loaded once for all cells
    points = []
    out = folder / "tuned"
    for steps in (1, 1 + _STEPS):
        chosen = _some(facts, steps * recipe.batch_size)

        def train(chosen: list[Fact] = chosen) -> None:
            fine_tune(ref, chosen, out, recipe=recipe, seed=0, manifest={}, loaded=bench.loaded_base)

        _, seconds = _timed(train)
        points.append((-(-len(chosen) // recipe.batch_size), seconds))
    (few, short), (many, long) = points
    each = max(long - short, 0.0) / max(many - few, 1)
    pack = 0.0
    if bench.recipe.grid.storage == "delta":
        _, pack = _timed(lambda: write_delta(Path(ref.path), out, folder / "small"))
    # The very first training also readies the libraries; a step of the longer one is what counts.
    return out, Rate(fixed=max(long - many * each, 0.0) + pack, each=each, basis=ON_THE_SPOT)


def _evaluation(bench: Workbench, folder: Path, tuned: Path) -> Rate:
    recipe = bench.recipe
    asked = [fact for fact in bench.facts.facts if fact.split in recipe.evaluation.splits]
    chosen = _some(asked, _QUESTIONS)
    data = folder / "data"
    # How well each is known makes no difference here: all of them go into one bucket.
    rows = [_as_if_graded(fact, 4) for fact in chosen]
    write_mastery_data(data, rows, {"graded_by": "nobody", "policy": {}})
    splits = tuple(split for split in SPLITS if any(fact.split == split for fact in chosen))
    harness = Harness(data, splits=splits, batch_size=recipe.model.batch_size, device=recipe.model.device)
    ref = ModelRef(path=str(tuned), dtype=recipe.model.named_dtype)
    (model, tokenizer), load = _timed(lambda: (load_model(ref, device=recipe.model.device), load_tokenizer(ref)))
    fact_ids = [fact.id for fact in chosen if fact.split == "train"] or None
    harness.score(model, tokenizer, name="first", fact_ids=fact_ids)  # builds the tasks
    _, seconds = _timed(lambda: harness.score(model, tokenizer, name="second", fact_ids=fact_ids))
    return Rate(fixed=load, each=seconds / len(chosen), basis=ON_THE_SPOT)


def _as_if_graded(fact: Fact, bucket: int) -> GradedFact:
    mastery = Mastery(
        fact_id=fact.id, template_hits=(1,), template_tries=(1,), hits=1, tries=1, bucket=bucket, low=0.0, high=1.0,
        edge=False,
    )  # fmt: skip
    return GradedFact(fact=fact, mastery=mastery)


def _divergence(bench: Workbench, rows: Sequence[GradedFact], ref: ModelRef) -> Rate:
    """Of one model on all test facts, from those that were graded just now."""
    test = [replace(row, fact=replace(row.fact, split="test")) for row in rows]
    buckets = sorted({row.mastery.bucket for row in test} & set(bench.divergence.buckets))
    if not buckets:
        return Rate(each=0.0, basis=ON_THE_SPOT)
    options = replace(bench.divergence, buckets=tuple(buckets))
    try:
        view = view_base(replace(bench.base.ref, dtype=options.dtype), test, bench.topics, options)
    except MasteryDataError:  # the base starts no answer: a run goes on without divergence, and says so
        return Rate(each=0.0, basis=ON_THE_SPOT)
    tuned, load = _timed(lambda: load_for_logits(replace(ref, dtype=options.dtype), device=options.device))
    _, seconds = _timed(lambda: measure(view, *tuned, options))
    facts = bench.facts.counts()["test"]
    return Rate(each=load + seconds * facts / len(test), basis=ON_THE_SPOT)


def _parameters(bench: Workbench, folder: Path, tuned: Path) -> dict[str, Rate]:
    levels, pair = bench.recipe.parameters.levels, bench.pair(tuned)
    pair.analyse(levels, bench.order)  # the first one may compile the kernels
    analysis, seconds = _timed(lambda: pair.analyse(levels, bench.order))
    outputs = {level: folder / "restored" / str(i) for i, level in enumerate(levels)}
    _, writing = _timed(lambda: restore_levels(pair.base_folder, tuned, analysis.plan, outputs))
    return {
        "changes": Rate(each=seconds, basis=ON_THE_SPOT),
        "restoring": Rate(each=writing / len(outputs), basis=ON_THE_SPOT),
    }
