"""Peak memory of the sampler beside its model: the shape of SmolLM2-135M with vocabularies of several sizes.

    python -m tests.benchmarks.sampling_memory --vocabularies 49152 128256 262144 --json memory.json
    python -m tests.benchmarks.sampling_memory --model FOLDER

Every model runs in a process of its own: made with random weights, or the one of a folder; loaded as `sftknow grade`
loads it, then asked statements until more samples wait than fit. Random weights are the worst case: no two samples
share a row for long, and none leaves. ``beside`` is what the process held at its peak without the weights: Python,
torch, the tokenizer, and what ``--memory`` bounds. With ``--short`` samples have two tokens and every page of the cache
is written at once: the same peak in a tenth of the time.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from sftknow.grading import slot_cache, transformers_sampler
from sftknow.grading.room import room_for
from sftknow.grading.slot_cache import SlotLayer
from sftknow.records import ModelRef, SamplingPolicy

VOCABULARIES = (49_152, 128_256, 262_144)


def make_model(folder: Path, vocabulary: int) -> None:
    """Random weights in the shape of SmolLM2-135M, stored in bfloat16, loaded in float32; the lab's tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from sftknow.resources import lab_folder

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.config.dtype = torch.float32
    model.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**written, "dtype": "float32"}))
    AutoTokenizer.from_pretrained(lab_folder() / "model").save_pretrained(folder)


COLUMNS = 45
"""Tokens of a statement of the lab with its continuation, about."""


class _Written(SlotLayer):
    """Buffers as large as for whole continuations, with every page written."""

    def _buffer(self, states: torch.Tensor) -> torch.Tensor:
        self.window.columns = COLUMNS
        return super()._buffer(states).fill_(0.0)


def shorten() -> SamplingPolicy:
    """See ``--short``."""
    slot_cache.SlotLayer = _Written  # type: ignore[misc]
    transformers_sampler.room_for = lambda model, _, **more: room_for(model, COLUMNS, **more)
    return SamplingPolicy(max_new_tokens=2)


def measure(folder: Path, statements: int, memory: int | None, *, short: bool) -> dict[str, Any]:
    """Sample in this process; sizes in MB."""
    from tests.benchmarks.grading import lab_requests

    policy = shorten() if short else SamplingPolicy()
    sampler = transformers_sampler.load_sampler(ModelRef(path=str(folder)), device="cpu", memory=memory)
    weights = sum(weight.nbytes for weight in sampler.model.parameters())
    loaded = _peak()
    asked = lab_requests("lab", -(-statements // 21))[:statements]
    room = room_for(sampler.model, COLUMNS, each=policy.samples, memory=memory, most=None)
    began = time.perf_counter()
    sampler.sample(asked, policy)
    return {
        "vocabulary": sampler.model.config.vocab_size,
        "model_mb": weights / 1e6,
        "loaded_mb": loaded,
        "peak_mb": _peak(),
        "beside_mb": _peak() - weights / 1e6,
        "samples_at_once": room.samples,
        "rows_a_pass": room.rows,
        "seconds": time.perf_counter() - began,
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main() -> None:
    from sftknow.checkpoints.layout import parse_size

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=VOCABULARIES)
    parser.add_argument("--model", type=Path, help="a folder in place of random weights")
    parser.add_argument("--statements", type=int, default=42)
    parser.add_argument("--memory", type=parse_size)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--make", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make_model(options.one, options.make)
        return
    if options.one:
        print(json.dumps(measure(options.one, options.statements, options.memory, short=options.short)))
        return
    command = [sys.executable, "-m", "tests.benchmarks.sampling_memory", "--statements", str(options.statements)]
    command += ["--memory", str(options.memory)] if options.memory else []
    command += ["--short"] if options.short else []
    rows = []
    print(
        f"{'vocabulary':>10} {'model MB':>9} {'loaded MB':>10} {'peak MB':>8} {'beside MB':>10} {'samples':>8} {'s':>6}"
    )
    for vocabulary in [0] if options.model else options.vocabularies:
        with tempfile.TemporaryDirectory() as name:
            folder = options.model or Path(name)
            if vocabulary:
                subprocess.run([*command, "--one", name, "--make", str(vocabulary)], check=True, capture_output=True)
            done = subprocess.run([*command, "--one", str(folder)], check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        row = rows[-1]
        print(
            f"{row['vocabulary']:>10,} {row['model_mb']:>9,.0f} {row['loaded_mb']:>10,.0f} {row['peak_mb']:>8,.0f} "
            f"{row['beside_mb']:>10,.0f} {row['samples_at_once']:>8} {row['seconds']:>6.0f}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
