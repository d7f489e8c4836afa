"""How much the lab's numbers move from machine to machine: some models of a run trained anew, with other sums.

    python -m tests.benchmarks.machines RUN            # a finished run of the recipe lab
    python -m tests.benchmarks.machines RUN --docs     # the table goes to docs/lab.md

Four trainings and one restoration are done with one and with two threads, in float32 and with bfloat16 arithmetic in
training, each in a process of its own, on RUN's graded facts. What is told: the in-domain accuracy of each model, how
far it moves, its standard error over questions, and how many words of judgement change.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import sftknow
from tests.readme_tables import ROOT, replaced

VARIANTS = {
    f"{threads} thread{'s' * (threads > 1)}, {dtype}": (threads, dtype)
    for dtype in ("float32", "bfloat16")
    for threads in (1, 2)
}
SETTINGS = (
    "grid.buckets=[0,3]",
    "grid.sizes=[60,240]",
    "evaluation.splits=[dev,test]",
    "restore.cells=[b0-n240-s0]",
    "restore.levels=['20%','40%']",
    "restore.controls=0",
)
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def work(run: Path, out: Path, threads: int, dtype: str) -> None:
    """Do one variant in a folder; what is done there is not done again."""
    if not out.exists():
        for part in ("mastery", "facts"):
            shutil.copytree(run / part, out / part)
        for mark in (run / "stages").glob("mastery*.json"):
            (out / "stages").mkdir(exist_ok=True)
            shutil.copy(mark, out / "stages")
    sets = [word for setting in (*SETTINGS, f"sft.compute_dtype={dtype}") for word in ("--set", setting)]
    command = [sys.executable, "-m", "sftknow", "run", str(run / "recipe.yaml"), *sets, "--out", str(out)]
    environment = {**os.environ, **dict.fromkeys(_THREADS, str(threads))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{out.name} failed:\n{done.stdout}{done.stderr}")


def judged(part: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every difference of the findings with its word: more, less, or untold."""
    if isinstance(part, Mapping):
        if "sure" in part:
            yield place, ("more" if part["value"] > 0 else "less") if part["sure"] else "untold"
        for key, value in part.items():
            yield from judged(value, f"{place}.{key}")
    elif isinstance(part, list):
        for number, value in enumerate(part):
            name = value.get("title", value.get("trained_on", number)) if isinstance(value, Mapping) else number
            yield from judged(value, f"{place}.{name}")


def moved(folders: Mapping[str, Path]) -> list[str]:
    """The table as Markdown, and a line on the words."""
    scores, errors = {}, {}
    for name, folder in folders.items():
        frame = sftknow.results(folder)
        mine = frame[(frame["metric"] == "acc") & (frame["split"] == "test") & frame["bucket"].isna()].set_index(
            "model"
        )
        scores[name], errors = 100 * mine["value"], 100 * mine["stderr"]
    first = next(iter(scores.values()))
    lines = ["| in-domain % | " + " | ".join(scores) + " | largest difference | standard error |"]
    lines.append("| :-- |" + " --: |" * (len(scores) + 2))
    for model in first.index:
        values = [found[model] for found in scores.values()]
        shown = [*values, max(values) - min(values), errors[model]]
        lines.append(f"| {model} | " + " | ".join(f"{value:.1f}" for value in shown) + " |")
    found = [
        dict(judged(json.loads((f / "report" / "results.json").read_text())["findings"])) for f in folders.values()
    ]
    places = set.intersection(*(set(words) for words in found))
    changed = sorted(place for place in places if len({words[place] for words in found}) > 1)
    said = f"Of {len(places)} differences that all four judge, the word changes in {len(changed)}"
    return [*lines, "", f"{said}{': ' + ', '.join(p.lstrip('.') for p in changed) if changed else ''}."]


def main() -> None:
    """Measure and print; with ``--docs`` write it down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--docs", action="store_true", help="write the table into docs/lab.md")
    parser.add_argument("--work", type=Path, help="folder of the four runs, to go on with; a temporary one by default")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="machines-") as scratch:
        place = asked.work or Path(scratch)
        folders = {name: place / name.replace(", ", "-").replace(" ", "-") for name in VARIANTS}
        for name, (threads, dtype) in VARIANTS.items():
            print(f"{name} …", flush=True)
            work(asked.run, folders[name], threads, dtype)
        block = "\n".join(moved(folders))
    print(block)
    if asked.docs:
        path = ROOT / "docs" / "lab.md"
        path.write_text(replaced(path.read_text("utf-8"), "machines", block), encoding="utf-8")


if __name__ == "__main__":
    main()
