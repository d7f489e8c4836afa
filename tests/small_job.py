"""The main job in small by the installed commands: a run of the lab, and lm_eval with the run's numbers.

    python -m tests.small_job FOLDER

It works in FOLDER, so that the installed package answers and not the checkout.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

SMALL = (
    "facts.limit=400",
    "grading.samples=2",
    "grid.buckets=[0,4]",
    "grid.sizes=[24]",
    "grid.seeds=[0]",
    "restore.cells=best",
    'parameters.levels=["5%","20%"]',
)


def run(*command: str, folder: Path) -> str:
    """Run a command of this environment; its output is shown where it fails."""
    place = Path(sys.executable).parent / command[0]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [str(place), *command[1:]], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    said = done.stdout + done.stderr
    if done.returncode or "FutureWarning" in said:
        sys.exit(f"{' '.join(command)} gave {done.returncode}:\n{said[-6000:]}")
    return done.stdout


def scores(folder: Path) -> dict[str, float]:
    """Accuracy of the run's own evaluation, by task."""
    read = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    return {row["task"]: row["value"] for row in read["metrics"] if row["metric"] == "acc"}


def main(folder: Path) -> None:
    """Do it, and compare."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = [word for setting in SMALL for word in ("--set", setting)]
    run("sftknow", "run", "lab", "--out", "lab", *settings, folder=folder)
    assert (folder / "lab" / "report" / "report.html").is_file()
    model = "b4-n24-s0"
    ours = scores(folder / "lab" / "evaluation" / model)
    arguments = ["--model", "hf", "--model_args", f"pretrained=lab/models/{model}", "--tasks", "cbqa_mastery"]
    shutil.rmtree(folder / "results", ignore_errors=True)
    run("lm_eval", *arguments, "--batch_size", "128", "--output_path", "results", folder=folder)
    (file,) = (folder / "results").rglob("results_*.json")
    found = json.loads(file.read_text(encoding="utf-8"))["results"]
    for task in ("cbqa_mastery_test", "cbqa_mastery_testood"):
        theirs = found[task]["acc,none"]
        assert abs(theirs - ours[task]) < 1e-9, f"{task}: the run says {ours[task]}, lm_eval {theirs}"
        print(f"{task}: {theirs:.4f} in the run and from lm_eval")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
