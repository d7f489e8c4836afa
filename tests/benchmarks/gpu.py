"""What a GPU makes of it, in one go of under eight minutes: one JSON file and one table.

    python -m tests.benchmarks.gpu --json gpu.json             # on one GPU
    python -m tests.benchmarks.gpu --json gpu.json --docs      # its figures go to docs/gpu.md, with the card's name
    python -m tests.benchmarks.gpu --from gpu.json --docs      # what was measured before, on a machine without one
    python -m tests.benchmarks.gpu --dry-run                   # the same, small, on the CPU: for typing errors

It needs no network and no files but the checkout's: models are the lab's, and a random Llama of 1.0 B parameters in
bfloat16 with the lab's tokenizer, which is made on the spot with a copy that is moved by about a unit in the last
place. The parts, each in a process of its own with a limit of its own; one that fails or lacks a package is named, the
others go on, and what was measured before is kept:

    tests     the tests marked ``gpu``
    grading   samples a second: the sampler, `generate` at its best batch size, vLLM where it is there
    ranking   the cuts of seven levels: compiled kernels on all cores; counted on the device; both have to be the same
    sweep     seven restored checkpoints written; a loaded model moved through them, each compared bit by bit
    run       `sftknow run lab`, small

Exit code 0 where every part was done.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sftknow.machine import available_processors
from tests.readme_tables import ROOT, replaced

LEVELS = ("1%", "3%", "5%", "10%", "20%", "40%", "60%")
LIMITS = {"models": 60, "tests": 60, "grading": 130, "ranking": 60, "sweep": 80, "run": 80}
"""Seconds for each part; under eight minutes together."""
SHAPES = {
    False: {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32},
    True: {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
}
"""Of the random model, by whether all is small."""

Keep = Callable[[str, Any], None]
"""Takes a figure's name and value as soon as it is there."""


def synchronise(device: str) -> None:
    """Wait for what the device was given to do."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def best_seconds(work: Callable[[], Any], device: str, rounds: int = 3) -> float:
    """The least wall-clock seconds of some rounds, everything done at the end of each."""
    found = []
    for _ in range(rounds):
        synchronise(device)
        begun = time.perf_counter()
        work()
        synchronise(device)
        found.append(time.perf_counter() - begun)
    return min(found)


# The parts: each keeps its figures under their names -----------------------------------------------------------------


def models(folder: Path, asked: argparse.Namespace, keep: Keep) -> None:
    """The random model and its moved copy, as folders ``base`` and ``tuned``."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from sftknow.resources import lab_folder

    tokenizer = AutoTokenizer.from_pretrained(lab_folder() / "model")
    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPES[asked.small],
        num_key_value_heads=4,
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype="bfloat16",
    )
    with torch.device(asked.device):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    keep("parameters", sum(weight.numel() for weight in model.parameters()))
    for name in ("base", "tuned"):
        model.save_pretrained(folder / name, max_shard_size="500MB")
        tokenizer.save_pretrained(folder / name)
        if name == "base":
            with torch.no_grad():
                for weight in model.parameters():
                    weight += (2e-5 * torch.randn_like(weight, dtype=torch.float32)).to(weight.dtype)


def tests(folder: Path, asked: argparse.Namespace, keep: Keep) -> None:
    """The tests marked ``gpu``; on a CPU they are only collected."""
    # These files alone: collecting all would import what the parts here do not need.
    marked = [str(file) for file in sorted(ROOT.glob("tests/**/test_*.py")) if "mark.gpu" in file.read_text("utf-8")]
    words = ["-n", "0", "-q", "-m", "gpu", *(["--collect-only"] if asked.device == "cpu" else []), *marked]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr.strip()
    keep("pytest", last)
    if done.returncode:
        raise SystemExit(f"pytest ended with {done.returncode}: {last}")


def grading(folder: Path, asked: argparse.Namespace, keep: Keep) -> None:
    """Samples a second on the lab's model in float32, and on the random one in bfloat16."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sftknow.records import SamplingPolicy
    from sftknow.resources import lab_folder
    from tests.benchmarks.grading import VLLM, compare, lab_requests

    policy = SamplingPolicy(samples=2, max_new_tokens=4) if asked.small else SamplingPolicy()
    sizes = {"lab": 2, "random": 1} if asked.small else {"lab": 48, "random": 16}
    for name, place, dtype in (("lab", lab_folder() / "model", "float32"), ("random", folder / "base", "bfloat16")):
        model = AutoModelForCausalLM.from_pretrained(place, dtype=getattr(torch, dtype)).to(asked.device).eval()
        tokenizer = AutoTokenizer.from_pretrained(place)
        arguments = {} if asked.device == "cpu" else {"gpu_memory_utilization": 0.4}
        vllm = VLLM(asked.vllm_python, str(place), dtype, 1, arguments) if asked.vllm_python else None
        requests = lab_requests("lab", sizes[name])
        report = compare(model, tokenizer, vllm, requests, policy, rounds=1 if asked.small else 3, without=None)
        if vllm is not None:
            vllm.close()
        keep(f"{name}, {dtype}", report)


def ranking(folder: Path, asked: argparse.Namespace, keep: Keep) -> None:
    """Seconds for the cuts of all levels, files in the page cache."""
    from safetensors.torch import load_file

    from sftknow.parameters.change import analyse
    from sftknow.parameters.pairs import pair_checkpoints
    from tests.benchmarks.device_ranking import cuts_on

    base, tuned = folder / "base", folder / "tuned"
    plan = analyse(base, tuned, LEVELS).plan  # compiles and reads for the first time
    keep("kernels on all cores: seconds", best_seconds(lambda: analyse(base, tuned, LEVELS), asked.device))
    names = [tensor.name for tensor in pair_checkpoints(base, tuned, "transformer", None).tensors]

    def loaded(place: Path) -> dict[str, Any]:
        files = sorted(place.glob("*.safetensors"))
        return {name: value for file in files for name, value in load_file(file, device=asked.device).items()}

    sides: list[dict[str, Any]] = []

    def load() -> None:
        sides[:] = [loaded(base), loaded(tuned)]

    keep("files to the device: seconds", best_seconds(load, asked.device, rounds=2))

    def count() -> list[Any]:
        return cuts_on(((sides[0][name], sides[1][name]) for name in names), LEVELS, asked.device)

    mine = [tuple(cut) for cut in count()]
    expected = [(cut.level, cut.selected, cut.threshold_bits, cut.ties) for cut in plan.cuts]
    if mine != expected:
        raise SystemExit(f"the device's cuts are {mine}, the kernels' {expected}")
    keep("counted on the device, once there: seconds", best_seconds(count, asked.device))
    keep("the same cuts", True)


def sweep(folder: Path, asked: argparse.Namespace, keep: Keep) -> None:
    """Seven levels written, and a loaded model moved through them."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from sftknow.parameters.change import analyse
    from sftknow.parameters.in_memory import ModelLevels
    from sftknow.parameters.restore import restore_levels

    base, tuned = folder / "base", folder / "tuned"
    plan = analyse(base, tuned, LEVELS).plan
    outputs = {level: folder / "restored" / level.rstrip("%") for level in LEVELS}
    begun = time.perf_counter()
    restore_levels(base, tuned, plan, outputs, verified=True)
    keep("seven checkpoints written: seconds", time.perf_counter() - begun)

    def load(place: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(place, dtype=torch.bfloat16).to(asked.device).eval()

    keep("one checkpoint loaded: seconds", best_seconds(lambda: load(outputs["5%"]), asked.device, rounds=2))
    model = load(tuned)
    begun = time.perf_counter()
    levels = ModelLevels(model, base, tuned, plan)
    synchronise(asked.device)
    keep("seven levels prepared in memory: seconds", time.perf_counter() - begun)
    taken = []
    for level, place in outputs.items():
        taken.append(best_seconds(lambda level=level: levels.to(level), asked.device, rounds=1))  # type: ignore[misc]
        parameters = dict(model.named_parameters())
        for file in sorted(place.glob("*.safetensors")):
            for name, stored in load_file(file).items():
                if not torch.equal(parameters[name].detach().cpu(), stored):
                    raise SystemExit(f"{name} at {level} is another in memory than in the file")
    keep("moved to the next level: seconds on average", sum(taken) / len(taken))
    keep("each level bit by bit that of its file", True)


def run(folder: Path, asked: argparse.Namespace, keep: Keep) -> None:
    """`sftknow run lab` in small."""
    from tests.small_job import SMALL

    settings = [*SMALL, f"model.device={asked.device}", *(["facts.limit=120"] if asked.small else [])]
    words = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "sftknow", "run", "lab", "--out", str(folder / "run"), *words]
    begun = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"sftknow run gave {done.returncode}: {(done.stderr.strip() or '?').splitlines()[-1]}")
    keep("seconds", time.perf_counter() - begun)
    results = json.loads((folder / "run" / "report" / "results.json").read_text(encoding="utf-8"))
    keep("said", results["plain_words"][1])


PARTS = {"models": models, "tests": tests, "grading": grading, "ranking": ranking, "sweep": sweep, "run": run}


# Around them ----------------------------------------------------------------------------------------------------------


def machine(device: str) -> dict[str, Any]:
    """What it ran on."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "numba")}
    card = torch.cuda.get_device_name() if torch.device(device).type == "cuda" else f"no GPU ({platform.machine()})"
    return {"card": card, "cores": available_processors(), "versions": versions, "date": time.strftime("%Y-%m-%d")}


def one(name: str, asked: argparse.Namespace) -> None:
    """Do a part in this process; its figures are on disk as soon as they are there."""
    place = asked.folder / f"{name}.json"
    figures: dict[str, Any] = {}

    def keep(what: str, value: Any) -> None:
        figures[what] = value
        place.write_text(json.dumps(figures), encoding="utf-8")

    PARTS[name](asked.folder, asked, keep)


def measured(name: str, asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A part in a process of its own: its figures, its seconds, and why it ended early where it did."""
    words = ["--part", name, "--folder", str(folder), "--device", asked.device]
    words += ["--small"] * asked.small + (["--vllm-python", asked.vllm_python] if asked.vllm_python else [])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    limit = LIMITS[name] * (20 if asked.small else 1)  # what is small may share a busy CPU
    begun, failed = time.perf_counter(), None
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.gpu", *words],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            timeout=limit,
        )  # fmt: skip
        if done.returncode:
            print(done.stdout[-2000:], flush=True)
            failed = (done.stdout.strip() or f"ended with {done.returncode}").splitlines()[-1]
    except subprocess.TimeoutExpired:
        failed = f"not done within {limit:g} s"
    file = folder / f"{name}.json"
    figures = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {"seconds": round(time.perf_counter() - begun, 1), "failed": failed, "figures": figures}


def lines(name: str, part: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Rows of the table: part, what, figure."""
    rows = []
    for what, value in part["figures"].items():
        if isinstance(value, Mapping):  # a comparison of samplers
            for side, found in value["sides"].items():
                rate = sorted(found["samples_per_second"])[len(found["samples_per_second"]) // 2]
                rows.append((name, f"{what}: {side}", f"{rate:,.0f} samples a second"))
        elif isinstance(value, bool):
            rows.append((name, what, "yes" if value else "no"))
        elif isinstance(value, float):
            rows.append((name, what, f"{value:.3g}"))
        else:
            rows.append((name, what, f"{value:,}" if isinstance(value, int) else str(value)))
    if part["failed"]:
        rows.append((name, "not done", part["failed"]))
    return rows


def table(report: Mapping[str, Any]) -> str:
    """The figures as Markdown, under a line on the machine."""
    at = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in at["versions"].items())
    size = "small, for typing errors only; no figures" if report["small"] else "full size"
    head = f"{at['card']}, {at['cores']} processor cores, {versions}, {at['date']}; {size}."
    rows = [row for name, part in report["parts"].items() for row in lines(name, part)]
    body = ["| " + " | ".join(re.sub(r"[|\n]", " ", cell) for cell in row) + " |" for row in rows]
    return "\n".join([head, "", "| part | what | figure |", "| :-- | :-- | --: |", *body])


def joined(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several calls' parts as one report; a part that was measured twice is taken from the later one.

    Raises:
        ValueError: they are not of one machine, or were small ones.
    """
    if any(report["small"] for report in reports):
        raise ValueError("a small call has no figures to join")
    if len({json.dumps({**report["machine"], "date": ""}, sort_keys=True) for report in reports}) > 1:
        raise ValueError("the files are of different machines or versions")
    parts = {name: part for report in reports for name, part in report["parts"].items()}
    return {**reports[-1], "parts": {name: parts[name] for name in PARTS if name in parts}}


def show(report: Mapping[str, Any], docs: bool) -> int:
    """Print the table, write it into docs/gpu.md where asked; 1 where a part was not done."""
    said = table(report)
    print(said)
    if docs:
        path = ROOT / "docs" / "gpu.md"
        path.write_text(replaced(path.read_text("utf-8"), "gpu", said), encoding="utf-8")
    return int(any(part["failed"] for part in report["parts"].values()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="default: cuda")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with a small model and few facts")
    parser.add_argument(
        "--parts", default=",".join(PARTS), help="some of them; `models` is made for those that need it"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="written after every part")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/gpu.md")
    parser.add_argument("--vllm-python", help="an interpreter with vLLM; default: this one where it has it")
    parser.add_argument("--small", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument(
        "--from", nargs="+", type=Path, dest="measured", metavar="FILE", help="measure nothing: join such JSON files"
    )
    asked = parser.parse_args(arguments)
    if asked.part:
        one(asked.part, asked)
        return 0
    if asked.measured:
        try:
            report = joined([json.loads(file.read_text(encoding="utf-8")) for file in asked.measured])
        except ValueError as error:
            parser.error(str(error))
        return show(report, asked.docs)
    if asked.dry_run:
        asked.device, asked.small = "cpu", True
    names = asked.parts.split(",")
    if unknown := sorted(set(names) - set(PARTS)):
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if torch.device(asked.device).type == "cuda" and not torch.cuda.is_available():
        parser.error("this machine has no CUDA device; --dry-run tries everything on the CPU")
    if asked.docs and (asked.small or asked.device == "cpu"):
        parser.error("--docs takes figures of a GPU only")
    if asked.vllm_python is None and importlib.util.find_spec("vllm"):
        asked.vllm_python = sys.executable
    report: dict[str, Any] = {"machine": machine(asked.device), "small": asked.small, "parts": {}}
    with tempfile.TemporaryDirectory(prefix="gpu-") as scratch:
        for name in [name for name in PARTS if name in names or name == "models"]:
            print(f"{name} …", flush=True)
            report["parts"][name] = measured(name, asked, Path(scratch))
            if asked.json:
                asked.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return show(report, asked.docs)


if __name__ == "__main__":
    sys.exit(main())
