"""How long a run under way will still take, from what its own stages took so far."""

from __future__ import annotations

from dataclasses import replace

from sftknow.progress import time_text
from sftknow.records import BUCKETS
from sftknow.run.planning import RunPlan, add_times
from sftknow.run.rates import rates_of_run
from sftknow.run.standing import Standing
from sftknow.run.workbench import Workbench


class TimeLeft:
    """The time that is left, told before each cell.

    Args:
        bench: the run.
        now: what is done at the start.
    """

    def __init__(self, bench: Workbench, now: Standing) -> None:
        self._plan = RunPlan(recipe=bench.recipe, path=bench.path, now=now)
        self._plan.facts = bench.facts.counts()
        self._plan.bucket_counts = tuple(bench.dataset.count("train", bucket) for bucket in BUCKETS)

    def finished(self, cell: str) -> None:
        """A cell is trained, measured and stored."""
        now = self._plan.now
        self._plan.now = replace(now, trained=now.trained | {cell}, done=now.done | {cell})

    def __str__(self) -> str:
        """Such as ``, about 12 min left``; ``at least`` where nothing is known yet of a later stage, else empty."""
        rates = rates_of_run(self._plan.path, self._plan.questions or 0)
        add_times(self._plan, rates)
        if "training" not in rates or "evaluation" not in rates:
            return ""
        known = [stage.seconds for stage in self._plan.stages if stage.seconds is not None]
        word = "about" if len(known) == len(self._plan.stages) else "at least"
        return f", {word} {time_text(sum(known))} left"
