"""The grid on a Ray cluster: a cell is a task, trained, measured and stored by whichever worker is free.

Workers write where this process would: all of them see the run directory. So its stages, atomic folders and trainer
snapshots are what makes a lost node's cells go on elsewhere, and what comes out is what one machine makes.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sftknow.artifacts.lock import Lock
from sftknow.artifacts.stages import RunDirectory
from sftknow.cluster import Cluster, Outcome, on_every_node, run_tasks, this_node
from sftknow.errors import ClusterError, RunError
from sftknow.models.resolving import BaseModel
from sftknow.recipes.schema import Recipe
from sftknow.run.cell_steps import CellSteps
from sftknow.run.cells import Cell
from sftknow.run.launching import SHARDED, plan_launch
from sftknow.run.replicas import ModelCopy, model_copy
from sftknow.run.shared_folder import SharedFolder, marked
from sftknow.run.workbench import Workbench

LOCKS = Path("stages") / "locks"
_LOST_SECONDS = 300.0
"""How long a cell waits for a worker that Ray has given up and that may still be writing."""


@dataclass(frozen=True, kw_only=True)
class CellDone:
    """What a worker tells of a cell."""

    node: str
    seconds: float
    resumed: int
    """Steps that an earlier, lost worker had already trained; 0 for none."""


@dataclass(frozen=True, kw_only=True)
class CellWorker:
    """Makes, on a node, what trains and measures cells. Picklable; base model and tasks are made once and kept."""

    recipe: Recipe
    folder: SharedFolder
    model: ModelCopy
    base: BaseModel
    """As the driver has it: its name and hash go into the stages' keys, which must be the same on every node."""

    def __call__(self) -> Callable[[Cell], CellDone]:
        """The worker.

        Raises:
            ClusterError: this node does not see the run directory.
            ModelError: the base model is not on this node, or is another one.
        """
        self.folder()
        ref = self.model.find()
        base = BaseModel(ref=ref, name=self.base.name, sha256=self.base.sha256)
        bench = Workbench(self.recipe, RunDirectory(self.folder.path), _say_in_log, base=base)

        def work(cell: Cell) -> CellDone:
            started = time.monotonic()
            steps = CellSteps(bench, cell)
            with _alone(bench.path / LOCKS / cell.name):
                resumed = 0 if steps.training.complete else _steps_on_disk(steps.folder)
                steps.do()
            return CellDone(node=this_node(), seconds=time.monotonic() - started, resumed=resumed)

        return work


def check_cluster(recipe: Recipe, path: Path) -> None:
    """Refuse a cluster that cannot do the grid, before any work is done.

    Raises:
        RecipeError: the recipe names a single device.
        MissingExtraError: Ray is not installed.
        ClusterError: the cluster cannot be reached, is too small, or a node does not see the run directory.
    """
    with marked(path) as folder:
        _check(recipe, folder)


def train_on_cluster(
    bench: Workbench,
    cells: Sequence[CellSteps],
    *,
    failed: Callable[[str, Outcome], None],
) -> list[CellSteps]:
    """Train and measure cells on the cluster that the recipe names.

    Args:
        bench: the run.
        cells: those of the grid; what is done is skipped.
        failed: gets the name of each cell that failed, with its outcome.

    Returns:
        The cells that are done, in the order given.

    Raises:
        RecipeError, MissingExtraError, ClusterError: as `check_cluster`; what is done stays.
        ModelError: the base model cannot be named to other machines.
    """
    left = [cell for cell in cells if not cell.complete]
    if not left:
        return list(cells)
    lost: set[str] = set()
    with marked(bench.path) as folder:
        _check(bench.recipe, folder)
        make = CellWorker(recipe=_anywhere(bench.recipe), folder=folder, model=model_copy(bench.base), base=bench.base)
        began = time.monotonic()
        outcomes = run_tasks(make, [cell.cell for cell in left], cluster_of(bench.recipe), say=bench.say)
        for count, outcome in enumerate(outcomes, start=1):
            name = left[outcome.index].name
            if outcome.failure is not None:
                lost.add(name)
                failed(name, outcome)
                continue
            done: CellDone = outcome.value
            again = f", going on from step {done.resumed}" if done.resumed else ""
            ahead = (time.monotonic() - began) / count * (len(left) - count)
            later = f"; about {_minutes(ahead)} left" if count < len(left) else ""
            number = len(cells) - len(left) + count
            bench.say(f"cell {number} of {len(cells)}: {name} is done ({_minutes(done.seconds)}{again}){later}")
        shutil.rmtree(bench.path / LOCKS, ignore_errors=True)
    return [cell for cell in cells if cell.name not in lost]


def _check(recipe: Recipe, folder: SharedFolder) -> None:
    cluster = cluster_of(recipe)
    if cluster.address == "local":
        return  # this machine alone, which wrote the mark itself
    wrong = on_every_node(folder, cluster)
    if wrong:
        first = next(iter(wrong))
        more = f" (and {len(wrong) - 1} more nodes)" if len(wrong) > 1 else ""
        raise ClusterError(f"on node {first}{more}: {wrong[first]}")


def cluster_of(recipe: Recipe) -> Cluster:
    """The cluster that a recipe's grid asks for, with as many GPUs a cell as its training has processes on them.

    Raises:
        RecipeError: the recipe names a single device, or processes that cannot share the batch.
    """
    device = recipe.model.device
    launch = plan_launch(recipe.accelerate, recipe.sft)
    # A training in several processes has a GPU for each of them.
    on_gpus = launch.kind in SHARDED or (device == "cuda" and launch.processes > 1)
    gpus = float(launch.processes) if on_gpus else None
    return recipe.grid.ray.on_device(device, option="model.device", gpus=gpus)


def _anywhere(recipe: Recipe) -> Recipe:
    """The recipe with its files by absolute paths: workers start in a folder of their own."""
    named = {name: getattr(recipe.facts, name) for name in ("topics", "synonyms")}
    files: dict[str, Any] = {name: str(Path(file).absolute()) for name, file in named.items() if file}
    changed: dict[str, Any] = {"facts": replace(recipe.facts, **files)}
    config = recipe.accelerate.config
    if config and Path(config).is_file():
        changed["accelerate"] = replace(recipe.accelerate, config=str(Path(config).absolute()))
    return replace(recipe, **changed)


def _alone(lock: Path) -> Lock:
    """One worker a cell. A node that Ray takes for dead may still write; its locks go when its processes do."""
    busy = RunError(f"another process still works on {lock.name}; end it, or start the same command again later")
    return Lock(lock, busy, wait=_LOST_SECONDS, keep=True, holder=this_node())


def _steps_on_disk(folder: Path) -> int:
    """Steps of the last snapshot of a training that was cut off."""
    found = folder.with_name(f".{folder.name}.trainer").glob("checkpoint-*/trainer_state.json")
    return max((int(file.parent.name.rpartition("-")[2]) for file in found), default=0)


def _say_in_log(line: str) -> None:
    """Into Ray's log of the worker."""
    print(line, flush=True)


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
