"""The arena: what each trained model learned and kept, and what every method that is applied afterwards makes of it.

One file a trained model, ``arena/<cell>.json``, and one for the base; docs/strategies.md says how they are made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sftknow.artifacts.files import read_json, write_json
from sftknow.errors import RunError
from sftknow.records import to_json

ARENA = "arena"
"""Folder in a run directory."""
BASE = "base"
NOTHING = "nothing"
"""`Entry.after` of a model as it was trained."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model: as it was trained, or after a method was applied to it."""

    cell: str
    """Name of the trained model; ``base`` for the base, which has one entry for each draw of training facts: bucket,
    size and seed."""
    strategy: str
    """``base``, ``plain``, ``lora``, or the training strategy's name."""
    options: Mapping[str, Any]
    """Of the strategy."""
    bucket: int | None
    """Of the training facts; None where they are drawn over all buckets."""
    size: int
    """Training facts."""
    seed: int
    after: str
    """``nothing``, or the method that was applied to the trained model."""
    level: str | None
    """Of the method; None for ``nothing``. A share such as ``20%``, or ``as 20%``: so strong that it leaves the L2
    distance from the base that ``relative`` leaves at that share."""
    chosen: bool
    """Whether this level was chosen on dev for its method; always True for ``nothing``."""
    scores: Mapping[str, tuple[int, int]]
    """(right, asked) of ``learned``, ``kept/questions/1`` to ``4``, ``kept/statements/1`` to ``4``,
    ``new/questions/0``, ``new/statements/0``, ``ood`` and ``dev``, as far as each was asked."""
    kl: float | None
    """Mean KL(base ‖ model) over the divergence's positions, in nats a token; None where there was none to measure."""
    changed: float
    """Share of the parameters whose bits differ from the base's, between 0 and 1."""
    distance: float
    """L2 distance of all weights from the base."""
    seconds: float
    """Of training, and on top of it those that the method took; 0 for the base. Of the processor, so that other work
    beside it does not count; on a GPU of the clock."""
    peak_bytes: int
    """Most memory that the training took on top of the loaded base; 0 for the base, and where it is not known."""
    relative_seconds: float | None
    """`seconds` ÷ those of plain fine-tuning of the same bucket, size and seed in this run; None without one."""
    relative_peak: float | None
    """The same for `peak_bytes`."""


_NAMES = frozenset(field.name for field in fields(Entry))


def arena_file(run: Path, cell: str) -> Path:
    """Where the entries of a cell, or of the ``base``, lie in a run directory."""
    return run / ARENA / f"{cell}.json"


def write_entries(file: Path, entries: Sequence[Entry]) -> None:
    """Write the entries of one cell, whole or not at all.

    Raises:
        ValueError: a score has more right than asked, or a number is NaN.
    """
    for entry in entries:
        _check(entry)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {"entries": to_json(list(entries))})


def read_entries(file: Path) -> tuple[Entry, ...]:
    """Read what `write_entries` wrote.

    Raises:
        RunError: the file is missing, damaged, or not one of these.
    """
    content = read_json(file)
    try:
        return tuple(_entry(row) for row in content["entries"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{file} holds no entries of an arena ({error}); delete it and start the run again") from None


def read_arena(run: Path) -> dict[str, tuple[Entry, ...]]:
    """All entries of a run directory by cell, the base first; empty where it has no arena.

    Raises:
        RunError: a file is damaged.
    """
    found = {file.stem: read_entries(file) for file in sorted((run / ARENA).glob("*.json"))}
    return {name: found[name] for name in sorted(found, key=lambda name: (name != BASE, name))}


def _entry(row: Mapping[str, Any]) -> Entry:
    if row.keys() != _NAMES:
        raise KeyError(", ".join(sorted(row.keys() ^ _NAMES)))
    scores = {}
    for name, (right, asked) in row["scores"].items():
        scores[name] = (int(right), int(asked))
    entry = Entry(**{**row, "scores": scores})
    _check(entry)
    return entry


def _check(entry: Entry) -> None:
    for name, (right, asked) in entry.scores.items():
        if not 0 <= right <= asked:
            raise ValueError(f"{entry.cell}: {right} right of {asked} asked in {name}")
