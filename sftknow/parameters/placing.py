"""A loaded model that is moved from candidate to candidate, and how far each of them is from the base.

One pass over the pair moves the model and measures it. Nothing of the weights is kept, so that memory is bounded
whatever the model's size.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sftknow.checkpoints.reader import widen
from sftknow.parameters.between import stream_
from sftknow.parameters.candidates import Candidate, Candidates, Maker
from sftknow.parameters.pairs import TensorPair
from sftknow.parameters.passes import Bits, Chunk, for_each_chunk

_TRIED = 19
"""Strengths that are ranked together in the search for a distance."""
_ROUNDS, _NEAR = 5, 1e-3
"""How often it narrows at most, and the share of a distance that is near enough."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a model's weights are, seen from the base."""

    changed: float
    """Share of all parameters whose bits differ from the base's, between 0 and 1."""
    distance: float
    """L2 distance of all weights, from values as they are stored, in float64."""


class _Tape:
    """Adds up what `Place` says, from any thread; the same whatever their order."""

    def __init__(self) -> None:
        self._parts: dict[tuple[int, int], tuple[int, float]] = {}

    def add(self, tensor: TensorPair, chunk: Chunk, base: NDArray[Any], made: NDArray[Any]) -> None:
        there, here = widen(base, tensor.base.dtype), widen(np.ascontiguousarray(made), tensor.tuned.dtype)
        differ = int(np.count_nonzero(there.view(np.uint32) != here.view(np.uint32)))
        squares = float(np.square(here.astype(np.float64) - there).sum())
        self._parts[chunk.position, chunk.piece] = differ, squares

    def place(self, elements: int) -> Place:
        parts = self._parts.values()
        return Place(
            changed=sum(differ for differ, _ in parts) / elements,
            distance=math.sqrt(math.fsum(squares for _, squares in parts)),
        )


def place_(model: Any, candidates: Candidates, maker: Maker | None) -> Place:
    """Give a loaded model a candidate's weights, or with None the fine-tuned ones, and measure them.

    Args:
        model: as for `sftknow.parameters.candidates.move_`, whose bits it gets; None measures and moves nothing.
        candidates: of the pair that the model was made from.
        maker: of the candidate.

    Raises:
        CheckpointError: as `move_`.
    """
    pair, tape = candidates.pair, _Tape()

    def look(chunk: Chunk, bits: Bits) -> None:
        values(pair.tensors[chunk.position], chunk, bits)

    def values(tensor: TensorPair, chunk: Chunk, bits: Bits) -> NDArray[Any]:
        made = bits[1] if maker is None else maker.bits(tensor, chunk.first, *bits)
        tape.add(tensor, chunk, bits[0], made)
        return made

    if model is not None:
        stream_(model, pair, values)
    else:
        for_each_chunk(pair, ["base", "tuned"], look, "measuring distances", candidates.resources)
    return tape.place(pair.elements)


def as_far(candidates: Candidates, method: str, distance: float) -> tuple[Candidate, Maker]:
    """The strength of a method that leaves a given distance from the base, to a thousandth; what makes it.

    Args:
        candidates: of the pair.
        method: in `METHODS`, one that takes shares; a larger one leaves a smaller distance.
        distance: L2, of all weights.

    Raises:
        CheckpointError: as `Candidates.maker`.
    """
    low, high = 0.0, 1.0
    for _ in range(_ROUNDS):
        shares = np.linspace(low, high, _TRIED + 2)[1:-1].tolist()
        tried = [Candidate(method, f"{100 * share:.6f}%") for share in shares]
        narrower = candidates.others(tried)  # all of them are ranked in one pass
        found: dict[int, float] = {}

        def left(place: int, narrower: Any = narrower, tried: Any = tried, found: dict[int, float] = found) -> float:
            if place not in found:
                found[place] = place_(None, narrower, narrower.maker(tried[place])).distance
            return found[place]

        at = bisect.bisect_left(range(_TRIED), -distance, key=lambda place: -left(place))
        low, high = [low, *shares, high][at : at + 2]
        near = min(range(max(0, at - 1), min(_TRIED, at + 1)), key=lambda place: abs(left(place) - distance))
        if abs(left(near) - distance) < _NEAR * distance:
            break
    return tried[near], narrower.maker(tried[near])
