"""Storing fine-tuned checkpoints small: size and speed of deltas beside the whole files and beside Zstandard alone.

    python -m tests.benchmarks.deltas                          # the lab's model and a 0.5 B-parameter bf16 pair
    python -m tests.benchmarks.deltas --pair BASE TUNED        # a pair of your own

The lab's pair is fine-tuned on the spot. The large pair is made in code: weights of standard deviation 0.02, moved by
normal noise of the size that AdamW at 1e-5 leaves behind (``--moved``) and rounded to bf16. Every checkpoint is made
again from its delta and compared byte for byte; the script stops where one differs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import zstandard
from safetensors.torch import save_file

from sftknow.answers import Synonyms
from sftknow.checkpoints.deltas import BLOCKS, materialize, write_delta
from sftknow.checkpoints.packing import LEVEL
from sftknow.facts.sources import load_facts
from sftknow.facts.topics import load_topics
from sftknow.records import ModelRef
from sftknow.resources import lab_folder
from sftknow.training.recipe import SFTRecipe
from sftknow.training.train import fine_tune

WIDTH, DEPTH = 1024, 32


def lab_pair(folder: Path) -> tuple[Path, Path]:
    """The lab's model, and the same after 240 facts."""
    base = lab_folder() / "model"
    known = load_facts("lab", topics=load_topics(), synonyms=Synonyms.load()).facts
    facts = [fact for fact in known if fact.split == "train"][:240]
    fine_tune(
        ModelRef(path=str(base)), facts, folder / "tuned", recipe=SFTRecipe(learning_rate=3e-4), seed=0, manifest={}
    )
    return base, folder / "tuned"


def large_pair(folder: Path, parameters: int, moved: float) -> tuple[Path, Path]:
    """A bf16 pair of that many parameters, in four shards."""
    generator = torch.Generator().manual_seed(0)
    rows = parameters // (4 * 8 * WIDTH)
    for shard in range(4):
        before, after = {}, {}
        for i in range(8):
            weights = 0.02 * torch.randn(rows, WIDTH, generator=generator)
            before[f"model.layers.{8 * shard + i}.weight"] = weights.bfloat16()
            # The base is what is stored: training starts from the rounded values.
            noise = moved * torch.randn(rows, WIDTH, generator=generator)
            after[f"model.layers.{8 * shard + i}.weight"] = (weights.bfloat16().float() + noise).bfloat16()
        for name, tensors in (("base", before), ("tuned", after)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            save_file(tensors, folder / name / f"model-{shard + 1:05d}-of-00004.safetensors")
    return folder / "base", folder / "tuned"


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def alone(files: Sequence[Path]) -> int:
    """Bytes of the weights under Zstandard at the same level, without the base."""

    def pieces(file: Path) -> Iterator[bytes]:
        with file.open("rb") as handle:
            while piece := handle.read(2**23):
                yield piece

    compressor = zstandard.ZstdCompressor(level=LEVEL, threads=-1)
    return sum(len(compressor.compress(piece)) for file in files for piece in pieces(file))


def measure(name: str, base: Path, tuned: Path, folder: Path) -> dict[str, Any]:
    """Store, restore, compare; one row of the table."""
    whole = sum(file.stat().st_size for file in weight_files(tuned))
    write = seconds(lambda: write_delta(base, tuned, folder / "delta"))
    read = seconds(lambda: materialize(base, folder / "delta", folder / "back"))
    for file in weight_files(tuned):
        if file.read_bytes() != (folder / "back" / file.name).read_bytes():
            raise SystemExit(f"{file} did not come back byte for byte")
    small = (folder / "delta" / BLOCKS).stat().st_size
    packed = alone(weight_files(tuned))
    return {
        "pair": name,
        "weights_mb": whole / 1e6,
        "zstd_alone_mb": packed / 1e6,
        "delta_mb": small / 1e6,
        "times_smaller": whole / small,
        "times_smaller_than_zstd_alone": packed / small,
        "store_mb_per_second": whole / write / 1e6,
        "materialize_mb_per_second": whole / read / 1e6,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", nargs=2, type=Path, metavar=("BASE", "TUNED"))
    parser.add_argument("--parameters", type=int, default=500_000_000, help="of the large pair")
    parser.add_argument("--moved", type=float, default=3e-5, help="standard deviation of its changes")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        if given.pair:
            rows.append(measure("given", *given.pair, root))
        else:
            rows.append(measure("lab, 240 facts", *lab_pair(root / "lab"), root))
            pair = large_pair(root / "large", given.parameters, given.moved)
            shutil.rmtree(root / "delta")
            shutil.rmtree(root / "back")
            rows.append(measure(f"{given.parameters / 1e9:.1f} B, bf16", *pair, root))
    print("pair              whole MB   zstd MB  delta MB  smaller  store MB/s  back MB/s")
    for row in rows:
        print(
            f"{row['pair']:<16} {row['weights_mb']:>9.1f} {row['zstd_alone_mb']:>9.1f} {row['delta_mb']:>9.1f} "
            f"{row['times_smaller']:>7.1f}× {row['store_mb_per_second']:>11.0f} "
            f"{row['materialize_mb_per_second']:>10.0f}"
        )
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
