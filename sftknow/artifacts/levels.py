"""Restoration levels: shares of a region as people write them, as folders are called, and the rule that chooses one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

from sftknow.errors import CheckpointError

UNTOUCHED = "0%"
"""The fine-tuned model itself, which is always among the candidates when a level is chosen."""

_LEVEL = re.compile(r"\s*(\d{1,30}(?:\.\d{1,30})?)(?:\s*/\s*(\d{1,30}))?\s*(%?)\s*", re.ASCII)


def parse_level(text: str) -> Fraction:
    """A share of the region as an exact rational between 0 and 1: ``20%``, ``0.5%``, ``1/8``, ``0.2``.

    Raises:
        CheckpointError: anything else. A bare ``1`` or ``20`` is refused: it may mean a share or per cent.
    """
    match = _LEVEL.fullmatch(text)
    number, denominator, percent = match.groups() if match else ("1", None, "")
    ambiguous = not (denominator or percent or "." in number)
    if match is None or ambiguous or int(denominator or 1) == 0:
        raise CheckpointError(f"cannot read the level {text!r}; write a share of the region like 20%, 0.5% or 1/8")
    share = Fraction(number) / int(denominator or 1) / (100 if percent else 1)
    if share > 1:
        raise CheckpointError(f"the level {text} is more than the whole region; write a share like 20%, 0.5% or 1/8")
    return share


def parse_levels(levels: Sequence[str]) -> list[tuple[str, Fraction]]:
    """Every level with its share, as asked for. Raises CheckpointError for none, unreadable or repeated ones."""
    if isinstance(levels, str):
        raise TypeError("levels is a sequence of strings")
    if not levels:
        raise CheckpointError("no level was asked for; give at least one, such as 20%")
    repeated = [level for i, level in enumerate(levels) if level in levels[:i]]
    if repeated:
        raise CheckpointError(f"the level {repeated[0]} was asked for twice")
    return [(level, parse_level(level)) for level in levels]


def level_name(level: str) -> str:
    """A restoration level as part of a path: ``5%`` → ``5pct``, ``1/8`` → ``1of8``."""
    return level.replace("%", "pct").replace("/", "of")


def level_of_folder(name: str) -> str:
    """``5pct`` → ``5%``, ``0.5pct`` → ``0.5%``, ``1of8`` → ``1/8``; anything else stays."""
    if name.endswith("pct"):
        return f"{name[:-3]}%"
    return re.sub(r"^(\d+)(?:of|-|_)(\d+)$", r"\1/\2", name)


def level_share(level: str) -> Fraction:
    """The share that a level stands for, to sort by; 2 (after everything) for what is no level."""
    try:
        return parse_level(level)
    except CheckpointError:
        return Fraction(2)


def by_share(levels: Iterable[str]) -> list[str]:
    """Levels from the smallest share to the largest."""
    return sorted(levels, key=level_share)


def best_level(accuracy: Mapping[str, float]) -> str:
    """The level with the highest accuracy; among equals the smallest restoration, which is the weaker intervention.

    Args:
        accuracy: of each level, ``0%`` being the fine-tuned model itself.
    """
    return min(by_share(accuracy), key=lambda level: -accuracy[level])


CONTROLS = {
    "random-share": "at random, the same share",
    "random-distance": "at random, the same distance from the base",
    "blend-share": "all weights moved by the same share towards the base",
    "blend-distance": "all weights moved to the same distance from the base",
}
"""What restoring the most changed share is compared with, in words: by the first part of `control_name`."""

_CONTROL = re.compile(rf"({'|'.join(CONTROLS)})-(.+?)-(\d+)")


def control_name(kind: str, level: str, draw: int = 0) -> str:
    """What a control of a level is called, such as ``random-share-20pct-0``; `draw` counts random ones."""
    return f"{kind}-{level_name(level)}-{draw}"


def read_control(name: str) -> tuple[str, str] | None:
    """The inverse of `control_name`: kind and level; None for the name of anything else."""
    match = _CONTROL.fullmatch(name)
    return (match[1], level_of_folder(match[2])) if match else None
