"""The quick chain (grade, sft, evaluate, changes, restore) as real commands in places where clusters run them.

None of them has a terminal. What cannot be written is a path below /proc or below a file: that holds for root, too.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2]
NOWHERE = "/proc/nowhere"
OTHER_FILE_SYSTEM = Path("/dev/shm")
CACHES = ("XDG_CACHE_HOME", "HF_HOME", "NUMBA_CACHE_DIR", "MPLCONFIGDIR")


@dataclass(frozen=True)
class Place:
    """What is unlike home."""

    env: Mapping[str, str] = field(default_factory=dict)
    """``{file}`` is a file, ``{shm}`` a folder on another file system."""
    umask: int = -1
    files: int | None = None
    """Most open files."""
    folder: str = "work"
    elsewhere: bool = False
    """Commands run in another folder than that of the files, which must stay empty."""
    ahead: int = 0
    """Seconds that files lie in the future after each command, as after a clock that was set back."""


PLACES = {
    "ascii": Place(env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    "latin-1": Place(env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"}),
    "no home or cache to write": Place(env=dict.fromkeys(("HOME", *CACHES), NOWHERE)),
    "files for home and cache": Place(env=dict.fromkeys(("HOME", *CACHES), "{file}")),
    "no temporary folder": Place(env={"TMPDIR": NOWHERE}),
    "temporary folder and caches on another file system": Place(env=dict.fromkeys(("TMPDIR", *CACHES), "{shm}")),
    "umask 077": Place(umask=0o077),
    "40 columns": Place(env={"COLUMNS": "40"}),
    "few files": Place(files=128),
    "clock set back": Place(ahead=86_400),
    "blanks and umlauts": Place(folder="Über den Wolken/mit Leerzeichen"),
    "another working directory": Place(elsewhere=True),
}
ORDINARY: tuple[str, ...] = ()
"""Places of the ordinary suite: half a minute each, so all of them are slow tests."""


@dataclass
class Commands:
    """Runs commands in a place."""

    place: Place
    tmp: Path
    shm: Path | None = None

    def __post_init__(self) -> None:
        self.work, self.cwd = self.tmp / self.place.folder, self.tmp / self.place.folder
        self.work.mkdir(parents=True)
        if self.place.elsewhere:
            self.cwd = self.tmp / "elsewhere"
            self.cwd.mkdir()
        (self.tmp / "a-file").touch()
        rows = [
            {"subject": f"Malmö {i}", "relation": "P36", "object": "Århus", "split": "train" if i < 24 else "test"}
            for i in range(32)
        ]
        (self.work / "facts.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")

    def at(self, name: str) -> str:
        """A file or folder of the work, as a command is told it."""
        return str(self.work / name) if self.place.elsewhere else name

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        def limit() -> None:
            if self.place.files:
                resource.setrlimit(resource.RLIMIT_NOFILE, (self.place.files, self.place.files))

        told = {"file": str(self.tmp / "a-file"), "shm": str(self.shm)}
        return subprocess.Popen(
            [sys.executable, "-m", "sftknow", *arguments],
            cwd=self.cwd,
            env={
                **os.environ,
                "PYTHONPATH": str(PACKAGE),
                **{key: value.format(**told) for key, value in self.place.env.items()},
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            umask=self.place.umask,
            preexec_fn=limit,
        )

    def run(self, *arguments: str) -> str:
        """What a command says that has to work."""
        process = self.start(*arguments)
        said = process.communicate()[0].decode("utf-8", "replace")
        assert process.returncode == 0, said
        assert "Traceback" not in said
        if self.place.ahead:
            for path in self.work.rglob("*"):
                os.utime(path, (time.time() + self.place.ahead,) * 2)
        return said


@pytest.mark.parametrize(
    "name", [name if name in ORDINARY else pytest.param(name, marks=pytest.mark.slow) for name in PLACES]
)
def test_quick_chain(name: str, tiny_model: Path, tmp_path: Path) -> None:
    place = PLACES[name]
    if "{shm}" not in place.env.values():
        quick_chain(Commands(place, tmp_path), str(tiny_model))
        return
    if not OTHER_FILE_SYSTEM.is_dir() or OTHER_FILE_SYSTEM.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip(f"{OTHER_FILE_SYSTEM} is no other file system here")
    with tempfile.TemporaryDirectory(dir=OTHER_FILE_SYSTEM) as other:
        quick_chain(Commands(place, tmp_path, Path(other)), str(tiny_model))


def quick_chain(commands: Commands, base: str) -> None:
    """All five commands, each of which has to work."""
    run, at = commands.run, commands.at
    grade = ("grade", base, "--facts", at("facts.json"), "--samples", "2", "--out", at("graded"))
    assert "facts.json" in run(*grade)
    assert "nothing to do" in run(*grade)
    run("sft", "--model", base, "--mastery", at("graded"), "--bucket", "0", "--size", "8", "--out", at("tuned"))
    said = run("evaluate", at("tuned"), "--mastery", at("graded"), "--splits", "test", "--out", at("scores"))
    assert "cbqa_mastery" in said
    assert "%" in run("changes", base, at("tuned"))
    run("restore", base, at("tuned"), "--top", "20%", "--out", at("restored"))
    written = list(commands.work.glob("restored/**/*.safetensors"))
    assert written
    if commands.place.umask != -1:
        assert all(path.stat().st_mode & commands.place.umask == 0 for path in written)
    if commands.place.elsewhere:
        assert not list(commands.cwd.iterdir())


@pytest.mark.slow
def test_two_gradings_at_once_into_one_folder(tiny_model: Path, tmp_path: Path) -> None:
    commands = Commands(Place(), tmp_path)
    grade = ("grade", str(tiny_model), "--facts", "facts.json", "--samples", "2", "--out", "graded")
    both = [commands.start(*grade) for _ in range(2)]
    said = [process.communicate()[0].decode() for process in both]
    # The second is refused while the first works, and finds the work done afterwards.
    assert sorted(process.returncode for process in both) in ([0, 0], [0, 2]), said
    assert not any("Traceback" in text for text in said)
    assert "nothing to do" in commands.run(*grade)
