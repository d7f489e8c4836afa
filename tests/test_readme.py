"""The README's commands are the ones that work: the CI script uses them, and the parser takes every one of them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from sftknow.cli.main import build_parser
from sftknow.recipes.load import shipped_recipes

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CODE = "\n".join(re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL) + re.findall(r"`([^`\n]+)`", README))
COMMANDS = re.findall(r"(?:^|&& )(sftknow [a-z][^\n&]*?)\s*$", CODE, flags=re.MULTILINE)


def test_ci_installs_and_tests_as_the_readme_says() -> None:
    install = 'pip install -c constraints.txt ".[dev]"'
    assert f"{install} && pytest\n" in README
    script = (ROOT / ".ci" / "run").read_text()
    assert install.replace("pip install", "pip install -q") in script
    assert re.search(r"^ *pytest$", script, flags=re.MULTILINE)


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_every_command_of_the_readme_is_understood(command: str) -> None:
    words = shlex.split(command.replace("…", ""))[1:]
    build_parser().parse_args(words)


def test_commands_were_found() -> None:
    assert {command.split()[1] for command in COMMANDS} >= {"run", "grade", "sft", "evaluate", "restore", "publish"}


def test_every_shipped_recipe_is_described() -> None:
    for name in shipped_recipes():
        assert f"| `{name}` |" in README


def test_pictures_are_there() -> None:
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / picture).is_file()
