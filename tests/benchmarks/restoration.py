"""Analysis and restoration of a checkpoint pair against the plain ways, on a pair that is made on the spot.

    python -m tests.benchmarks.restoration                                  # 0.5 B parameters, bfloat16, all sides
    python -m tests.benchmarks.restoration --sides ours --dtype float32     # another dtype, ours alone
    python -m tests.benchmarks.restoration --scaling 0.1B,0.5B,1B,2B,4B     # cost per parameter and peak memory
    python -m tests.benchmarks.restoration --threads 1,2,16                 # how it scales with threads

The sides, all in one run, each in a process of its own (whose peak memory is that of the process):

    ours      `analyse` and `restore_levels`
    (a)       the way of the authors' published code: load both checkpoints, r as one flat bfloat16 vector,
              `torch.topk`, copy, save; all of it anew for every level. That takes minutes at 0.5 B parameters; with
              `--levels-a 3` only three levels are run, and the time is their mean times the number of levels,
              which the table says.
    (b)       the same with one load and one sorted `topk` for all levels.

Sides (a) and (b) know neither ties nor statistics. Every side starts with its packages imported and, ours, with its
kernels loaded; the first start ever, which compiles them, is measured apart (`--first-start`). Every file is in the
page cache before, and written files count when they are on the disk. Nothing is asserted by the clock. At 0.5 B
parameters (a) and (b) need 12 GB of memory; the files need 12 GB of disk and are removed at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import mmap
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

LEVELS = ("1%", "3%", "5%", "10%", "20%", "40%", "60%")
WIDTH = 1024
DTYPES = ("bfloat16", "float16", "float32", "mixed")
EMBEDDING = "model.embed_tokens.weight"
DRAWN_LAYERS = 4
"""Layers with values of their own; the others repeat them, since drawing four billion numbers takes minutes."""
SHARE_OUTSIDE = 0.2  # of all parameters in the embedding, as in a model of half a billion


def count(text: str) -> int:
    """``20M``, ``0.5B`` or a plain number."""
    scale = {"M": 10**6, "B": 10**9}.get(text[-1].upper(), 1)
    return int(float(text.rstrip("MBmb")) * scale)


def make_pair(folder: Path, parameters: int, dtype: str) -> int:
    """Layers of one Llama-like shape and an embedding; values moved by about a unit in the last place, many not at all.

    ``mixed`` is a float32 base and a bfloat16 fine-tuned checkpoint. Returns the parameters in the layers.
    """
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
    layers = max(1, round(parameters * (1 - SHARE_OUTSIDE) / in_layer))
    base_kind = torch.float32 if dtype == "mixed" else getattr(torch, dtype)
    tuned_kind = torch.bfloat16 if dtype == "mixed" else base_kind
    for side in ("base", "tuned"):
        (folder / side).mkdir(parents=True)
    rows = int(layers * in_layer / (1 - SHARE_OUTSIDE) * SHARE_OUTSIDE) // WIDTH
    files: list[dict[str, tuple[int, int]]] = [{EMBEDDING: (rows, WIDTH)}]
    files += [
        {f"model.layers.{layer}.{module}.weight": shape for module, shape in shapes.items()} for layer in range(layers)
    ]
    weight_map = {}
    drawn: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
    for number, tensors in enumerate(files):
        which = number if number == 0 else 1 + (number - 1) % DRAWN_LAYERS
        if which not in drawn:
            drawn[which] = {}, {}
            for name, shape in tensors.items():
                base_value = (torch.randn(shape) * 0.02).to(base_kind)
                tuned_value = (base_value.float() + torch.randn(shape) * 2e-5).to(tuned_kind)
                drawn[which][0][name], drawn[which][1][name] = base_value, tuned_value
        base, tuned = (dict(zip(tensors, values.values(), strict=True)) for values in drawn[which])
        file = f"model-{number + 1:05d}-of-{len(files):05d}.safetensors"
        weight_map |= dict.fromkeys(tensors, file)
        save_file(base, folder / "base" / file, metadata={"format": "pt"})
        save_file(tuned, folder / "tuned" / file, metadata={"format": "pt"})
    for side in ("base", "tuned"):
        text = json.dumps({"metadata": {}, "weight_map": weight_map})
        (folder / side / "model.safetensors.index.json").write_text(text)
        (folder / side / "config.json").write_text("{}")
    return layers * in_layer


def _share(level: str) -> float:
    return float(level.rstrip("%")) / 100


# ours -----------------------------------------------------------------------------------------------------------------


def ours_analysis(folder: Path, levels: Sequence[str]) -> None:
    from sftknow.parameters.change import analyse

    analyse(folder / "base", folder / "tuned", levels, **_resources(folder))


def ours_sweep(folder: Path, levels: Sequence[str]) -> None:
    from sftknow.parameters.change import analyse
    from sftknow.parameters.restore import restore_levels

    resources = _resources(folder)
    plan = analyse(folder / "base", folder / "tuned", levels, **resources).plan
    outputs = {level: folder / "ours" / level.rstrip("%") for level in levels}
    start = time.perf_counter()
    restore_levels(folder / "base", folder / "tuned", plan, outputs, verified=True, **resources)
    writing = time.perf_counter() - start
    (folder / "written").write_text(json.dumps([_on_disk(folder / "ours"), writing]))


def _resources(folder: Path) -> dict[str, Any]:
    """The thread count that `by_threads` asks for, in a file, since every side runs in a process of its own."""
    if not (folder / "threads").is_file():
        return {}
    from sftknow.parameters.options import Resources

    return {"resources": Resources(threads=int((folder / "threads").read_text()))}


def _on_disk(folder: Path) -> int:
    """Bytes of the files, each counted once however many names it has."""
    return sum({file.stat().st_ino: file.stat().st_size for file in folder.rglob("*") if file.is_file()}.values())


def _warm(folder: Path) -> None:
    """Load every kernel, on a pair of a few thousand parameters of the same dtypes."""
    from sftknow.parameters.change import analyse
    from sftknow.parameters.restore import restore_levels

    small = folder / "small"
    plan = analyse(small / "base", small / "tuned", LEVELS).plan
    restore_levels(small / "base", small / "tuned", plan, {"20%": small / "out"}, verified=True)
    shutil.rmtree(small / "out")


# (a) and (b) ----------------------------------------------------------------------------------------------------------


def _loaded(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    import torch
    from safetensors.torch import load_file

    base, tuned = {}, {}
    for file in sorted((folder / "base").glob("*.safetensors")):
        base |= {name: value.to(torch.bfloat16) for name, value in load_file(file).items()}
        tuned |= {name: value.to(torch.bfloat16) for name, value in load_file(folder / "tuned" / file.name).items()}
    return base, tuned


def _flat_r(base: dict[str, Any], tuned: dict[str, Any]) -> tuple[list[str], Any]:
    import torch

    names = [name for name in tuned if "layers" in name]
    parts = [((tuned[name] - base[name]).abs() / (base[name].abs() + 1e-8)).flatten() for name in names]
    return names, torch.cat(parts)


def _copy(base: dict[str, Any], tuned: dict[str, Any], names: list[str], mask: Any) -> None:
    start = 0
    for name in names:
        inside = mask[start : start + tuned[name].numel()].view_as(tuned[name])
        start += tuned[name].numel()
        tuned[name][inside] = base[name][inside]


def _save(folder: Path, side: str, level: str, tuned: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    out = folder / side / level.rstrip("%")
    out.mkdir(parents=True)
    weight_map = json.loads((folder / "tuned" / "model.safetensors.index.json").read_text())["weight_map"]
    for shard in sorted(set(weight_map.values())):
        save_file({name: value for name, value in tuned.items() if weight_map[name] == shard}, out / shard)
    for path in out.iterdir():
        with path.open("rb") as handle:
            os.fsync(handle.fileno())


def _anew(folder: Path, levels: Sequence[str], *, save: bool) -> None:
    import torch

    for level in levels:
        base, tuned = _loaded(folder)
        names, r = _flat_r(base, tuned)
        mask = torch.zeros(r.numel(), dtype=torch.bool)
        mask[torch.topk(r, int(r.numel() * _share(level))).indices] = True
        if save:
            _copy(base, tuned, names, mask)
            _save(folder, "a", level, tuned)
            shutil.rmtree(folder / "a")  # seven would not fit beside the others
        del base, tuned, r, mask


def a_analysis(folder: Path, levels: Sequence[str]) -> None:
    _anew(folder, levels, save=False)


def a_sweep(folder: Path, levels: Sequence[str]) -> None:
    _anew(folder, levels, save=True)


def _once(folder: Path, levels: Sequence[str], *, save: bool) -> None:
    import torch

    base, tuned = _loaded(folder)
    names, r = _flat_r(base, tuned)
    elements = r.numel()
    order = torch.topk(r, int(elements * max(map(_share, levels))), sorted=True).indices
    del r
    for level in levels:  # ascending, so that each level adds to the one before
        mask = torch.zeros(elements, dtype=torch.bool)
        mask[order[: int(elements * _share(level))]] = True
        if save:
            _copy(base, tuned, names, mask)
            _save(folder, "b", level, tuned)


def b_analysis(folder: Path, levels: Sequence[str]) -> None:
    _once(folder, levels, save=False)


def b_sweep(folder: Path, levels: Sequence[str]) -> None:
    _once(folder, levels, save=True)


# measuring ------------------------------------------------------------------------------------------------------------


def _timed(work: Callable[[Path, Sequence[str]], None], folder: Path, levels: Sequence[str], queue: Any) -> None:
    ours = work.__name__.startswith("ours")
    if ours:
        _warm(folder)
    else:
        import safetensors.torch  # noqa: F401
        import torch  # noqa: F401
    start, start_cpu = time.perf_counter(), time.process_time()
    work(folder, levels)
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    queue.put({"seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak_memory() / 1e6})


def peak_memory() -> int:
    """Bytes. Not `getrusage`, which on Linux remembers what the parent process was when it started this one."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def measure(
    work: Callable[[Path, Sequence[str]], None], folder: Path, levels: Sequence[str] = LEVELS
) -> dict[str, float]:
    """Seconds, CPU seconds and peak memory (MB) of one side, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_timed, args=(work, folder, levels, queue))
    process.start()
    while process.is_alive() and queue.empty():
        time.sleep(0.05)
    found = queue.get(timeout=5) if not queue.empty() else None
    process.join()
    for side in ("ours", "a", "b"):
        shutil.rmtree(folder / side, ignore_errors=True)
    if found is None:
        raise SystemExit(f"{work.__name__} ended with {process.exitcode}; it may have run out of memory")
    os.sync()
    return dict(found)


def read_all(folder: Path) -> float:
    """Bring both checkpoints into the page cache; GB/s of the last reading, which is memory's rate by `read`."""
    rate = math.nan
    buffer = bytearray(1 << 21)
    for _ in range(2):
        total, start = 0, time.perf_counter()
        for side in ("base", "tuned"):
            for file in sorted((folder / side).glob("*.safetensors")):
                with file.open("rb", buffering=0) as handle:
                    while read := handle.readinto(buffer):
                        total += read
        rate = total / (time.perf_counter() - start) / 1e9
    return rate


def disk_rate(folder: Path, total: int = 3 << 30) -> float:
    """GB/s at which the disk takes files: by four threads, 4 MB at a time, past the page cache, durable at the end."""
    block = np.frombuffer(mmap.mmap(-1, 1 << 22), dtype=np.uint8)
    block[:] = np.random.default_rng(0).integers(0, 256, block.size, dtype=np.uint8)
    place = folder / "rate"
    place.mkdir()

    def write(number: int) -> None:
        descriptor = os.open(place / str(number), os.O_WRONLY | os.O_CREAT | getattr(os, "O_DIRECT", 0))
        try:
            for offset in range(0, total // 4, block.size):
                os.pwrite(descriptor, block, offset)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    start = time.perf_counter()
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, range(4)))
        return total / (time.perf_counter() - start) / 1e9
    finally:
        shutil.rmtree(place)
        os.sync()  # what is deleted keeps a disk busy that is told of free blocks


def first_start(folder: Path) -> dict[str, float]:
    """Seconds of `sftknow changes` on a tiny pair: with the kernels compiled, then with them read from their cache."""
    found = {}
    command = "import sys; from sftknow.cli.main import main; sys.exit(main())"
    with tempfile.TemporaryDirectory() as cache:
        for name in ("first_ever", "later"):
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, "-c", command, "changes", folder / "small" / "base", folder / "small" / "tuned"],
                check=True,
                capture_output=True,
                env={**os.environ, "NUMBA_CACHE_DIR": cache},
            )
            found[name] = time.perf_counter() - start
    return found


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for side in ("base", "tuned") for file in (folder / side).glob("*.safetensors"))


def compare(folder: Path, sides: Sequence[str], parts: Sequence[str], levels_a: int) -> dict[str, dict[str, float]]:
    """Measure every side that was asked for; (a) is scaled up to all levels."""
    rows = {}
    works = {"ours": (ours_analysis, ours_sweep), "b": (b_analysis, b_sweep), "a": (a_analysis, a_sweep)}
    for side in sides:
        for work in works[side]:
            if work.__name__.split("_")[1] not in parts:
                continue
            if side != "a":
                row = measure(work, folder)
                if work is ours_sweep:  # the rate of a shared disk does not stay the same
                    written, seconds = json.loads((folder / "written").read_text())
                    row |= {"disk_gb_per_s": disk_rate(folder), "written_gb": written / 1e9, "writing": seconds}
                rows[work.__name__] = row
                continue
            # Spread over all, since a larger level takes longer.
            some = [LEVELS[round((i + 0.5) * len(LEVELS) / levels_a - 0.5)] for i in range(levels_a)]
            row = measure(work, folder, some)
            row |= {"levels_run": len(some), "measured_seconds": row["seconds"]}
            row["seconds"] *= len(LEVELS) / len(some)
            row["cpu_seconds"] *= len(LEVELS) / len(some)
            rows[work.__name__] = row
    return rows


def show(rows: dict[str, dict[str, float]]) -> dict[str, float]:
    """Print a table of the sides; returns how many times as fast ours are."""
    print(f"{'':<16}{'seconds':>9}{'CPU s':>9}{'peak MB':>9}")
    ratios = {}
    for name, row in rows.items():
        note = ""
        if "levels_run" in row:
            note = (
                f"  {row['levels_run']} of {len(LEVELS)} levels run, in {row['measured_seconds']:.1f} s, and scaled up"
            )
        if "written_gb" in row:
            floor = row["written_gb"] / row["disk_gb_per_s"]
            note = (
                f"  {row['written_gb']:.2f} GB written in {row['writing']:.2f} s = "
                f"{row['written_gb'] / row['writing']:.2f} GB/s; the disk alone right after: "
                f"{row['disk_gb_per_s']:.2f} GB/s, for which the same would take {floor:.2f} s "
                f"({100 * floor / row['writing']:.0f} % of the disk's rate)"
            )
        print(
            f"{name.replace('_', ' '):<16}{row['seconds']:>9.2f}{row['cpu_seconds']:>9.2f}{row['peak_mb']:>9.0f}{note}"
        )
    for side in ("a", "b"):
        for part in ("analysis", "sweep"):
            if f"{side}_{part}" in rows and f"ours_{part}" in rows:
                ratio = rows[f"{side}_{part}"]["seconds"] / rows[f"ours_{part}"]["seconds"]
                ratios[f"{part} against ({side})"] = ratio
                print(f"{part} against ({side}): {ratio:.1f} times as fast")
    return ratios


def scaling(parent: Path | None, sizes: Sequence[str], dtype: str) -> list[dict[str, Any]]:
    """The analysis over models of several sizes: cost per parameter and peak memory."""
    rows = []
    print(
        f"{'parameters':>12}{'in region':>12}{'seconds':>9}{'ns/param.':>11}{'GB/s':>7}{'peak MB':>9}{'read GB/s':>11}"
    )
    for size in sizes:
        folder = Path(tempfile.mkdtemp(prefix="restoration-", dir=parent))
        try:
            region = make_pair(folder, count(size), dtype)
            make_pair(folder / "small", 0, dtype)
            memory_rate = read_all(folder)
            row = measure(ours_analysis, folder)
            seconds = row["seconds"]
            rate = _bytes(folder) * (1 - SHARE_OUTSIDE) / seconds / 1e9
            rows.append({"size": size, "region": region, **row, "gb_per_s": rate, "read_gb_per_s": memory_rate})
            print(
                f"{size:>12}{region / 1e6:>10.0f} M{seconds:>9.2f}{seconds / region * 1e9:>11.2f}{rate:>7.2f}"
                f"{row['peak_mb']:>9.0f}{memory_rate:>11.2f}",
                flush=True,
            )
        finally:
            shutil.rmtree(folder)
    return rows


def engine_alone(threads: int, jobs: int = 256, seconds: float = 0.005) -> float:
    """Seconds for jobs that do nothing but wait, as a thread does that has left the interpreter lock for a kernel.

    That takes no processor, so that two of them show whether the engine's own lock keeps any number of threads busy.
    """
    from sftknow.workers import share_jobs

    def wait(_: int) -> int:
        time.sleep(seconds)
        return 1

    start = time.perf_counter()
    share_jobs(range(jobs), lambda: wait, threads, lambda _: None)
    return time.perf_counter() - start


def by_threads(folder: Path, threads: Sequence[int], rounds: int = 3) -> list[dict[str, Any]]:
    """Ours with several numbers of threads, in turn, the best of some rounds; and the engine alone."""
    works = {"analysis": ours_analysis, "sweep": ours_sweep}
    best: dict[tuple[str, int], float] = {}
    for _ in range(rounds):
        for number in threads:
            (folder / "threads").write_text(str(number))
            found = {name: measure(work, folder)["seconds"] for name, work in works.items()}
            for name, seconds in {**found, "engine alone": engine_alone(number)}.items():
                best[name, number] = min(seconds, best.get((name, number), math.inf))
    (folder / "threads").unlink()
    rows = []
    for name in (*works, "engine alone"):
        for number in threads:
            times = best[name, threads[0]] / best[name, number]
            rows.append({"part": name, "threads": number, "seconds": best[name, number], "times_as_fast": times})
            print(f"{name:<14}{number:>4} threads{best[name, number]:>9.3f} s{times:>7.2f} times as fast")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", default="0.5B", type=count, help="in all, such as 20M; default: 0.5B")
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--sides", default="ours,b,a", help="default: ours,b,a")
    parser.add_argument("--parts", default="analysis,sweep", help="default: analysis,sweep")
    parser.add_argument(
        "--levels-a", type=int, default=len(LEVELS), choices=range(1, len(LEVELS) + 1), help="that (a) runs for real"
    )
    parser.add_argument("--scaling", help="sizes, such as 0.1B,0.5B,1B: the analysis alone, over these")
    parser.add_argument("--threads", help="numbers of threads, such as 1,2,16: ours alone, with each in turn")
    parser.add_argument("--first-start", action="store_true", help="measure also the start that compiles the kernels")
    parser.add_argument("--folder", type=Path, help="where to make the checkpoints (default: a temporary folder)")
    parser.add_argument("--keep", type=Path, help="make the pair here, or use the one that is here, and leave it")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"dtype": arguments.dtype, "levels": LEVELS, "processors": os.cpu_count()}
    if arguments.scaling:
        result["scaling"] = scaling(arguments.folder, arguments.scaling.split(","), arguments.dtype)
    else:
        folder = arguments.keep or Path(tempfile.mkdtemp(prefix="restoration-", dir=arguments.folder))
        try:
            if not (folder / "region").is_file():
                region = make_pair(folder, arguments.parameters, arguments.dtype)
                make_pair(folder / "small", 0, arguments.dtype)
                (folder / "region").write_text(str(region))
            region = int((folder / "region").read_text())
            rates = {"read_gb_per_s": read_all(folder), "disk_gb_per_s": disk_rate(folder)}
            print(
                f"{region / 1e6:.0f} M parameters in the region, {arguments.dtype}, {len(LEVELS)} levels; from the "
                f"page cache {rates['read_gb_per_s']:.1f} GB/s, to the disk {rates['disk_gb_per_s']:.2f} GB/s"
            )
            result |= {"region": region, **rates}
            if arguments.threads:
                result["threads"] = by_threads(folder, [int(part) for part in arguments.threads.split(",")])
            else:
                rows = compare(folder, arguments.sides.split(","), arguments.parts.split(","), arguments.levels_a)
                result |= {"sides": rows, "ratios": show(rows)}
            if arguments.first_start:
                result["first_start"] = first_start(folder)
                print("seconds of a whole command on a tiny pair:", result["first_start"])
        finally:
            if not arguments.keep:
                shutil.rmtree(folder)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
