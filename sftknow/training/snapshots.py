"""Snapshots of a training on disk, from which a start after a kill goes on."""

from __future__ import annotations

from pathlib import Path

from sftknow.artifacts.keyed_folder import MARK, clear, has_key, ready_folder

_LAST_WRITTEN = "trainer_state.json"
"""Written at the end of a snapshot: one without it was cut off."""


class Snapshots:
    """The trainer's own checkpoints of one training: weights, optimizer, schedule, random state, loss curve.

    Args:
        folder: where they lie. Those of another training there are cleared away.
        every: steps between two; None for none.
        key: identifies the training.
    """

    def __init__(self, folder: Path, *, every: int | None, key: str) -> None:
        self.folder = folder
        self.every = every
        if every:
            ready_folder(folder, key)
        elif not has_key(folder / MARK, key):
            clear(folder)

    def latest(self) -> Path | None:
        """The last whole snapshot, or None."""
        if not self.every:
            return None
        found = [p for p in self.folder.glob("checkpoint-*") if (p / _LAST_WRITTEN).is_file()]
        return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)

    def clear(self) -> None:
        """Take them away: the training is done and its checkpoint in place."""
        clear(self.folder)
