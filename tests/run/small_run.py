"""A whole experiment, small: the lab's model, some of its facts, two cells. The kill tests run it as a script."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

from sftknow.artifacts.stages import RunDirectory, Stage
from sftknow.recipes.load import load_recipe
from sftknow.recipes.schema import Recipe
from sftknow.run.experiment import Experiment

SETTINGS = (
    "facts.limit=120",
    "grading.samples=1",
    "grading.shard_size=64",
    "grid.buckets=[0,4]",
    "grid.sizes=[8]",
    "restore.cells=[best]",
    "restore.levels=['5%','40%']",
    "parameters.levels=['5%','40%']",
    "divergence.bootstrap=200",
)


def small_recipe(*more: str) -> Recipe:
    return load_recipe("lab", [*SETTINGS, *more])


def run(out: Path, *more: str) -> Path:
    with RunDirectory(out) as directory:
        return Experiment(small_recipe(*more), directory, say=lambda text: None).run()


def graded_copy(finished: Path, out: Path) -> Path:
    """The finished run without anything after the grading."""
    shutil.copytree(finished, out, symlinks=True)
    for name in ("models", "evaluation", "divergence", "changes", "restored", "knowledge", "report"):
        shutil.rmtree(out / name, ignore_errors=name == "knowledge")
        shutil.rmtree(out / "stages" / name, ignore_errors=True)
    (out / "choice.json").unlink()
    return out


def die_in(stage_name: str) -> None:
    """Let the process be killed when the stage of that name is about to be marked as finished."""
    finish = Stage.finish

    def killed(stage: Stage, outputs: object = None) -> None:
        if stage_name in str(stage.folder):
            os.kill(os.getpid(), signal.SIGKILL)
        finish(stage, outputs)

    Stage.finish = killed  # type: ignore[method-assign]


def die_after_shards(count: int) -> None:
    """Let the process be killed when that many shards of the grading are on disk."""
    import sftknow.grading.shards as shards

    write, done = shards.write_shard, 0

    def counted(*arguments: object, **more: object) -> None:
        nonlocal done
        if done == count:
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1
        write(*arguments, **more)

    shards.write_shard = counted


if __name__ == "__main__":
    folder, point = sys.argv[1:]
    if point.startswith("shard:"):
        die_after_shards(int(point.removeprefix("shard:")))
    else:
        die_in(point)
    run(Path(folder))
