"""What only the work after the grading would find wrong with a recipe, found before it: with a model without weights,
the other tasks' rows, and a few completions of the base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from sftknow.artifacts.files import digest
from sftknow.divergence.base import measure_base
from sftknow.divergence.forward import load_for_logits
from sftknow.divergence.options import DivergenceOptions
from sftknow.divergence.selection import PromptChoice, Selection
from sftknow.errors import MasteryDataError, ModelError, RecipeError
from sftknow.evaluation.general.data import load_split
from sftknow.evaluation.general.tasks import TASKS
from sftknow.facts.prompts import Statements
from sftknow.facts.sources import balanced
from sftknow.machine import free_memory
from sftknow.models.limits import most_positions, refuse_long
from sftknow.models.loading import find_device, load_config, load_tokenizer, quiet_libraries
from sftknow.prompts import question_prompt
from sftknow.records import Fact, ModelRef
from sftknow.run.cells import grid_cells
from sftknow.run.general_ability import ABILITY
from sftknow.run.space import model_size
from sftknow.run.workbench import Workbench
from sftknow.training.lora import prepare

FACTS, STATEMENTS = 32, 2
"""Test facts that the base completes, each in so many statements: as many rows as one batch."""
WIDER = (5, 8, 16)
"""Windows that are tried where the recipe's is too small."""


def check_parts(bench: Workbench) -> None:
    """Whether the base has the layers that LoRA and the training strategies of the grid name.

    Raises:
        RecipeError: it has not; names the key.
    """
    recipe, cells = bench.recipe, grid_cells(bench.recipe.grid)
    lora = recipe.lora if any(cell.lora for cell in cells) else None
    if lora is None and not recipe.grid.strategies:
        return
    model = _without_weights(bench.base.ref)
    if model is None:
        return
    for name in recipe.grid.strategies:
        try:
            recipe.strategy(name).fits(model)
        except ModelError as error:
            raise RecipeError(f"strategies.{name}: {error}") from None
    if lora is not None:
        try:
            prepare(model, lora, 0)
        except ModelError as error:
            raise RecipeError(str(error).replace("sft.lora.", "lora.")) from None


def _without_weights(ref: ModelRef) -> Any:
    """The model's modules and no numbers; None where transformers cannot make them of the config alone."""
    config = load_config(ModelRef(path=ref.path))
    try:
        with quiet_libraries(), torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except (ValueError, RuntimeError, ImportError):
        return None


def check_rows(bench: Workbench) -> None:
    """Whether the other tasks have their data, and as many training rows as are asked for.

    Raises:
        GeneralTaskError: data that cannot be used.
        HubError: they are to come from the Hub, which refused or could not be reached.
        RecipeError: fewer rows than asked for.
    """
    section = bench.recipe.general
    if not section.tasks or (bench.path / ABILITY).is_dir():
        return
    for name in section.tasks:
        given = section.data.get(name)
        folder = Path(given).expanduser() if given else None
        rows = len(load_split(TASKS.get(name), folder, "train"))
        load_split(TASKS.get(name), folder, "test")
        if section.size != "all" and rows < section.size:
            raise RecipeError(
                f"general.size: {name} has {rows:,} training rows, fewer than {section.size:,}; ask for fewer"
            )


def check_window(bench: Workbench) -> None:
    """Whether the base can be asked what token divergence needs, and begins answers within ``divergence.window``.

    Asked are some test facts in some of their statements: what the grading will choose is not known yet. A model
    that is not loaded here, or hardly fits, is not asked; nor does a base that knows none of the facts tell anything.

    Raises:
        ModelError: the window is longer than the model's context.
        RecipeError: no answer starts within the window, and some do within a wider one.
    """
    recipe, options = bench.recipe, bench.divergence
    facts = balanced(bench.facts.of_split("test"), 0)
    if not facts or not grid_cells(recipe.grid):
        return
    choices = _choices(bench, facts[:FACTS])
    tokenizer = load_tokenizer(bench.base.ref)
    refuse_long(
        bench.base.name,
        tokenizer,
        [f"{_shown(c, options)} {max(c.fact.answers, key=len)}" for c in choices],
        new_tokens=options.window,
        positions=most_positions(load_config(bench.base.ref)),
        way_out="Give a smaller divergence.window",
    )
    if "ray" in (recipe.grading.engine, recipe.grid.engine) or recipe.grading.sampler == "vllm" or _too_large(bench):
        return
    model, _ = load_for_logits(replace(bench.base.ref, dtype=options.dtype), options.device)
    selection = Selection(choices=choices, headline=0, templates={})
    for window in (options.window, *(wide for wide in WIDER if wide > options.window)):
        try:
            measure_base(
                model, tokenizer, selection, window=window, prompt=options.base_prompt, batch_size=options.batch_size
            )
        except MasteryDataError:
            continue
        if window == options.window:
            return
        raise RecipeError(
            f"divergence.window: {bench.base.name} starts no answer within its first {options.window} tokens "
            f"({len(choices)} completions tried) and does within {window}: --set divergence.window={window}"
        )


def _choices(bench: Workbench, facts: Sequence[Fact]) -> tuple[PromptChoice, ...]:
    """Each fact with some of its statements, drawn by its id."""
    found = []
    for fact in facts:
        statements = list(Statements(bench.topics[fact.topic], fact.subject))
        first = int(digest(fact.id)[:8], 16)
        for i in range(min(STATEMENTS, len(statements))):
            place = (first + i * (len(statements) // STATEMENTS)) % len(statements)
            found.append(PromptChoice(fact=fact, bucket=0, template=place, statement=statements[place]))
    return tuple(found)


def _shown(choice: PromptChoice, options: DivergenceOptions) -> str:
    return choice.statement if options.base_prompt == "statement" else question_prompt(choice.fact.question)


def _too_large(bench: Workbench) -> bool:
    """Whether loading it once more on a CPU takes more than half of the free memory."""
    if find_device(bench.divergence.device).type != "cpu":
        return False
    free = free_memory()
    return free is not None and 4 * model_size(Path(bench.base.ref.path)).parameters > free / 2
