"""Arenas whose truth is known: entries drawn with effects that are set, nothing trained.

Every seed has a luck that all its models share and every model one of its own; an interpolated model has its parents'
luck in proportion. Scores are counts of right answers, as real ones are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sftknow.artifacts.arena import Entry

SHARES = (0.2, 0.4, 0.6, 0.8)
"""Of the way from plain fine-tuning back to the base."""
LEARNING, FORGETTING = 0.5, 0.2
"""What plain fine-tuning learns and forgets."""
KNOWN = {1: 0.35, 2: 0.5, 3: 0.65, 4: 0.8}
"""What the base answers, by bucket."""
RIVALS = ("relative", "absolute", "random", "smallest", "per-tensor")


@dataclass(frozen=True, kw_only=True)
class Planted:
    """Where a method truly stands: how far along plain's line, and what it keeps beyond it."""

    place: float = 0.8
    """0 is the base, 1 plain fine-tuning, as far as learning goes."""
    keeps: float = 0.0
    learns: float = 0.0
    """Beyond its place."""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What is true of a made-up arena."""

    methods: Mapping[str, Planted] = field(default_factory=dict)
    """Strategies; ``after-NAME`` is a method after plain fine-tuning, at every level."""
    buckets: Sequence[int | None] = (None,)
    seeds: Sequence[int] = range(5)
    luck: float = 0.012
    """Standard deviation of a model's own luck, in what is kept; in what is learned twice that."""


def line(place: float) -> tuple[float, float]:
    """What plain's line truly learned and forgot at a place: learning comes first, forgetting last."""
    return LEARNING * (1 - (1 - place) ** 1.5), FORGETTING * place**1.7


def made_up(truth: Truth, seed: int) -> list[Entry]:
    """The entries of an arena.

    Args:
        truth: what is true of it.
        seed: of the draw.
    """
    random = np.random.default_rng(seed)
    entries = [_entry("base", "base", None, 0, 0, "nothing", None, True, 0.1, 0.0, 0.0)]
    for bucket in truth.buckets:
        for draw in truth.seeds:
            shared = random.normal(0, 0.02, size=2)
            own = random.normal(0, truth.luck, size=2)

            def model(
                strategy: str,
                after: str,
                level: str | None,
                place: float,
                planted: Planted,
                *,
                chosen: bool,
                luck: np.ndarray | None = None,
                distance: float | None = None,
                bucket: int | None = bucket,
                draw: int = draw,
                shared: np.ndarray = shared,
            ) -> Entry:
                luck = random.normal(0, truth.luck, size=2) if luck is None else luck
                learned, forgot = line(place)
                learned += planted.learns + place * shared[0] + 2 * luck[0]
                forgot += -planted.keeps + place * shared[1] + luck[1]
                cell = f"{strategy}-{bucket}-s{draw}"
                far = 10 * place if distance is None else distance
                return _entry(cell, strategy, bucket, 240, draw, after, level, chosen, 0.1 + learned, forgot, far)

            plain = Planted(place=1.0)
            entries.append(model("plain", "nothing", None, 1.0, plain, chosen=True, luck=own))
            for share in SHARES:
                noise = (1 - share) * own + random.normal(0, 0.1 * truth.luck, size=2)
                entries.append(
                    model("plain", "interpolation", f"{share:.0%}", 1 - share, plain, chosen=share == 0.4, luck=noise)
                )
            for name, planted in truth.methods.items():
                if not name.startswith("after-"):
                    entries.append(model(name, "nothing", None, planted.place, planted, chosen=True))
                    continue
                luck = random.normal(0, truth.luck, size=2)
                for share in SHARES:
                    place, noise = 1 - 0.7 * share, luck + random.normal(0, 0.3 * truth.luck, size=2)
                    far = 10 * (1 - 0.5 * share)
                    after, chosen = name.removeprefix("after-"), share == 0.4
                    entries.append(
                        model("plain", after, f"{share:.0%}", place, planted, chosen=chosen, luck=noise, distance=far)
                    )
    return entries


def _entry(
    cell: str,
    strategy: str,
    bucket: int | None,
    size: int,
    seed: int,
    after: str,
    level: str | None,
    chosen: bool,
    learned: float,
    forgot: float,
    distance: float,
) -> Entry:
    def count(rate: float, asked: int) -> tuple[int, int]:
        return round(min(1.0, max(0.0, rate)) * asked), asked

    scores = {"learned": count(learned, 480), "ood": count(0.3 - forgot, 200), "dev": count(0.4 - forgot, 200)}
    for known, rate in KNOWN.items():
        scores[f"kept/statements/{known}"] = count(rate - forgot, 300)
        scores[f"kept/questions/{known}"] = count(rate - 0.1 - forgot, 300)
    scores["new/questions/0"], scores["new/statements/0"] = count(0.05, 300), count(0.04, 300)
    return Entry(
        cell=cell,
        strategy=strategy,
        options={},
        bucket=bucket,
        size=size,
        seed=seed,
        after=after,
        level=level,
        chosen=chosen,
        scores=scores,
        kl=None if strategy == "base" else 0.05 * distance,
        changed=0.0 if strategy == "base" else 0.9,
        distance=distance,
        seconds=0.0 if strategy == "base" else 60.0,
        peak_bytes=0 if strategy == "base" else 10**9,
        relative_seconds=None if strategy == "base" else 1.0 if strategy == "plain" else 1.4,
        relative_peak=None if strategy == "base" else 1.0 if strategy == "plain" else 1.2,
    )


MANY = {f"m{number}": Planted(place=0.35 + 0.065 * number) for number in range(11)} | {
    f"after-{name}": Planted() for name in RIVALS
}
"""Eleven strategies and five methods afterwards, none of which keeps more than plain's line."""
