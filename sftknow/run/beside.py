"""The grid in several processes of this machine: each trains, measures and stores one cell at a time.

Small models leave cores idle in one process. Each process has its share of the cores; all write where one would, so a
killed run goes on in as many processes as the next start wants.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path

from sftknow import processes
from sftknow.artifacts.stages import LOCK, RunDirectory
from sftknow.cluster import Outcome
from sftknow.errors import SftknowError
from sftknow.machine import available_processors
from sftknow.models.resolving import BaseModel
from sftknow.progress import time_text
from sftknow.recipes.schema import Recipe
from sftknow.run.cell_steps import CellSteps
from sftknow.run.cells import Cell
from sftknow.run.workbench import Workbench

_END_SECONDS = 20.0
"""How long a process may take to end."""


def train_beside(
    bench: Workbench,
    cells: Sequence[CellSteps],
    *,
    failed: Callable[[str, Outcome], None],
    finished: Callable[[Sequence[CellSteps]], None] = lambda cells: None,
) -> list[CellSteps]:
    """Train and measure cells in ``grid.processes`` processes, begun in the order given.

    Args:
        bench: the run, whose directory this process holds.
        cells: those of the grid; what is done is skipped.
        failed: gets the name of each cell that failed, with its outcome.
        finished: gets each cell that is done.

    Returns:
        The cells that are done, in the order given.
    """
    left = deque(cell for cell in cells if not cell.complete)
    total, done, began, lost = len(left), 0, time.monotonic(), set()
    hands = [_Hand(bench) for _ in range(min(bench.recipe.grid.processes, total))]
    try:
        for hand in hands:
            hand.give(left.popleft().cell)
        while busy := {hand.connection: hand for hand in hands if hand.cell is not None}:
            for connection in wait(list(busy)):
                hand = busy[connection]  # type: ignore[index]
                name = hand.cell.name if hand.cell else ""
                outcome = hand.take()
                done += 1
                ahead = (time.monotonic() - began) / done * (total - done)
                later = f"; about {time_text(ahead)} left" if done < total else ""
                if outcome.failure is not None:
                    lost.add(name)
                    failed(name, outcome)
                else:
                    bench.say(f"{done} of {total}: {name} is done ({time_text(outcome.value)}){later}")
                    finished([cell for cell in cells if cell.name == name])
                if left:
                    hand.give(left.popleft().cell)
    finally:
        for hand in hands:
            hand.end()
    return [cell for cell in cells if cell.name not in lost]


class _Hand:
    """One process that does cells; it is started again where it died of one."""

    def __init__(self, bench: Workbench) -> None:
        self._given = (bench.recipe, bench.path, bench.base)
        self.cell: Cell | None = None
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, there = context.Pipe()
        self._process = context.Process(target=_work, args=(there, *self._given), daemon=True)
        self._process.start()
        there.close()

    def give(self, cell: Cell) -> None:
        """Let it do a cell."""
        self.cell = cell
        self.connection.send(cell)

    def take(self) -> Outcome:
        """What became of the cell that it was given, once it is done."""
        self.cell = None
        try:
            found: Outcome = self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode or 0
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            self._start()
            return Outcome(index=0, failure=f"its process ended with {how}; the memory may not have been enough")
        return found

    def end(self) -> None:
        """Leave no process."""
        self.connection.close()  # at which one that has nothing to do ends by itself
        self._process.join(_END_SECONDS if self.cell is None else 0)
        self._process.terminate()
        self._process.join()


def _work(connection: Connection, recipe: Recipe, path: Path, base: BaseModel) -> None:
    """What one process does until the run is over or gone."""
    import torch

    processes.end_with_the_starter(path / LOCK)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, available_processors() // recipe.grid.processes))
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - bars of several processes would write over one another
    bench = Workbench(recipe, RunDirectory(path), lambda line: None, base=base)
    while True:
        try:
            cell = connection.recv()
        except EOFError:
            return
        connection.send(_outcome(bench, cell))


def _outcome(bench: Workbench, cell: Cell) -> Outcome:
    began = time.monotonic()
    try:
        CellSteps(bench, cell).do()
        return Outcome(index=0, value=time.monotonic() - began)
    except SftknowError as error:
        return Outcome(index=0, failure=str(error))
    except Exception as error:
        return Outcome(index=0, failure=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
