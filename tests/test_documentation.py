"""README and docs say what is so: commands that the parsers take, links that lead somewhere, Python that runs."""

from __future__ import annotations

import argparse
import importlib.util
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import sftknow
from sftknow.cli.effects import given_options
from sftknow.cli.main import build_parser
from sftknow.errors import RecipeError
from sftknow.recipes.load import load_recipe, shipped_recipes
from sftknow.resources import task_folder
from sftknow.run.cells import grid_cells
from tests.documented import DOCS, PAGES, ROOT, Code, anchors, blocks, command_lines, in_sentences, links, prose

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted({code.name: code for page in PAGES for code in command_lines(page)}.values(), key=lambda c: c.name)
ADDED = {"smallest-base": "top", "pull-back": "dft"}
"""What a page adds in the example before its command, by something of the same kind."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_ci_installs_and_tests_as_the_readme_says() -> None:
    install = 'pip install -c constraints.txt ".[dev]"'
    assert f"{install} && pytest\n" in README
    script = (ROOT / ".ci" / "run").read_text()
    assert install.replace("pip install", "pip install -q") in script
    assert re.search(r"^ *pytest$", script, flags=re.MULTILINE)
    assert re.search(r"mkdocs build --strict", script)


def of(*programs: str) -> list[Code]:
    return [code for code in COMMANDS if code.text.startswith(programs)]


def names(codes: list[Code]) -> list[str]:
    return [code.name for code in codes]


@pytest.fixture(scope="module")
def parser() -> argparse.ArgumentParser:
    """The real one; it parses many command lines."""
    return build_parser()


@pytest.mark.parametrize("code", of("sftknow "), ids=names(of("sftknow ")))
def test_every_command_is_understood(code: Code, parser: argparse.ArgumentParser) -> None:
    """By the parser and the rules on options without effect; one that a sentence only names, by its options' names."""
    words = shlex.split(re.split(r" (?:#|>|\|) ", code.text)[0])[1:]
    words = [ADDED.get(word, word) for word in words if word != "--help"]
    try:
        rules = getattr(parser.parse_args(words), "rules", ())
    except RecipeError as error:
        named = code.language is None and re.search(r"are required|expected .* argument|'NAME'", str(error))
        if not named:
            raise
        commands = next(action.choices for action in parser._actions if action.choices)
        known = commands[words[0]]._option_string_actions  # type: ignore[index]
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= set(known)
        return
    given = given_options(build_parser(), words) if rules else {}
    for rule in rules:
        rule.check(given)


def test_commands_were_found() -> None:
    found = {code.text.split()[1] for code in of("sftknow ")}
    assert found >= {
        "check",
        "run",
        "grade",
        "sft",
        "evaluate",
        "compare",
        "divergence",
        "changes",
        "restore",
        "publish",
    }
    assert len(of("sftknow ")) > 60


@pytest.mark.parametrize("code", of("lm_eval "), ids=names(of("lm_eval ")))
def test_lm_eval_understands_its_commands(code: Code, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval._cli.harness import HarnessCLI

    words = [word for word in shlex.split(code.text) if word != "…"]
    if words[-1] == "--include_path":
        words.append("FOLDER")
    monkeypatch.setattr(sys, "argv", words)
    asked = HarnessCLI().parse_args()
    known = set(
        re.findall(r"^(?:task|group): *(\S+)", "\n".join(p.read_text() for p in task_folder().rglob("*.yaml")), re.M)
    )
    assert set(asked.tasks or ["cbqa_mastery"]) <= known


@pytest.mark.parametrize("code", of("python -m tests."), ids=names(of("python -m tests.")))
def test_every_program_of_the_tests_is_there(code: Code) -> None:
    words = shlex.split(code.text)
    module = words[2].removesuffix("…").rstrip(".")
    found = importlib.util.find_spec(module)
    assert found
    assert found.origin
    text = Path(found.origin).read_text(encoding="utf-8")
    assert all(f'"{word}"' in text for word in words[3:] if word.startswith("--"))


@pytest.mark.parametrize("code", of("pytest", "pip install "), ids=names(of("pytest", "pip install ")))
def test_markers_and_extras_are_there(code: Code) -> None:
    words = shlex.split(code.text)
    markers = {marker.partition(":")[0] for marker in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
    if words[0] == "pytest":
        assert not ({words[i + 1] for i, word in enumerate(words) if word == "-m"} - markers)
        assert all((ROOT / word).exists() for word in words if word.startswith("tests/"))
    extras = {extra for group in re.findall(r"\[([\w,]+)\]", code.text) for extra in group.split(",")}
    assert extras <= set(PROJECT["project"]["optional-dependencies"])


def test_every_shipped_recipe_is_described() -> None:
    described = (DOCS / "own-data.md").read_text(encoding="utf-8")
    for name in shipped_recipes():
        assert f"| `{name}` |" in described


def test_recipes_train_as_many_models_as_is_said() -> None:
    said = re.findall(r"\| `([\w-]+)` \|.*?\b(\d+) models", (DOCS / "own-data.md").read_text(encoding="utf-8"))
    assert len(said) >= 2
    for name, count in said:
        assert len(grid_cells(load_recipe(name).grid)) == int(count), name


def test_one_version() -> None:
    """In the package, its metadata, the citation and the changelog; what is not released stands above."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert PROJECT["project"]["version"] == sftknow.__version__ == citation["version"]
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert [h.partition(" ")[0] for h in headings[1:2]] in ([], [sftknow.__version__])


def test_nothing_sends_a_reader_to_the_package_index() -> None:
    """Until sftknow is there; the extras of what is installed already are found without it."""
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    texts += [path.read_text(encoding="utf-8") for path in (ROOT / "hub_cards").iterdir() if path.is_file()]
    assert not [text for text in texts if re.search(r"pip install (?:-U )?['\"]?sftknow(?!\[)", text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if re.match(r"https?://", link):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.is_file(), f"{link} of {page.name}"
        if page.is_relative_to(DOCS):
            assert target.is_relative_to(DOCS), f"{link} of {page.name} is not on the site"
        if anchor:
            assert anchor in anchors(target), f"{link} of {page.name}"


def test_files_that_are_named_are_there() -> None:
    """Paths of the repository in code of sentences: sftknow/…, tests/…, docs/…, .ci/…."""
    for page in PAGES:
        for code in in_sentences(page):
            path = re.fullmatch(r"((?:sftknow|tests|docs|hub_cards|lm_eval_tasks|\.ci)/[\w./-]*)", code.text)
            if path and "/data/" not in path[1]:
                assert (ROOT / path[1]).exists(), code.name


def test_every_page_has_its_place_in_the_site() -> None:
    class Loader(yaml.SafeLoader):
        """Takes the tags that MkDocs knows beyond YAML."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)

    def pages(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        values = entry.values() if isinstance(entry, dict) else entry
        return [page for value in values for page in pages(value)]  # type: ignore[attr-defined]

    named = pages(config["nav"])
    assert len(named) == len(set(named))
    assert set(named) >= {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}


@pytest.mark.parametrize(
    "block", [b for page in PAGES for b in blocks(page) if b.language == "python"], ids=lambda b: b.name.split("\n")[0]
)
def test_python_is_python(block: Code) -> None:
    """Every block compiles, and what it takes from sftknow is there; tests/test_documented_work.py runs them."""
    compile(
        re.sub(r"^    def ", "def ", block.text) if block.text.startswith("    def ") else block.text, "block", "exec"
    )
    for name in re.findall(r"\bsftknow\.(\w+)\(", block.text):
        assert name in sftknow.__all__
    for module, taken in re.findall(r"^from (sftknow[\w.]*) import (.+)$", block.text, re.MULTILINE):
        for name in taken.split(","):
            assert hasattr(importlib.import_module(module), name.strip()), f"{module}.{name}"


_UNITS = r"times (?:as|the|faster|smaller)|(?:milli)?seconds?\b|minutes?\b|hours?\b|s\b|min\b|GB\b|MB\b|GB/s"
MEASURED = re.compile(rf"\b\d[\d.,–]*(?: to \d[\d.,]*)? (?:{_UNITS})")
"""What reads like a measurement."""
SETTINGS = {"restoring.md": {"512 MB", "88 MB"}, "real-models.md": {"270 MB"}, "grading.md": {"1 GB", "20 seconds"}}
"""Of those, what is a default or a limit of the code: page and number."""


def test_no_measured_number_is_typed_by_hand() -> None:
    """Times, sizes and ratios stand only between the comments that `tests.readme_tables` fills."""
    for page in PAGES:
        text = re.sub(r"<!-- from .*?<!-- end -->", "", prose(page), flags=re.DOTALL)
        found = {match[0] for match in MEASURED.finditer(re.sub(r"`[^`]*`", "", text))}
        assert found <= SETTINGS.get(page.name, set()), page.name
