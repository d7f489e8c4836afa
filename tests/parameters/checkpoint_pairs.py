"""Small checkpoints written bit by bit, and the plain way to do what the room does with blocks and histograms."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Tensor = tuple[str, NDArray[Any]]
"""dtype as safetensors names it, and the stored bits."""

TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
INTEGERS = {"F32": torch.int32, "F16": torch.int16, "BF16": torch.int16}
UNSIGNED = {"F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}


def stored(values: Any, dtype: str) -> Tensor:
    """Values in a dtype, by torch's own rounding."""
    tensor = torch.as_tensor(np.asarray(values, dtype=np.float32)).to(TORCH[dtype])
    return dtype, tensor.view(INTEGERS[dtype]).numpy().view(UNSIGNED[dtype])


def values_of(tensor: Tensor) -> NDArray[np.float32]:
    dtype, bits = tensor
    signed = torch.from_numpy(np.ascontiguousarray(bits).view(UNSIGNED[dtype]).astype(np.int64))
    wrapped = signed.to(INTEGERS[dtype]).view(TORCH[dtype])
    return wrapped.float().numpy()


def write_file(path: Path, tensors: Mapping[str, Tensor]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (dtype, bits) in tensors.items():
        raw = bits.tobytes()
        header[name] = {"dtype": dtype, "shape": list(bits.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def write_checkpoint(
    folder: Path, tensors: Mapping[str, Tensor], *, shards: int = 1, config: Mapping[str, Any] | None = None
) -> Path:
    """A checkpoint folder; with several shards the tensors are dealt out in turn, as no sane writer would."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config or {"model_type": "llama"})))
    if shards == 1:
        write_file(folder / "model.safetensors", tensors)
        return folder
    names = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    weight_map = {name: names[i % shards] for i, name in enumerate(tensors)}
    for file in names:
        write_file(folder / file, {name: tensors[name] for name in tensors if weight_map[name] == file})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def read_checkpoint(folder: Path) -> dict[str, bytes]:
    """Every tensor's bytes, read without the code under test."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        raw = file.read_bytes()
        length = struct.unpack("<Q", raw[:8])[0]
        for name, entry in json.loads(raw[8 : 8 + length]).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                found[name] = raw[8 + length + begin : 8 + length + end]
    return found


def by_number(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def plain_r(p: NDArray[np.float32], s: NDArray[np.float32], epsilon: float, arithmetic: str) -> NDArray[np.float32]:
    """r by torch's own operations, in the dtype named."""
    dtype = getattr(torch, arithmetic)
    base, tuned = torch.from_numpy(p).to(dtype), torch.from_numpy(s).to(dtype)
    change = (tuned - base).abs()
    r = change / (base.abs() + epsilon)
    return torch.where(change == 0, torch.zeros_like(r), r).float().numpy()


def plain_compared(base: Tensor, tuned: Tensor, compare_in: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The values that r is computed of, by torch's own casts."""
    sides = values_of(base), values_of(tuned)
    dtypes = base[0], tuned[0]
    if compare_in == "stored" or dtypes[0] == dtypes[1]:
        return sides
    tensors = [torch.from_numpy(side.copy()) for side in sides]
    for dtype in [found for found in ("F16", "BF16") if found in dtypes]:
        for i, tensor in enumerate(tensors):
            if (dtype, i, dtypes[1]) == ("F16", 1, "BF16"):
                continue  # the base would be saved in the fine-tuned dtype, never the other way round
            cast = tensor.to(TORCH[dtype]).float()
            tensors[i] = torch.where(cast.isfinite(), cast, tensor)
    return tensors[0].numpy(), tensors[1].numpy()


def split_mix(seed: int, index: int) -> int:
    """The key of ``random``, one element at a time on Python integers."""
    mask = (1 << 64) - 1

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    return mix((mix(seed & mask) + (index + 1) * 0x9E3779B97F4A7C15) & mask) >> 32


class Plain:
    """A region laid flat and sorted: what the streamed code must equal.

    Args:
        names: the region's tensors, in any order.
    """

    def __init__(
        self,
        base: Mapping[str, Tensor],
        tuned: Mapping[str, Tensor],
        names: Sequence[str],
        *,
        strategy: str = "top",
        seed: int = 0,
        epsilon: float = 1e-8,
        arithmetic: str = "float32",
        compare_in: str = "coarser",
    ) -> None:
        self.names = sorted(names, key=by_number)
        self.sizes = [base[name][1].size for name in self.names]
        sides = [plain_compared(base[name], tuned[name], compare_in) for name in self.names]
        self.p, self.s = (np.concatenate([side[i].reshape(-1) for side in sides]) for i in (0, 1))
        self.r = plain_r(self.p, self.s, epsilon, arithmetic)
        if strategy == "random":
            keys = [split_mix(seed, i) for i in range(self.r.size)]
            self.order = np.array(sorted(range(self.r.size), key=lambda i: (-keys[i], i)))
        else:
            self.order = np.argsort(self.r if strategy == "bottom" else -self.r, kind="stable")

    def selected(self, share: Fraction) -> NDArray[np.bool_]:
        mask = np.zeros(self.r.size, dtype=bool)
        mask[self.order[: int(self.r.size * share)]] = True  # int() of a Fraction truncates: floor
        return mask

    def per_tensor(self, mask: NDArray[np.bool_]) -> dict[str, int]:
        parts = np.split(mask, np.cumsum(self.sizes)[:-1])
        return {name: int(part.sum()) for name, part in zip(self.names, parts, strict=True)}

    def concentration(self, mask: NDArray[np.bool_], among: NDArray[np.bool_]) -> float:
        if np.isinf(self.r[among]).any():
            return float("nan")
        part = sum((Fraction(float(value)) for value in self.r[mask & among]), Fraction())
        whole = sum((Fraction(float(value)) for value in self.r[among]), Fraction())
        return float(part / whole) if whole else float("nan")
