"""The cuts of a restoration plan by counting pairs of bfloat16 values on a device: the same bits as `analyse` gives.

The idea is that of `sftknow.parameters.pair_kernels`: fine-tuning moves a value by a few units in the last place, so
that there are some hundred thousand different pairs (magnitude, step) among billions of elements. They are counted in
one table; r is computed once for each pair, and for each of the few values that moved further. Only `tests.benchmarks
.gpu` calls this: whether it pays beside reading the files is what that measures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

from sftknow.artifacts.levels import parse_levels
from sftknow.parameters.selection import selected_elements
from sftknow.parameters.vectors import FAR, NEAR, NEAREST

_INFINITY = 0x7F80


class Cut(NamedTuple):
    """What `LevelCut` says of a level, but for the place of its last tie."""

    level: str
    selected: int
    threshold_bits: int
    ties: int


def cuts_on(pairs: Iterable[tuple[Any, Any]], levels: Sequence[str], device: str, epsilon: float = 1e-8) -> list[Cut]:
    """Where each level ends in the order of r, largest first.

    Args:
        pairs: base and fine-tuned tensors of the region, bfloat16, any shape, alike within a pair; on any device.
        levels: shares such as ``5%``.
        device: where they are counted.
        epsilon: of r, see `sftknow.parameters.relative`.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    table = torch.zeros(FAR, dtype=torch.int64, device=device)
    found: list[tuple[Any, Any]] = []
    elements = changed = 0
    for base, tuned in pairs:
        p, s = (side.to(device).view(torch.int16).flatten().int() & 0xFFFF for side in (base, tuned))
        if max(int((side & 0x7FFF).max()) for side in (p, s)) >= _INFINITY:
            raise ValueError("a value is NaN or infinite")
        elements += p.numel()
        differs = p != s
        p, s = p[differs], s[differs]
        step = (s - p + NEAREST) & 0xFFFF
        near = step < NEAR
        numbers = step[near] << 15 | p[near] & 0x7FFF
        table += torch.bincount(numbers, minlength=FAR)
        p, s = p[~near], s[~near]
        moved = ((p | s) & 0x7FFF) != 0  # +0 and −0 are one value
        far = torch.unique(relative_bits(p[moved], s[moved], epsilon), return_counts=True)
        changed += numbers.numel() + int(moved.sum())
        found.append(far)
    met = table.nonzero().flatten()
    magnitude = (met & 0x7FFF).int()
    found.append((relative_bits(magnitude, magnitude + (met >> 15).int() - NEAREST, epsilon), table[met]))
    zero = torch.zeros(1, dtype=torch.int32, device=device)
    found.append((zero, torch.tensor([elements - changed], device=device)))
    keys, place = torch.unique(torch.cat([bits for bits, _ in found]), return_inverse=True)
    counts = torch.zeros(keys.numel(), dtype=torch.int64, device=device)
    counts.index_add_(0, place, torch.cat([count for _, count in found]))
    from_top, falling = counts.flip(0).cumsum(0).cpu(), keys.flip(0).cpu()
    cuts = []
    for level, share in parse_levels(levels):
        selected = selected_elements(elements, share)
        at = int(torch.searchsorted(from_top, selected))
        cuts.append(Cut(level, selected, int(falling[at]), selected - (int(from_top[at - 1]) if at else 0)))
    return cuts


def relative_bits(p: Any, s: Any, epsilon: float) -> Any:
    """Bits (int32) of r in float32; ``p`` and ``s`` are bits of bfloat16 (int32), shape (count,)."""
    before, after = ((side << 16).view(torch.float32) for side in (p, s))
    scale = before.abs() + torch.tensor(epsilon, dtype=torch.float32, device=before.device)
    bits: Any = ((after - before).abs() / scale).view(torch.int32)
    return bits
