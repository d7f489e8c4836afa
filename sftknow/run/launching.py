"""Train one model in several processes: start `accelerate launch`, watch it, bring back what it made or why it failed.

The processes run `sftknow.run.launched`. What they say goes into a file, not onto the terminal; how far they are
comes back line by line, and so does the one line of an error. They hold on to a lock of this process, so that none of
them outlives it, however it ends.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml

from sftknow import errors
from sftknow.artifacts.lock import Lock
from sftknow.errors import DeviceError, MissingExtraError, RecipeError, RunError, SftknowError, first_line
from sftknow.machine import available_processors
from sftknow.records import TrainedModel
from sftknow.resources import recipe_folder
from sftknow.training.distributed import batch_parts, check_deepspeed, check_spread
from sftknow.training.recipe import AccelerateOptions, OnStep, SFTRecipe, TrainingOptions
from sftknow.training.trainer import step_bar

JOB, RESULT, REPORTS, LOCK = "job.pickle", "result.pickle", "reports.jsonl", "alive.lock"
_LOG = "output.log"
SHARDED = ("FSDP", "DEEPSPEED")
"""accelerate's ways of spreading one model's weights over several devices."""

_LOOK_SECONDS = 0.1
_END_SECONDS = 30.0
"""How long the launcher has to end its processes when it is asked to, before it is killed."""
_PLACES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
_REASON = re.compile(r"^(?:\[rank\d+\]:\s*)?((?:\w+\.)*\w*(?:Error|Exception))(?::\s*(.*))?$", re.MULTILINE)
_LAUNCHERS_OWN = ("ChildFailedError", "SignalException", "CalledProcessError")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What is started."""

    processes: int
    config: Path | None
    """accelerate's configuration; None for plain data parallel training."""
    kind: str
    """accelerate's ``distributed_type``."""


def shipped_configurations() -> list[str]:
    """Names of accelerate's configurations that come with the package."""
    return sorted(path.stem for path in (recipe_folder() / "accelerate").glob("*.yaml"))


def plan_launch(section: AccelerateOptions, recipe: SFTRecipe) -> Launch:
    """What a recipe's ``accelerate`` asks for. It looks at no device, so that it can be asked on another machine.

    Raises:
        RecipeError: there is no such configuration, it is none or for several machines, the processes cannot share the
            batch, or dtypes that DeepSpeed cannot keep to.
    """
    config = _find(section.config) if section.config else None
    content = _read(config) if config else {}
    processes = section.processes or content.get("num_processes") or 1
    if not isinstance(processes, int) or processes < 1:
        raise RecipeError(f"{config}: num_processes is {processes!r}; give accelerate.processes")
    if (content.get("num_machines") or 1) != 1:
        raise RecipeError(
            f"{config} is for {content['num_machines']} machines; start `accelerate launch --config_file {config} -m "
            "sftknow sft …` on each of them yourself"
        )
    batch_parts(recipe, processes)
    kind = str(content.get("distributed_type") or "MULTI_GPU")
    if kind == "DEEPSPEED":
        check_deepspeed(recipe)
    check_spread(recipe, kind in SHARDED)
    return Launch(processes=processes, config=config, kind=kind)


def check_devices(plan: Launch) -> None:
    """Whether this machine can start it.

    Raises:
        DeviceError: too few GPUs, or none where the weights are to be spread over them.
        MissingExtraError: DeepSpeed is not installed.
    """
    cards = torch.cuda.device_count()
    if plan.kind in SHARDED and not cards:
        raise DeviceError(f"{plan.kind} needs CUDA devices and there are none; leave accelerate.config out")
    if cards and plan.processes > cards:
        raise DeviceError(f"{plan.processes} processes need as many CUDA devices and there are {cards}; start fewer")
    if plan.kind == "DEEPSPEED" and find_spec("deepspeed") is None:
        raise MissingExtraError("deepspeed", "deepspeed")


def train_launched(
    work: Callable[..., TrainedModel],
    *given: Any,
    out: Path,
    recipe: SFTRecipe,
    section: AccelerateOptions,
    options: TrainingOptions | None = None,
) -> TrainedModel:
    """Call ``work(*given, out, recipe=recipe, options=…)`` in as many processes as the section asks for.

    Args:
        work: a function of a module, which trains one model into a folder: every process calls it.
        given: its first arguments; all must be picklable.
        out: the folder of the model; on failure what the processes said is kept beside it, in ``.<name>.launch.log``.
        recipe: how to train.
        section: how many processes, and how they share the weights.
        options: tracking and snapshots; its ``on_step`` is called here.

    Raises:
        SftknowError: what `plan_launch` and `check_devices` raise; what the processes raised; RunError where they ended
            otherwise.
    """
    plan = plan_launch(section, recipe)
    check_devices(plan)
    options = options or TrainingOptions()
    kept = out.with_name(f".{out.name}.launch.log")
    with tempfile.TemporaryDirectory(prefix="sftknow-launch-") as name:
        folder = Path(name)
        # Written and read by this very program a moment later, in a folder that only its user can open.
        job = (work, (*given, out), {"recipe": recipe, "options": replace(options, on_step=None)})
        (folder / JOB).write_bytes(pickle.dumps(job))
        (folder / REPORTS).touch()
        try:
            with _running(_command(plan, folder), folder) as process, _teller(options) as tell:
                failure = _follow(process, folder / REPORTS, tell)
            code = process.returncode
            if failure is None and code == 0:
                trained: TrainedModel = pickle.loads((folder / RESULT).read_bytes())
                kept.unlink(missing_ok=True)
                return trained
        except BaseException:
            _keep(folder / _LOG, kept)
            raise
        if failure is not None:
            raise failure
        _keep(folder / _LOG, kept)
        raise RunError(
            f"training in {plan.processes} processes failed ({_reason(kept, code)}); all that they said is in {kept}"
        )


def _find(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_file():
        return path.absolute()
    shipped = recipe_folder() / "accelerate" / f"{name}.yaml"
    if "/" in name or not shipped.is_file():
        raise RecipeError(
            f"accelerate.config: there is no {name}; there are {', '.join(shipped_configurations())} "
            "(or give a YAML file)"
        )
    return shipped


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is no YAML ({first_line(error)})") from None
    if not isinstance(content, dict) or "compute_environment" not in content:
        raise RecipeError(f"{path} is no configuration of accelerate; write one with `accelerate config`")
    return content


def _command(plan: Launch, folder: Path) -> list[str]:
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, available_processors() // plan.processes))
    kind = ["--config_file", str(plan.config)] if plan.config else ["--multi_gpu"] if plan.processes > 1 else []
    return [
        *(sys.executable, "-m", "accelerate.commands.launch", *kind),
        *("--num_processes", str(plan.processes), "--num_machines", "1", "--main_process_port", "0"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", threads),
        *("-m", "sftknow.run.launched", str(folder)),
    ]


@contextmanager
def _running(command: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The launcher at work; when the block is left none of its processes is."""
    environment = {name: value for name, value in os.environ.items() if name not in _PLACES}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    environment["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    with ExitStack() as stack:
        # Closed last, which ends whatever is still there: see `sftknow.run.launched`.
        stack.enter_context(Lock(folder / LOCK, RunError(f"another process trains in {folder}"), keep=True))
        said = stack.enter_context((folder / _LOG).open("wb"))
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment, start_new_session=True
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(_END_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _follow(process: subprocess.Popen[bytes], reports: Path, tell: OnStep) -> Any:
    """Pass on how far it is until it has ended; return the error of the main process, or None."""
    failure: SftknowError | None = None
    with reports.open(encoding="utf-8") as file:
        rest = ""
        while True:
            ended = process.poll() is not None
            *lines, rest = (rest + file.read()).split("\n")
            for line in lines:
                report = json.loads(line)
                if "error" in report:
                    failure = _error(report["error"], report["message"])
                else:
                    tell(report["step"], report["steps"], report["loss"])
            if ended:
                return failure
            time.sleep(_LOOK_SECONDS)


@contextmanager
def _teller(options: TrainingOptions) -> Iterator[OnStep]:
    """Who is told of each step: the caller, or a bar that appears with the first report."""
    if options.on_step is not None:
        yield options.on_step
        return
    with ExitStack() as stack:
        bars: list[OnStep] = []

        def tell(step: int, steps: int, loss: float | None) -> None:
            if not bars:
                bars.append(stack.enter_context(step_bar(steps, step)))
            bars[0](step, steps, loss)

        yield tell


def _error(kind: str, message: str) -> SftknowError:
    known = getattr(errors, kind, RunError)
    try:
        error: SftknowError = known(message)
    except TypeError:  # one that is made from something else than its message
        error = RunError(message)
    return error


def _keep(log: Path, place: Path) -> None:
    if log.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(log, place)


def _reason(log: Path, code: int) -> str:
    """The first exception that a process ended with, without the launcher's own report of it."""
    said = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    own = re.search(r"^sftknow: (.*)$", said, re.MULTILINE)  # of a process that is not the main one
    if own:
        return own[1]
    for match in _REASON.finditer(said):
        if match[1].rpartition(".")[2] not in _LAUNCHERS_OWN:
            return f"{match[1].rpartition('.')[2]}: {match[2] or ''}".rstrip(": ")
    return f"exit code {code}"
