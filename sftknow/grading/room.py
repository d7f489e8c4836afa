"""How many samples, rows and tokens the transformers sampler works on at once: what its memory holds.

A sample that shares its row with no other keeps keys and values of every token; a pass over some rows has activations,
and logits over the whole vocabulary. The first are most of it with many rows, the second with large vocabularies. So a
quarter of the memory bounds a pass, and the rest the samples that are alive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from sftknow.errors import DeviceError
from sftknow.machine import free_memory, used_memory

_BESIDE_MODEL = 1024 * 10**6
"""Bytes taken beside the model on a CPU unless told: more rows than these hold are no faster."""
_LEAST_ROWS = 16
"""A CPU's matrix product adds in another order where it has fewer rows than about this; see `Room.least`."""
_MOST_ROWS = {"cpu": 512, "cuda": 8192}
_MOST_SAMPLES = {"cpu": 2048, "cuda": 16384}
_IDLE = {"cpu": 30, "cuda": 250}
"""Multiplications that a device does while it reads one weight from memory, about: see `Room.idle`."""
_PASS_WORK = 1e12
"""FLOP of one pass on a CPU, about: seconds, so that progress is seen whatever the size of the model."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """Bounds of one call of the sampler. On a CPU no result depends on them."""

    samples: int
    """Most samples alive at once; at least one statement is always taken."""
    rows: int
    """Most rows of one pass."""
    tokens: int
    """Most tokens of one pass, rows times new tokens, but for a row that has more."""
    least: int
    """Rows that every pass has, filled up where there are fewer. A row's numbers are then the same bits in any company:
    matrix products of MKL and oneDNN on x86 add alike from so many rows on (tested from 1 to 16 threads)."""
    idle: int
    """Tokens that a pass could have had beside its own in the time that it takes to read the weights, about."""


def room_for(model: Any, columns: int, *, each: int, memory: int | None, most: int | None) -> Room:
    """What there is room for.

    Args:
        model: on its device.
        columns: tokens that a row can grow to.
        each: samples of a statement.
        memory: bytes that the whole process may take (on a GPU: of its memory, the model included). None for 1 GB
            beside the model on a CPU, or half of what is free where that is less; on a GPU half of what the model
            leaves, so that equal devices choose alike.
        most: samples alive at once; None for what the memory holds.

    Raises:
        DeviceError: ``memory`` does not hold the model and one statement.
    """
    kind, config = model.device.type, model.config.get_text_config()
    heads = config.num_attention_heads
    kept_heads = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    inner = max(int(getattr(config, "intermediate_size", None) or 0), 4 * config.hidden_size)
    size = model.dtype.itemsize
    kept = 2 * config.num_hidden_layers * kept_heads * width * columns * size
    # What a pass has: keys and values repeated for every head (of two bytes: on a CPU in float32, too; `CpuKernels`),
    # and the logits, on a GPU with their float32 copies.
    states = size + 4 if kind == "cpu" and size < 4 else size
    row = 2 * heads * width * columns * states + config.vocab_size * (12 if kind == "cuda" else size)
    token = (8 * config.hidden_size + 3 * inner) * size
    least = max(_LEAST_ROWS, 2 * torch.get_num_threads()) if kind == "cpu" else 1
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    # Of a model that is spread over several GPUs only a part lies on the one that the logits come to.
    here = sum(weight.numel() * weight.element_size() for weight in model.parameters() if weight.device == model.device)
    budget = _budget(model.device, here, memory)
    needed = (each + least) * kept + least * (row + token)
    if memory is not None and budget < needed:
        raise DeviceError(
            f"--memory {memory / 1e9:,.2f}GB does not hold the model and one statement; "
            f"give at least {math.ceil((memory - budget + needed) / 1e7) / 100:,.2f}GB (grading.memory of a recipe)"
        )
    work = _PASS_WORK / (2 * weights / size) if kind == "cpu" else float("inf")
    rows = int(max(least, min(_MOST_ROWS.get(kind, 512), work, budget // 4 // (row + token))))
    tokens = int(max(4 * least, min(work, budget // 4 // token)))
    left = budget - max(rows * (row + token), tokens * token)
    samples = max(each, min(_MOST_SAMPLES.get(kind, 2048), left // kept - least))
    return Room(samples=int(most or samples), rows=rows, tokens=tokens, least=least, idle=_IDLE.get(kind, 30))


def _budget(device: torch.device, weights: int, memory: int | None) -> int:
    """Bytes that sampling may take beside what is taken already."""
    if device.type == "cuda":
        _, there = torch.cuda.mem_get_info(device)
        return (there - weights) // 2 if memory is None else memory - weights
    if memory is not None:
        return memory - max(used_memory(), weights)  # not every system says what is used
    free = free_memory()
    return _BESIDE_MODEL if free is None else min(_BESIDE_MODEL, free // 2)
