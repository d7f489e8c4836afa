"""What a recipe asks for and cannot have, said before the first hour of work: all that can be known at the start."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from sftknow.artifacts.knowledge import EXAMPLES
from sftknow.artifacts.levels import parse_levels
from sftknow.checkpoints.index import read_index
from sftknow.checkpoints.regions import parse_region
from sftknow.errors import GeneralTaskError, ModelError, RecipeError
from sftknow.evaluation.general.tasks import TASKS
from sftknow.models.limits import most_positions
from sftknow.models.loading import find_device, load_config, load_tokenizer
from sftknow.models.resolving import BaseModel
from sftknow.parameters.strategies import check_strategy
from sftknow.progress import progress
from sftknow.prompts import CHAT
from sftknow.recipes.schema import Recipe, RestoreSection
from sftknow.records import BUCKETS, ModelRef
from sftknow.run.cells import fitting, grid_cells, names_of, some_of
from sftknow.run.general_ability import check_tasks
from sftknow.run.workbench import Workbench
from sftknow.training.arguments import check_trackers
from sftknow.training.examples import encode

_MANY = 4096
"""Facts that are checked in a few seconds, without a bar."""


def check_words(recipe: Recipe) -> None:
    """What is wrong with the recipe in itself: names, levels, devices; looks at no file.

    Raises:
        RecipeError, CheckpointError, DeviceError: one line that names the key and the way out.
    """
    names = [cell.name for cell in grid_cells(recipe.grid)]
    repeated = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if repeated:
        raise RecipeError(f"grid: {repeated} comes twice; name every bucket, size and seed once")
    grid = recipe.grid
    for name in grid.baselines:
        if name in ("base", EXAMPLES, *names) or (grid.chat_template and f"{name}{CHAT}" in grid.baselines):
            raise RecipeError(f"grid.baselines: {name} is the name of another model of the run; take another")
    if grid.chat_template and not grid.baselines:
        raise RecipeError("grid.chat_template: there is no model to ask in it; name one under grid.baselines")
    if not names and recipe.restore.controls != RestoreSection().controls:
        raise RecipeError("restore.controls has no effect: the grid trains no model to restore; leave it out")
    check_levels(recipe)
    cells_named(recipe)
    check_strategy(recipe.parameters.strategy)
    parse_region(recipe.parameters.region, recipe.parameters.layers, recipe.parameters.ignore)
    check_trackers(recipe.tracking.report_to)
    cells_to_sweep(recipe)
    check_other_tasks(recipe)


def check_machine(bench: Workbench) -> None:
    """Whether this machine has the devices; what workers of a cluster have shows there.

    Raises:
        RecipeError: dtypes, batches or optimizers that cannot go together.
        DeviceError: this machine lacks the device, or cannot compute in the dtype.
    """
    recipe = bench.recipe
    find_device(recipe.model.device)
    setups = {bench.training(cell) for cell in grid_cells(recipe.grid)}
    if recipe.general.tasks:
        setups.add(bench.training(max_length=recipe.general.max_length))
    for setup in setups:
        setup.check(here=recipe.grid.engine == "local")


def check_models(bench: Workbench) -> None:
    """Whether base and baselines can be asked and the base be trained, without loading any weights.

    Raises:
        ModelError: a model, its tokenizer or its EOS token is missing, or the vocabulary would have to grow.
        CheckpointError: weights that are damaged, quantised or an adapter's; a region without a tensor.
        HubError: the Hub refused, could not be reached, or has no such revision.
    """
    _check_base(bench.base, bench.recipe)
    for name, model in bench.baselines.items():
        try:
            load_config(model.ref)
            tokenizer = load_tokenizer(model.ref)
        except ModelError as error:
            raise ModelError(f"grid.baselines.{name}: {error}") from None
        if bench.recipe.grid.chat_template and not tokenizer.chat_template:
            raise ModelError(f"grid.chat_template: the tokenizer of {model.name} has none; set it to false")


def check_counts(bench: Workbench, say: Callable[[str], None]) -> None:
    """Whether there are facts for the grid and for questions.

    Cells that would need more training facts than there are in all are told, and left out later.

    Raises:
        RecipeError: there are too few facts for every cell; no test fact to measure divergence on; a split without a
            question.
    """
    recipe, facts = bench.recipe, bench.facts
    counts, cells = facts.counts(), grid_cells(recipe.grid)
    beyond = [cell for cell in cells if counts["train"] < (cell.size or 1)]
    if beyond:
        there = f"{facts.source} has {counts['train']:,} training facts in all"
        sizes = [size for size in recipe.grid.sizes if size == "all" or size <= counts["train"]]
        if not sizes and counts["train"] < len(BUCKETS):
            raise RecipeError(f"{there}, too few to train on; give at least {len(BUCKETS)}, one for each bucket")
        fits = f"--set grid.sizes=[{','.join(map(str, sizes or [counts['train'] // len(BUCKETS)]))}]"
        if len(beyond) == len(cells):
            raise RecipeError(f"{there}, too few for every cell of the grid; what fits: {fits}")
        say(f"left out: {some_of([cell.name for cell in beyond])}; {there}; without them: {fits}")
    if cells and not counts["test"]:
        raise RecipeError(f"{facts.source} has no test fact, on which models are scored and divergence is measured")
    asked = [split for split in recipe.evaluation.splits if counts[split]]
    if not asked:
        raise RecipeError(
            f"{facts.source} has no fact in {', '.join(recipe.evaluation.splits)}; change evaluation.splits"
        )


def check_facts(bench: Workbench) -> None:
    """As `check_counts`, and whether every training fact can be trained on.

    Raises:
        RecipeError: as `check_counts`.
        ModelError: a fact without answer tokens, or with a special token in its text.
    """
    check_counts(bench, bench.say)
    recipe, facts = bench.recipe, bench.facts
    if not grid_cells(recipe.grid):
        return
    ref = ModelRef(path=bench.base.ref.path)
    positions = most_positions(load_config(ref))
    tokenizer, train = load_tokenizer(ref), facts.of_split("train")
    with progress(len(train), "checking facts", unit="facts") if len(train) > _MANY else nullcontext() as bar:
        for start in range(0, len(train), _MANY):
            part = train[start : start + _MANY]
            encode(
                tokenizer,
                part,
                answer_only_loss=recipe.sft.answer_only_loss,
                max_length=recipe.sft.max_length,
                positions=positions,
            )
            if bar is not None:
                bar.update(len(part))


def check_graded(bench: Workbench) -> None:
    """What only the grading can tell, right after it: says which cells and buckets are left out for want of facts."""
    recipe = bench.recipe
    if bench.left_out:
        names = [cell.name for cell in bench.left_out]
        bench.say(f"left out: {some_of(names)}; {fitting(recipe.grid, bench.train_counts)}")
        lost = sorted(({*cells_named(recipe), *cells_to_sweep(recipe)}) & {*names})
        if lost and recipe.restore.cells != "all":
            bench.say(f"  so {', '.join(lost)} cannot be restored (restore.cells)")
    measured = bench.divergence.buckets
    if bench.cells and measured != recipe.divergence.buckets:
        bench.say(
            f"divergence is measured on buckets {', '.join(map(str, measured))}: there is no test fact above; to ask "
            f"for these: --set divergence.buckets=[{','.join(map(str, measured))}]"
        )


def check_levels(recipe: Recipe) -> None:
    """Raise RecipeError for levels that are restored and not analysed; CheckpointError for such as cannot be read."""
    analysed = recipe.parameters.levels
    parse_levels(analysed)
    for level in recipe.restore.levels or ():
        if level not in analysed:
            raise RecipeError(
                f"restore.levels: {level} is not among parameters.levels ({', '.join(analysed)}); add it there"
            )


def cells_named(recipe: Recipe) -> set[str]:
    """Names of the cells that the recipe wants restored; ``best`` may be among them.

    Raises:
        RecipeError: it names a cell that is not in the grid.
    """
    wanted = recipe.restore.cells
    if wanted == "all":
        return {*(cell.name for cell in grid_cells(recipe.grid)), "best"}
    return names_of(recipe.grid, ["best"] if wanted == "best" else wanted, "restore.cells")


def cells_to_sweep(recipe: Recipe) -> set[str]:
    """Names of the cells whose layers are set back, range by range; ``best`` may be among them.

    Raises:
        RecipeError: it names a cell that is not in the grid.
    """
    if not recipe.restore.layers:
        return set()
    wanted = recipe.restore.layer_cells
    if wanted is None:
        return cells_named(recipe)
    return names_of(recipe.grid, wanted, "restore.layer_cells")


def check_other_tasks(recipe: Recipe) -> None:
    """Raise GeneralTaskError where the other tasks' data are named and cannot be there, before any work is done."""
    section = recipe.general
    if not section.tasks:
        return
    for name in section.tasks:
        if name not in TASKS:
            raise RecipeError(f"general.tasks: there is no task called {name}; there are {', '.join(TASKS)}")
    check_tasks(section.tasks, section.data)
    for name, folder in section.data.items():
        if not Path(folder).expanduser().is_dir():
            raise GeneralTaskError(f"general.data.{name}: there is no folder {folder}")


def _check_base(base: BaseModel, recipe: Recipe) -> None:
    ref = ModelRef(path=base.ref.path)
    index = read_index(Path(ref.path))
    config, tokenizer = load_config(ref), load_tokenizer(ref)
    if not grid_cells(recipe.grid):
        return
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"{base.name} has a tokenizer without an EOS token; set eos_token in its tokenizer_config.json"
        )
    rows = getattr(config.get_text_config(), "vocab_size", None) or math.inf
    if len(tokenizer) > rows:
        raise ModelError(
            f"{base.name}: the tokenizer has {len(tokenizer)} tokens and the model {rows} embeddings, so the "
            "vocabulary would have to grow; resize the base first or give the tokenizer that belongs to it"
        )
    region = parse_region(recipe.parameters.region, recipe.parameters.layers)
    if not any(name in region for name in index.tensors):
        layers = f" with layers {recipe.parameters.layers}" if recipe.parameters.layers else ""
        raise RecipeError(f"parameters.region: {base.name} has no tensor in {recipe.parameters.region}{layers}")
