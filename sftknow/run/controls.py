"""Controls: what a restored model is compared with, so that a gain can be told from that of any step back to the base.

At the level chosen for a model, as much as the level restores is set back at random, and all weights are moved towards
the base as a whole; each by the same share, and so far that the same distance from the base is left. The models are
scored on the in-domain test split, as those with whole layers set back, and are not kept.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

from sftknow.artifacts.files import digest
from sftknow.artifacts.levels import CONTROLS, control_name, parse_level
from sftknow.parameters.between import Distances, blend_, distances, set_back_
from sftknow.parameters.options import PairOptions
from sftknow.parameters.restore import find_cut
from sftknow.records import RestorePlan
from sftknow.run.checkpoint_pairs import LocalPair

Move = Callable[[Any], None]
"""Gives a loaded fine-tuned model other weights, in place."""


def control_names(level: str, draws: int) -> Iterator[tuple[str, str, int]]:
    """(name, kind, draw) of the controls of a level: each random one in so many draws."""
    for kind in CONTROLS:
        for draw in range(draws if kind.startswith("random") else 1):
            yield control_name(kind, level, draw), kind, draw


class Controls:
    """How the controls of one level are made of a checkpoint pair.

    Args:
        pair: gives the pair with the whole weights of both, when it is needed.
        plan: of the restoration that they are controls of.
        level: of the plan.
        order: how the pair's parameters are put in order, for the region.
    """

    def __init__(self, pair: Callable[[], LocalPair], plan: RestorePlan, level: str, order: PairOptions) -> None:
        self._pair, self._plan, self._level, self._order = cache(pair), plan, level, order
        self._distances: Distances | None = None

    def move(self, kind: str, draw: int) -> Move:
        """What makes a control of a loaded fine-tuned model.

        Raises:
            CheckpointError: the checkpoints cannot be compared as a whole.
        """
        pair = self._pair()
        base, tuned = pair.base_folder, pair.tuned
        if kind.endswith("distance") and self._distances is None:
            self._distances = distances(base, tuned, self._plan, self._level, self._order.resources)
        found = self._distances if kind.endswith("distance") else None
        if kind.startswith("blend"):
            weight = float(parse_level(self._level)) if found is None else found.weight
            return partial(blend_, base=base, tuned=tuned, weight=weight)
        level = self._level if found is None else found.level
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that nothing changed is a result, too
            order = replace(self._order, strategy="random", seed=self._plan.seed + draw)
            plan = pair.analyse((level,), order).plan
        return partial(set_back_, base=base, tuned=tuned, plan=plan, level=level)

    def weights(self, kind: str, draw: int, *, tuned: str) -> str:
        """What identifies the weights of a control, by those of the whole fine-tuned model."""
        cut = find_cut(self._plan, self._level)
        return digest({"plan": replace(self._plan, cuts=()), "cut": cut, "tuned": tuned, "kind": kind, "draw": draw})
