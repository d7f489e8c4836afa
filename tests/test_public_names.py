"""The public surface: sorted, importable, typed, and enough for the whole loop."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import sftknow
from sftknow.resources import lab_folder
from tests.public_loop import loop

ROOT = Path(__file__).resolve().parents[1]


def test_names_are_sorted_and_importable() -> None:
    assert list(sftknow.__all__) == sorted(sftknow.__all__)
    for name in sftknow.__all__:
        assert getattr(sftknow, name) is not None
    with pytest.raises(AttributeError):
        sftknow.no_such_name  # type: ignore[attr-defined]  # noqa: B018


def test_dir_shows_the_public_names_and_no_others() -> None:
    assert [name for name in dir(sftknow) if not name.startswith("__")] == sorted(sftknow.__all__)


def test_run_is_a_package_that_can_be_called() -> None:
    import sftknow.run.python

    assert inspect.signature(sftknow.run) == inspect.signature(sftknow.run.python.run)  # type: ignore[attr-defined]
    with pytest.raises(sftknow.RecipeError, match="no recipe is called nonsense"):
        sftknow.run("nonsense")


def test_every_error_is_public() -> None:
    from sftknow import errors

    named = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert named <= set(sftknow.__all__)


def test_type_checkers_and_python_import_from_the_same_places() -> None:
    tree = ast.parse(Path(sftknow.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.asname: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }
    assert sorted(filter(None, typed)) == list(sftknow.__all__)
    for name, module in typed.items():
        assert name is not None
        public = getattr(sftknow, name)
        assert getattr(sys.modules[str(module)], name) is getattr(public, "__wrapped__", public)


def mypy(tmp_path: Path, program: str) -> str:
    """What mypy prints of a program that uses the package."""
    file = tmp_path / "program.py"
    file.write_text(program, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml")]
    done = subprocess.run([*command, str(file)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def test_every_name_has_a_type(tmp_path: Path) -> None:
    names = list(sftknow.__all__)
    said = mypy(tmp_path, "import sftknow\n" + "".join(f"reveal_type(sftknow.{name})\n" for name in names))
    revealed = [line.partition("Revealed type is ")[2] for line in said.splitlines() if "Revealed type is " in line]
    assert len(revealed) == len(names), said
    untyped = {"Any", "builtins.object"}
    assert [name for name, what in zip(names, revealed, strict=True) if what.strip('"') in untyped] == []
    assert "error:" not in said


def test_a_wrong_call_does_not_pass(tmp_path: Path) -> None:
    said = mypy(tmp_path, 'import sftknow\n\nsftknow.analyse("nonsense")\nsftknow.load_fakts\n')
    assert "program.py:3: error: Missing positional argument" in said
    assert "program.py:4: error: Module has no attribute" in said


def test_the_whole_loop_by_public_names(tmp_path: Path) -> None:
    accuracy = loop(lab_folder() / "model", "lab", tmp_path)
    assert set(accuracy) == {"5%", "20%"}
    assert all(0 <= value <= 1 for value in accuracy.values())
    assert (tmp_path / "restored" / "5pct" / "model.safetensors").is_file()
    assert [cut.level for cut in sftknow.read_plan(tmp_path / "plan.json").cuts] == ["5%", "20%"]


def test_the_loop_is_typed(tmp_path: Path) -> None:
    said = mypy(tmp_path, (ROOT / "tests" / "public_loop.py").read_text(encoding="utf-8"))
    assert "Success" in said, said
