"""Processes that train for this one: how far they are, what they made, why they failed; none is left behind."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sftknow.artifacts.files import read_json
from sftknow.artifacts.mastery_data import MasteryData
from sftknow.artifacts.stages import RunDirectory
from sftknow.errors import DeviceError, MissingExtraError, ModelError, RecipeError, RunError
from sftknow.models.resolving import BaseModel, resolve_base
from sftknow.recipes.load import load_recipe
from sftknow.records import ModelRef, TrainedModel
from sftknow.run import launching
from sftknow.run.cell_steps import CellSteps
from sftknow.run.cells import Cell
from sftknow.run.launching import Launch, check_devices, plan_launch, train_launched
from sftknow.run.training import FactDraw, TrainingSetup, train
from sftknow.run.workbench import Workbench
from sftknow.training.recipe import AccelerateOptions, LoraSettings, SFTRecipe, TrainingOptions
from tests.run.small_run import small_recipe
from tests.training.test_distributed import same_training

TWO = AccelerateOptions(processes=2)
RECIPE = SFTRecipe(learning_rate=1e-3, save_dtype="float32")


def never_called(*_: object, **__: object) -> TrainedModel:
    raise AssertionError("this process trains nothing")


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> object:
    """Let a script stand in for `accelerate launch` and its processes; it gets the folder."""

    def use(script: str) -> None:
        head = "import json, os, pathlib, pickle, sys, time\nfolder = pathlib.Path(sys.argv[1])\n"
        monkeypatch.setattr(
            launching, "_command", lambda plan, folder: [sys.executable, "-c", head + script, str(folder)]
        )

    return use


def launch(out: Path, **more: object) -> TrainedModel:
    return train_launched(never_called, out=out, recipe=RECIPE, section=TWO, **more)  # type: ignore[arg-type]


STEPS = """
with (folder / "reports.jsonl").open("a") as file:
    for step in range(4):
        file.write(json.dumps({"step": step, "steps": 3, "loss": None if not step else 1 / step}) + "\\n")
        file.flush()
"""


def test_progress_and_the_result_come_back(
    children: object, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = TrainedModel(checkpoint=tmp_path / "m", base=ModelRef(path="b"), recipe={}, steps=3, final_loss=0.5)
    (tmp_path / "made.pickle").write_bytes(__import__("pickle").dumps(made))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    children(  # type: ignore[operator]
        f"print('noise'); print('more', file=sys.stderr)\n{STEPS}\n"
        f"(folder / 'result.pickle').write_bytes(pathlib.Path({str(tmp_path / 'made.pickle')!r}).read_bytes())"
    )
    told: list[tuple[int, int, float | None]] = []
    options = TrainingOptions(on_step=lambda *step: told.append(step))
    assert launch(tmp_path / "m", options=options) == made
    assert told == [(0, 3, None), (1, 3, 1.0), (2, 3, 0.5), (3, 3, pytest.approx(1 / 3))]
    assert launch(tmp_path / "m") == made
    out, err = capfd.readouterr()
    assert out == ""
    assert "noise" not in err
    assert "3/3" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made.pickle"]


def test_an_error_of_the_main_process_comes_back_as_it_was(children: object, tmp_path: Path) -> None:
    report = json.dumps({"error": "ModelError", "message": "the training diverged; lower learning_rate"})
    children(f"(folder / 'reports.jsonl').write_text({report!r} + '\\n'); sys.exit(2)")  # type: ignore[operator]
    with pytest.raises(ModelError, match=r"^the training diverged; lower learning_rate$"):
        launch(tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "raise MemoryError('no more than 79 GiB')",
            "MemoryError: no more than 79 GiB",
        ),
        ("print('sftknow: x is gone (process 1 of 2)', file=sys.stderr); sys.exit(1)", r"x is gone \(process 1 of 2\)"),
        ("os.kill(os.getpid(), 9)", "exit code -9"),
        ("print('a.b.ChildFailedError: c', file=sys.stderr); sys.exit(7)", "exit code 7"),
    ],
)
def test_another_end_is_one_line_and_all_that_was_said_is_kept(
    children: object, tmp_path: Path, script: str, reason: str
) -> None:
    children("print('said', flush=True)\n" + script)  # type: ignore[operator]
    with pytest.raises(RunError, match=rf"training in 2 processes failed \({reason}\); all that they said") as caught:
        launch(tmp_path / "m")
    assert "\n" not in str(caught.value)
    assert (tmp_path / ".m.launch.log").read_text().startswith("said\n")


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def gone(pid: int, seconds: float = 20) -> bool:
    """Whether a process ends within that time."""
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pid)


# A rank in a session of its own, as torchrun starts them, which holds on to the starter's lock and does not end.
RANK = """
import subprocess
rank = '''
import sys, time, pathlib, signal
from sftknow import processes
signal.signal(signal.SIGTERM, signal.SIG_IGN)
processes.end_with_the_starter(pathlib.Path(sys.argv[1]) / "alive.lock")
time.sleep(600)
'''
child = subprocess.Popen([sys.executable, '-c', rank, str(folder)], start_new_session=True)
(folder / 'reports.jsonl').write_text(json.dumps({'step': child.pid, 'steps': os.getpid(), 'loss': None}) + chr(10))
time.sleep(600)
"""


def test_an_interruption_ends_the_launcher_and_its_processes(children: object, tmp_path: Path) -> None:
    children(RANK)  # type: ignore[operator]
    pids: list[int] = []

    def interrupt(step: int, steps: int, loss: float | None) -> None:
        pids.extend((step, steps))
        time.sleep(0.5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch(tmp_path / "m", options=TrainingOptions(on_step=interrupt))
    assert all(gone(pid) for pid in pids)


def test_a_kill_of_the_starter_ends_its_processes(tmp_path: Path) -> None:
    """Nobody is left who could end them: they notice that the lock is free."""
    starter = f"""
import fcntl, pathlib, sys, time
folder = pathlib.Path({str(tmp_path)!r})
(folder / "reports.jsonl").touch()
lock = (folder / "alive.lock").open("w")
fcntl.flock(lock, fcntl.LOCK_EX)
import subprocess
command = [sys.executable, "-c", "import json, os, pathlib, sys, time; folder = pathlib.Path(sys.argv[1])" + {RANK!r}]
subprocess.Popen([*command, str(folder)], start_new_session=True)
time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", starter])
    report, end = tmp_path / "reports.jsonl", time.monotonic() + 60
    while not (report.is_file() and report.read_text().endswith("\n")) and time.monotonic() < end:
        time.sleep(0.05)
    pids = json.loads(report.read_text())
    time.sleep(1.0)
    assert alive(pids["step"])
    process.kill()
    process.wait()
    assert gone(pids["step"])
    os.kill(pids["steps"], signal.SIGKILL)  # the stand-in for torchrun, which ends when its processes do


def test_requests_that_cannot_be_launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(match: str, recipe: SFTRecipe = RECIPE, **section: object) -> None:
        with pytest.raises(RecipeError, match=match) as caught:
            plan_launch(AccelerateOptions(**section), recipe)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)

    refused("batch_size 8 cannot be shared equally among 3 processes", processes=3)
    refused("divides? ", dataclasses.replace(RECIPE, per_device_batch_size=8), processes=2)
    refused("there is no zero9; there are deepspeed-zero3-70b, .*fsdp-8b", config="zero9")
    refused("DeepSpeed trains float32", SFTRecipe(load_dtype="bfloat16", compute_dtype="bfloat16"),
            config="deepspeed-zero3-8b")  # fmt: skip
    file = tmp_path / "own.yaml"
    for text, match in (
        ("a: [", "is no YAML"),
        ("a: 1", "is no configuration of accelerate"),
        ("compute_environment: LOCAL_MACHINE\nnum_machines: 2", "for 2 machines"),
        ("compute_environment: LOCAL_MACHINE\nnum_processes: -1", "num_processes is -1"),
    ):
        file.write_text(text)
        refused(match, config=str(file))
    file.write_text("compute_environment: LOCAL_MACHINE\nnum_processes: 4")
    assert plan_launch(AccelerateOptions(config=str(file)), RECIPE).processes == 4
    assert plan_launch(AccelerateOptions(config="fsdp-8b", processes=2), RECIPE).processes == 2
    assert plan_launch(AccelerateOptions(config="fsdp-70b"), RECIPE).kind == "FSDP"
    assert not AccelerateOptions(processes=1).launches

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(DeviceError, match="FSDP needs CUDA devices"):
        check_devices(Launch(processes=2, config=file, kind="FSDP"))
    check_devices(Launch(processes=2, config=None, kind="MULTI_GPU"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(DeviceError, match="8 processes need as many CUDA devices and there are 4"):
        check_devices(Launch(processes=8, config=None, kind="MULTI_GPU"))
    monkeypatch.setattr(launching, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"sftknow\[deepspeed\]"):
        check_devices(Launch(processes=4, config=file, kind="DEEPSPEED"))


def test_a_recipe_says_it(tmp_path: Path) -> None:
    recipe = load_recipe("lab", ["accelerate.processes=2", "accelerate.config=fsdp-8b"])
    assert recipe.accelerate == AccelerateOptions(processes=2, config="fsdp-8b")
    assert not load_recipe("lab").accelerate.launches
    with pytest.raises(RecipeError, match=r"accelerate\.processes"):
        load_recipe("lab", ["accelerate.processes=0"])


# ---- the real launcher: a minute, since every process imports everything -------------------------------------------


@pytest.fixture
def dataset(tiny_dataset: Path) -> MasteryData:
    return MasteryData(tiny_dataset)


def trained(
    base: BaseModel,
    dataset: MasteryData,
    cell: Cell,
    out: Path,
    recipe: SFTRecipe,
    accelerate: AccelerateOptions | None = None,
) -> TrainedModel:
    setup = TrainingSetup(recipe=recipe, accelerate=accelerate or AccelerateOptions())
    return train(base, FactDraw(dataset=dataset, cell=cell), out, setup)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_accelerate_launch_trains_what_this_process_does(
    tiny_model: Path, dataset: MasteryData, tmp_path: Path, lora: bool
) -> None:
    recipe = dataclasses.replace(RECIPE, lora=LoraSettings(rank=2) if lora else None)
    base, cell = resolve_base(str(tiny_model), None, None), Cell(bucket=None, size=19, seed=1, lora=lora)
    one = trained(base, dataset, cell, tmp_path / "one", recipe)
    two = trained(base, dataset, cell, tmp_path / "two", recipe, TWO)
    same_training(one.checkpoint, two.checkpoint)
    assert (two.steps, two.recipe, two.base) == (one.steps, one.recipe, one.base)
    assert two.final_loss == pytest.approx(one.final_loss)
    manifests = [read_json(model.checkpoint / "sftknow.json") for model in (one, two)]
    for key in ("base", "mastery_dataset", "draw"):
        assert manifests[0][key] == manifests[1][key]
    for key in ("recipe", "seed", "size", "fact_ids", "data_sha256", "steps", "device", "versions"):
        assert manifests[0]["sft"][key] == manifests[1]["sft"][key]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]


@pytest.mark.slow
def test_its_errors_are_one_line(tiny_model: Path, dataset: MasteryData, tmp_path: Path) -> None:
    base, cell = resolve_base(str(tiny_model), None, None), Cell(bucket=None, size=8, seed=1)
    recipe = dataclasses.replace(RECIPE, max_length=8)
    with pytest.raises(RecipeError, match=r"^fact .* tokens and max_length is 8; raise max_length$"):
        trained(base, dataset, cell, tmp_path / "out", recipe, TWO)
    assert list(tmp_path.iterdir()) == []


def sftknow(*arguments: str) -> Iterator[str]:
    yield from (sys.executable, "-m", "sftknow", *arguments)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_command_under_a_launcher_and_by_itself(tiny_model: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    def command(out: str, *more: str) -> list[str]:
        asked = ["sft", "--model", str(tiny_model), "--mastery", str(tiny_dataset), "--bucket", "mixed", "--size", "19"]
        return [*asked, "--out", str(tmp_path / out), "--set", "save_dtype=float32", *more]

    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--main_process_port", "0", "-m", "sftknow"]
    launched = subprocess.run([*launcher, *command("launched")], capture_output=True, text=True, timeout=280)
    assert launched.returncode == 0, launched.stderr
    assert launched.stdout.count("fine-tuned model") == 1
    assert launched.stderr.count(" 0/3 ") == 1, "one bar"
    itself = subprocess.run(
        [*sftknow(*command("itself", "--processes", "2"))], capture_output=True, text=True, timeout=280
    )
    assert itself.returncode == 0, itself.stderr
    assert itself.stdout.count("fine-tuned model") == 1
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("launched", "itself")]
    assert weights[0] == weights[1], "the same seed, the same bits"
    wrong = subprocess.run(
        [*launcher, *command("wrong", "--set", "batch_size=5")], capture_output=True, text=True, timeout=280
    )
    assert wrong.returncode != 0
    ours = [line for line in wrong.stderr.splitlines() if line.startswith("sftknow: ")]
    assert ours == [
        "sftknow: batch_size 5 cannot be shared equally among 2 processes; start as many as divide it, or change "
        "batch_size"
    ]


@pytest.mark.slow
def test_a_run_trains_its_cells_in_processes(tiny_dataset: Path, tmp_path: Path) -> None:
    settings = ("accelerate.processes=2", "sft.save_dtype=float32", "sft.learning_rate=1e-3")
    with RunDirectory(tmp_path / "run") as directory:
        bench = Workbench(small_recipe(*settings), directory, say=lambda text: None)
        shutil.copytree(tiny_dataset, bench.path / "mastery" / "dataset")
        cell = CellSteps(bench, Cell(bucket=0, size=4, seed=0))
        cell.training.do(bench.say)
        assert cell.training.complete
        assert "loaded_base" not in vars(bench), "the weights are in the processes alone"
    one = trained(bench.base, bench.dataset, cell.cell, tmp_path / "one", bench.training(cell.cell).recipe)
    same_training(one.checkpoint, cell.folder)
    assert read_json(cell.folder / "sftknow.json")["sft"]["processes"] == 2
