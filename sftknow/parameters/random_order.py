"""The cuts of the strategy ``random``, whose order is that of hashed global indices and needs no checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sftknow.machine import available_processors
from sftknow.parameters.random_kernels import count_random, find_random
from sftknow.parameters.selection import BINS, cut_bin, make_cut, mixed_seed, selected_elements
from sftknow.records import LevelCut

T = TypeVar("T")

_PART = 1 << 24  # indices that one thread takes at a time


def random_cuts(elements: int, levels: Sequence[tuple[str, Fraction]], seed: int) -> list[LevelCut]:
    """Count the keys by halves, in two runs over the indices; a third one finds where ties end."""
    coarse = _count(elements, seed, [])
    wanted = {level: selected_elements(elements, share) for level, share in levels}
    places = {level: cut_bin(coarse, selected) for level, selected in wanted.items() if selected}
    bins = sorted({place[0] for place in places.values()})
    fine = _count(elements, seed, bins).reshape(-1, BINS) if bins else np.zeros((0, BINS), dtype=np.int64)
    cuts = []
    for level, selected in wanted.items():
        if not selected:
            cuts.append(make_cut(level, 0, None, 0, "random"))
            continue
        coarse_bin, needed = places[level]
        low, ties = cut_bin(fine[bins.index(coarse_bin)], needed)
        cuts.append(make_cut(level, selected, coarse_bin << 16 | low, ties, "random"))
    return _with_tie_ends(elements, seed, cuts)


def _in_parts(elements: int, work: Callable[[int, int], T]) -> list[T]:
    """``work(first, count)`` over all indices, by all threads; results in order of the indices."""
    parts = [(first, min(_PART, elements - first)) for first in range(0, elements, _PART)]
    with ThreadPoolExecutor(available_processors()) as pool:
        return list(pool.map(lambda part: work(*part), parts))


def _count(elements: int, seed: int, bins: Sequence[int]) -> NDArray[np.int64]:
    """Keys by upper half, shape (65,536,), or those in ``bins`` by lower half, shape (bins · 65,536,)."""
    zone_of = np.zeros(BINS, dtype=np.uint16)
    zone_of[list(bins)] = 2 * np.arange(len(bins)) + 1
    start = mixed_seed(seed)

    def count(first: int, many: int) -> NDArray[np.int64]:
        totals: NDArray[np.int64] = np.zeros(len(bins) * BINS or BINS, dtype=np.int64)
        count_random(start, first, many, bool(bins), zone_of, totals)
        return totals

    total: NDArray[np.int64] = np.zeros(len(bins) * BINS or BINS, dtype=np.int64)
    for part in _in_parts(elements, count):
        total += part
    return total


def _with_tie_ends(elements: int, seed: int, cuts: Sequence[LevelCut]) -> list[LevelCut]:
    keys = sorted({cut.threshold_bits for cut in cuts if cut.selected})
    start = mixed_seed(seed)

    def find(first: int, many: int) -> NDArray[np.int64]:
        room = 1024
        while True:
            found: NDArray[np.int64] = np.empty((room, 2), dtype=np.int64)
            some = find_random(start, first, many, np.array(keys, dtype=np.uint32), found)
            if some <= room:
                return found[:some]
            room = some

    tied = np.concatenate(_in_parts(elements, find)) if keys else np.empty((0, 2), dtype=np.int64)
    ends = []
    for cut in cuts:
        if not cut.selected:
            ends.append(replace(cut, tie_end=0))
            continue
        places = tied[tied[:, 1] == keys.index(cut.threshold_bits), 0]
        ends.append(replace(cut, tie_end=int(places[cut.ties - 1]) + 1))
    return ends
