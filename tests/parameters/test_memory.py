"""The peak memory of whole commands, which --memory bounds; `pytest -m slow -s` on this file shows it."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

MEMORY = 512 * 10**6
SEVEN = "1%,3%,5%,10%,20%,40%,60%"
SIXTY = ",".join(f"{level}%" for level in range(1, 61))
_RUN = """
import sys
from sftknow.cli.main import main
code = main(sys.argv[1:])
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
sys.exit(code)
"""


def checkpoint(folder: Path, tensors: int, elements: int, seed: int) -> Path:
    """Random bfloat16 values near 0.02, in experts of many layers; written as they are drawn."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    header = {
        f"model.layers.{i // 64}.mlp.experts.{i % 64}.up_proj.weight": {
            "dtype": "BF16", "shape": [elements // 10, 10], "data_offsets": [2 * i * elements, 2 * (i + 1) * elements],
        }
        for i in range(tensors)
    }  # fmt: skip
    text = json.dumps(header).encode()
    rng = np.random.default_rng(seed)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _ in range(tensors):
            file.write(rng.integers(0x3C80, 0x3D00, elements, dtype=np.uint16).tobytes())
    return folder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize(
    ("command", "tensors", "elements", "levels"),
    [
        ("changes", 30_000, 200, SEVEN),
        ("restore", 30_000, 200, SEVEN),
        ("changes", 3_000, 2_000, SIXTY),
        ("restore", 3_000, 2_000, SIXTY),
        ("changes", 6, 5_000_000, SEVEN),
        ("restore", 6, 5_000_000, SEVEN),
    ],
)
def test_peak_memory(tmp_path: Path, command: str, tensors: int, elements: int, levels: str) -> None:
    base, tuned = (checkpoint(tmp_path / name, tensors, elements, i) for i, name in enumerate(("base", "tuned")))
    option = "--levels" if command == "changes" else "--top"
    arguments = [command, base, tuned, option, levels, "--memory", "512MB", "--threads", "2", "--out", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    peak = 1024 * int(done.stdout.splitlines()[-1])
    print(f"{command}, {tensors:,} tensors, {levels.count(',') + 1} levels: {peak / 1e6:.0f} MB")
    assert peak <= MEMORY
