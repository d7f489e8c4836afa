"""Analysis and restoration against the plain way, on a checkpoint pair that is made on the spot.

    python tests/benchmarks/restoration.py --parameters 20M --folder DIR --json result.json

Both sides write one restored checkpoint for each level. The plain way is that of the authors' published code, in its
memory-saving form for one level: load both models' tensors, lay r flat, ``torch.topk``, copy the base's values, save;
anew for every level. Nothing is asserted by the clock. Every side runs in a process of its own, whose peak memory is
that of the process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LEVELS = ("1%", "3%", "5%", "10%", "20%", "40%", "60%")
WIDTH = 1024
DTYPES = ("bfloat16", "float16", "float32")


def count(text: str) -> int:
    """``20M``, ``0.5B`` or a plain number."""
    scale = {"M": 10**6, "B": 10**9}.get(text[-1].upper(), 1)
    return int(float(text.rstrip("MBmb")) * scale)


def make_pair(folder: Path, parameters: int, dtype: str) -> int:
    """Layers of one Llama-like shape; fine-tuned values moved by a few units in the last place, many not at all."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    shapes = {f"self_attn.{part}_proj": (WIDTH, WIDTH) for part in "qkvo"}
    shapes |= {
        "mlp.gate_proj": (4 * WIDTH, WIDTH),
        "mlp.up_proj": (4 * WIDTH, WIDTH),
        "mlp.down_proj": (WIDTH, 4 * WIDTH),
    }
    in_layer = sum(rows * columns for rows, columns in shapes.values())
    layers = max(1, parameters // in_layer)
    kind = getattr(torch, dtype)
    for side in ("base", "tuned"):
        (folder / side).mkdir(parents=True)
    weight_map = {}
    for layer in range(layers):
        base, tuned = {}, {}
        for module, shape in shapes.items():
            name = f"model.layers.{layer}.{module}.weight"
            p = torch.randn(shape) * 0.02
            base[name] = p.to(kind)
            tuned[name] = (base[name].float() + torch.randn(shape) * 2e-5).to(kind)
        file = f"model-{layer + 1:05d}-of-{layers:05d}.safetensors"
        weight_map |= dict.fromkeys(base, file)
        save_file(base, folder / "base" / file, metadata={"format": "pt"})
        save_file(tuned, folder / "tuned" / file, metadata={"format": "pt"})
    for side in ("base", "tuned"):
        text = json.dumps({"metadata": {}, "weight_map": weight_map})
        (folder / side / "model.safetensors.index.json").write_text(text)
        (folder / side / "config.json").write_text("{}")
    return layers * in_layer


def ours_analysis(folder: Path) -> None:
    from sftknow.parameters.change import analyse
    from sftknow.parameters.tables import write_analysis

    write_analysis(folder / "changes", analyse(folder / "base", folder / "tuned", LEVELS))


def ours_restoration(folder: Path) -> None:
    from sftknow.parameters.restore import restore
    from sftknow.parameters.tables import read_plan

    plan = read_plan(folder / "changes" / "plan.json")
    for level in LEVELS:
        restore(folder / "base", folder / "tuned", plan, level, folder / "ours" / level.rstrip("%"), manifest={})


def _plain(folder: Path, *, save: bool) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    for level in LEVELS:
        base, tuned = {}, {}
        for file in sorted((folder / "base").glob("*.safetensors")):
            base |= load_file(file)
            tuned |= load_file(folder / "tuned" / file.name)
        names = list(tuned)
        parts = [((tuned[n].float() - base[n].float()).abs() / (base[n].float().abs() + 1e-8)).flatten() for n in names]
        r = torch.cat(parts)
        del parts
        selected = torch.topk(r, int(r.numel() * float(level.rstrip("%")) / 100)).indices
        mask = torch.zeros(r.numel(), dtype=torch.bool)
        mask[selected] = True
        if not save:
            continue
        start = 0
        for name in names:
            inside = mask[start : start + tuned[name].numel()].view_as(tuned[name])
            start += tuned[name].numel()
            tuned[name][inside] = base[name][inside]
        out = folder / "plain" / level.rstrip("%")
        out.mkdir(parents=True)
        weight_map = json.loads((folder / "tuned" / "model.safetensors.index.json").read_text())["weight_map"]
        for shard in sorted(set(weight_map.values())):
            save_file({name: tuned[name] for name in names if weight_map[name] == shard}, out / shard)
        for path in out.iterdir():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())


def plain_analysis(folder: Path) -> None:
    _plain(folder, save=False)


def plain_sweep(folder: Path) -> None:
    _plain(folder, save=True)


def _timed(work: Callable[[Path], None], folder: Path, queue: Any) -> None:
    import numpy  # noqa: F401  (imports of either side are not what is measured)
    import safetensors.torch  # noqa: F401
    import torch  # noqa: F401

    import sftknow.parameters.restore
    import sftknow.parameters.tables  # noqa: F401

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, start_cpu = time.perf_counter(), time.process_time()
    work(folder)
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    queue.put(
        {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak / 1024, "above_imports_mb": (peak - before) / 1024}
    )


def measure(work: Callable[[Path], None], folder: Path) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_timed, args=(work, folder, queue))
    process.start()
    while process.is_alive() and queue.empty():
        time.sleep(0.05)
    found = queue.get(timeout=5) if not queue.empty() else None
    process.join()
    if found is None:
        raise SystemExit(f"{work.__name__} ended with {process.exitcode}; it may have run out of memory")
    return dict(found)


def same_counts(folder: Path) -> bool:
    """Whether both sides restored equally many elements; which of many equal r, topk leaves open."""
    import torch
    from safetensors.torch import load_file

    for level in LEVELS:
        differing = []
        for side in ("ours", "plain"):
            total = 0
            for file in sorted((folder / side / level.rstrip("%")).glob("*.safetensors")):
                tuned, restored = load_file(folder / "tuned" / file.name), load_file(file)
                total += sum(int(torch.ne(tuned[name], restored[name]).sum()) for name in tuned)
            differing.append(total)
        if differing[0] != differing[1]:
            return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", default="20M", type=count, help="in the region, such as 20M or 0.5B")
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--folder", type=Path, help="where to make the checkpoints (default: a temporary folder)")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="restoration-", dir=arguments.folder))
    try:
        parameters = make_pair(folder, arguments.parameters, arguments.dtype)
        rows = {}
        for work in (ours_analysis, ours_restoration, plain_analysis, plain_sweep):
            rows[work.__name__] = measure(work, folder)
        agree = same_counts(folder)
    finally:
        shutil.rmtree(folder)

    analysis, restoration = rows["ours_analysis"], rows["ours_restoration"]
    ratios = {
        "analysis": rows["plain_analysis"]["seconds"] / analysis["seconds"],
        "sweep": rows["plain_sweep"]["seconds"] / (analysis["seconds"] + restoration["seconds"]),
    }
    print(f"{parameters / 1e6:.0f} M parameters in {arguments.dtype}, {len(LEVELS)} levels; same counts: {agree}")
    print(f"{'':<18}{'seconds':>9}{'CPU s':>9}{'peak MB':>9}{'above imports':>15}")
    for name, row in rows.items():
        numbers = (
            f"{row['seconds']:>9.2f}{row['cpu_seconds']:>9.2f}{row['peak_mb']:>9.0f}{row['above_imports_mb']:>15.0f}"
        )
        print(f"{name.replace('_', ' '):<18}{numbers}")
    print(f"times as fast as the plain way: analysis {ratios['analysis']:.1f}, whole sweep {ratios['sweep']:.1f}")
    if arguments.json:
        result = {"parameters": parameters, "dtype": arguments.dtype, "levels": LEVELS, "same_counts": agree}
        arguments.json.write_text(json.dumps({**result, "sides": rows, "ratios": ratios}, indent=2) + "\n")


if __name__ == "__main__":
    main()
