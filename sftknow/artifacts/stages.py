"""Run directories: stages with keys, one process at a time.

A stage is complete when its manifest ``stages/<name>.json`` is there, and only then. Its key is the hash of everything
that it depends on. A stage that was cut off and is started again with the same key finds its partial work; with
another key it finds an empty folder.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sftknow.artifacts.files import digest, read_json, write_json
from sftknow.artifacts.keyed_folder import ready_folder
from sftknow.artifacts.lock import Lock
from sftknow.errors import RunError

LOCK, STAGES = ".lock", "stages"


class Stage:
    """One folder of a run and the key of what it depends on.

    The marks (``<name>.started.json``, ``<name>.json``) lie apart from the folder, which may itself be an artifact that
    is put in place whole, such as a checkpoint.

    Attributes:
        folder: where the stage writes.
        key: SHA-256 (hex) of its inputs.
    """

    def __init__(self, folder: Path, marks: Path, inputs: Mapping[str, Any]) -> None:
        self.folder = folder
        self.inputs = dict(inputs)
        self.key = digest(inputs)
        self._started = marks.with_name(f"{marks.name}.started.json")
        self._done = marks.with_name(f"{marks.name}.json")

    @property
    def complete(self) -> bool:
        """True where the stage was finished with this very key and its folder is still there."""
        return self.folder.is_dir() and self._done.is_file() and read_json(self._done).get("key") == self.key

    @property
    def outputs(self) -> Any:
        """What `finish` was given. Raises RunError where the stage is not complete."""
        if not self.complete:
            raise RunError(f"{self.folder} is not complete")
        return read_json(self._done)["outputs"]

    def start(self) -> None:
        """Ready the folder: keep partial work of the same key, clear away work of any other."""
        self._done.unlink(missing_ok=True)
        ready_folder(self.folder, self.key, mark=self._started, notes={"inputs": self.inputs, "started": time.time()})

    def finish(self, outputs: Any = None) -> None:
        """Mark the stage complete. The last thing a stage does."""
        started = read_json(self._started)["started"]
        write_json(
            self._done,
            {"key": self.key, "inputs": self.inputs, "outputs": outputs, "seconds": round(time.time() - started, 3)},
        )


class RunDirectory:
    """``runs/<name>/``: a lock and its stages.

    Use as a context manager. Raises RunError where another process works in the same directory, and where it holds
    something and was never a run directory.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        self.path = path
        busy = RunError(f"another process is working in {path}; wait for it or give another --out")
        self._lock = Lock(path / LOCK, busy, keep=True)

    def __enter__(self) -> RunDirectory:
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is a file; give another --out")
        there = sorted(entry.name for entry in self.path.iterdir()) if self.path.is_dir() else []
        if there and LOCK not in there and STAGES not in there:
            raise RunError(
                f"{self.path} is there already and is no run directory (it holds {', '.join(there[:3])}); give another "
                "--out"
            )
        self._lock.take()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def stage(self, name: str, inputs: Mapping[str, Any]) -> Stage:
        """The stage of that name (slashes make subfolders), keyed by ``inputs``."""
        return Stage(self.path / name, self.path / STAGES / name, inputs)
