"""The house rules that a reader relies on: who imports whom, and which big dependency lives where."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "sftknow"
SHARED = ("artifacts", "checkpoints", "models")
"""What all rooms may use; each of them uses only those before it."""
ROOMS = {
    "facts", "grading", "training", "evaluation", "divergence", "parameters", "checking", "selecting", "lab",
    "report", "publishing", "leaderboard",
}  # fmt: skip
HOMES = {
    "trl": {"training"},
    "accelerate": {"training"},
    "peft": {"training"},
    "lm_eval": {"evaluation"},
    "inspect_ai": {"evaluation"},
    "matplotlib": {"report"},
    "faker": {"lab"},
    "numba": {"parameters"},
    "rouge_score": {"evaluation"},
    "vllm": {"grading"},
    "ray": {"cluster"},
    "zstandard": {"artifacts", "checkpoints"},
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Dotted names of everything a module imports, at the top or inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rooms_imported(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("sftknow.") and name.count(".")}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_rooms_do_not_import_each_other(path: Path) -> None:
    room = room_of(path)
    imported = rooms_imported(path)
    if room in ROOMS:
        assert imported & (ROOMS | {"run", "cli", "recipes"}) <= {room}
    elif room in SHARED:
        later = set(SHARED[SHARED.index(room) + 1 :])
        assert not imported & (later | ROOMS | {"run", "cli", "recipes"})
    elif room == "run":
        assert "cli" not in imported
    elif room == "recipes":
        assert not imported & {"run", "cli"}
        of_rooms = {
            name.split(".")[2] for name in imports(path) if name.split(".")[1:2] and name.split(".")[1] in ROOMS
        }
        assert of_rooms <= {"options", "recipe"}, "sections are the rooms' option classes"
    elif room not in ("cli", "__main__", "__init__"):
        assert not imported & (ROOMS | {"run", "cli"}), "leaves import no room"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_big_dependencies_have_one_home(path: Path) -> None:
    tops = {name.split(".")[0] for name in imports(path)}
    for dependency, homes in HOMES.items():
        if dependency in tops:
            assert room_of(path) in homes


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_god_files(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 420


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["restore", "--help"], ["sft", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom sftknow.cli.main import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'lm_eval', 'trl', 'datasets', 'numpy', 'pyarrow', 'matplotlib', 'yaml', "
        "'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
