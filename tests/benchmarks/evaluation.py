"""Eight restoration levels in one process against eight `lm_eval` commands, on the lab model, as a ratio of seconds.

    python -m tests.benchmarks.evaluation --json evaluation.json

Both sides start from nothing, score the same eight checkpoints on the same questions (test and testood of the lab's
facts, in five buckets) at the same batch size and dtype, and have to give the same numbers to the last digit; the
script stops if they do not. The one process loads one model and copies the weights of each level into it. The data set
is not graded, the buckets are drawn: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

METRICS = ("acc", "acc_word", "exact_match")
LEVELS = (0.0, 0.01, 0.03, 0.05, 0.1, 0.2, 0.4, 0.6)

IN_PROCESS = """
import json, sys
from pathlib import Path
from safetensors.torch import load_file
from sftknow.evaluation.harness import Harness
from sftknow.records import ModelRef, to_json
from sftknow.models.loading import load_model, load_tokenizer

data, batch_size, dtype, out, *levels = sys.argv[1:]
harness = Harness(Path(data), batch_size=int(batch_size), device="cpu")
first = ModelRef(path=levels[0], dtype=dtype)
model, tokenizer = load_model(first), load_tokenizer(first)
parameters = dict(model.named_parameters())
scores = []
for level in levels:
    for name, tensor in load_file(Path(level) / "model.safetensors").items():
        parameters[name].data.copy_(tensor)
    run = harness.score(model, tokenizer, name=Path(level).name)
    scores.append({f"{m.task} {m.metric}": [m.value, m.stderr] for m in run.metrics})
Path(out).write_text(json.dumps(scores))
"""


def make_dataset(folder: Path) -> Path:
    """The lab's facts with drawn buckets."""
    from sftknow.answers import Synonyms
    from sftknow.artifacts.mastery_data import write_mastery_data
    from sftknow.facts.sources import load_facts
    from sftknow.facts.topics import load_topics
    from tests.tiny import graded

    facts = load_facts("lab", topics=load_topics(), synonyms=Synonyms.load()).facts
    rows = [graded(fact, int(hashlib.sha256(fact.id.encode()).hexdigest(), 16) % 5) for fact in facts]
    write_mastery_data(folder, rows, {"graded_by": "drawn", "policy": {}})
    return folder


def make_levels(folder: Path) -> list[Path]:
    """Eight checkpoints: the lab model moved a little at random, and a growing share of each tensor set back."""
    import torch
    from safetensors.torch import load_file, save_file

    from sftknow.resources import lab_folder

    base = lab_folder() / "model"
    weights = load_file(base / "model.safetensors")
    torch.manual_seed(0)
    moved = {name: tensor + 0.03 * tensor.abs().mean() * torch.randn_like(tensor) for name, tensor in weights.items()}
    levels = []
    for share in LEVELS:
        level = folder / f"{share:g}"
        shutil.copytree(base, level)
        (level / "sftknow.json").unlink(missing_ok=True)
        restored = {}
        for name, tensor in moved.items():
            change = ((tensor - weights[name]).abs() / (weights[name].abs() + 1e-8)).flatten()
            chosen = change.topk(int(share * change.numel())).indices
            flat = tensor.flatten().clone()
            flat[chosen] = weights[name].flatten()[chosen]
            restored[name] = flat.view_as(tensor)
        save_file(restored, level / "model.safetensors", metadata={"format": "pt"})
        levels.append(level)
    return levels


def environment() -> dict[str, str]:
    """For both sides: offline, so that nobody waits for a network."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def commands(levels: Sequence[Path], data: Path, batch_size: int, dtype: str, out: Path) -> list[dict[str, Any]]:
    """What eight lm_eval commands find."""
    from sftknow.resources import task_folder

    found = []
    for level in levels:
        place = out / level.name
        command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--tasks", "cbqa_mastery", "--device", "cpu"]
        command += ["--model_args", f"pretrained={level},dtype={dtype}", "--batch_size", str(batch_size)]
        command += ["--metadata", json.dumps({"mastery_dataset": str(data)}), "--output_path", str(place)]
        if "site-packages/lm_eval" not in str(task_folder()):
            command += ["--include_path", str(task_folder())]
        subprocess.run(command, env=environment(), capture_output=True, check=True)
        results = json.loads(next(place.rglob("results*.json")).read_text())["results"]
        found.append(
            {
                f"{task} {metric}": [values[f"{metric},none"], values[f"{metric}_stderr,none"]]
                for task, values in results.items()
                for metric in METRICS
                if f"{metric},none" in values
            }
        )
    return found


def one_process(levels: Sequence[Path], data: Path, batch_size: int, dtype: str, out: Path) -> list[dict[str, Any]]:
    """What the harness finds, in a process that is started for it."""
    arguments = [str(data), str(batch_size), dtype, str(out), *map(str, levels)]
    subprocess.run([sys.executable, "-c", IN_PROCESS, *arguments], env=environment(), capture_output=True, check=True)
    return list(json.loads(out.read_text()))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--levels", type=int, default=len(LEVELS), help="only the first few, for a quick look")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = make_dataset(folder / "data")
        levels = make_levels(folder / "levels")[: given.levels]
        start = time.perf_counter()
        ours = one_process(levels, data, given.batch_size, given.dtype, folder / "ours.json")
        our_seconds = time.perf_counter() - start
        start = time.perf_counter()
        theirs = commands(levels, data, given.batch_size, given.dtype, folder / "theirs")
        their_seconds = time.perf_counter() - start
    for level, told, other in zip(levels, ours, theirs, strict=True):
        # Only in process are end tokens seen, so lm-eval has no share of answers that end by themselves.
        mine = {key: value for key, value in told.items() if not key.endswith(" ended")}
        same = mine.keys() == other.keys() and all(
            math.isclose(a, b, rel_tol=0, abs_tol=0) for key in mine for a, b in zip(mine[key], other[key], strict=True)
        )
        if not same:
            raise SystemExit(f"the two sides disagree at level {level.name}: {mine} and {other}")
    questions = 940
    print(f"{'':24}{'seconds':>10}{'a level':>10}")
    print(f"{'lm_eval commands':24}{their_seconds:10.1f}{their_seconds / len(levels):10.1f}")
    print(f"{'one process':24}{our_seconds:10.1f}{our_seconds / len(levels):10.1f}")
    print(f"{their_seconds / our_seconds:.1f} times faster; {len(ours[0])} numbers a level equal to the last digit")
    if given.json:
        result = {
            "levels": len(levels),
            "questions": questions,
            "batch_size": given.batch_size,
            "dtype": given.dtype,
            "lm_eval_seconds": round(their_seconds, 2),
            "one_process_seconds": round(our_seconds, 2),
            "times_faster": round(their_seconds / our_seconds, 2),
            "acc_test": [scores["cbqa_mastery_test acc"][0] for scores in ours],
        }
        given.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
