"""What MkDocs puts in the place of ``<!-- made: … -->``: the commands' help, the public names, a recipe; and notebooks.

MkDocs calls the functions that begin with ``on_``. Nothing heavy is imported: mkdocstrings reads the source.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

import sftknow
from sftknow.cli.main import build_parser

ROOT = Path(__file__).resolve().parents[1]
GROUPS = {
    "Check": ("checking", "artifacts.checks", "run.checking", "run.guard"),
    "Select": ("selecting", "artifacts.selections", "run.selecting"),
    "Facts and grading": ("facts", "grading", "answers", "artifacts.mastery_data", "run.rescoring"),
    "Models": ("models",),
    "Fine-tuning": ("training",),
    "Evaluating": ("evaluation", "run.comparing", "run.scoring"),
    "Token divergence": ("divergence",),
    "Changes and restoration": ("parameters",),
    "Runs and reports": ("recipes", "run", "report", "artifacts"),
    "The Hub": ("publishing", "leaderboard"),
    "Records": ("records",),
    "Errors": ("errors",),
}
"""Headings, and the modules whose public names stand below them; the first that fits."""


def commands() -> str:
    """The help of every command, as it is shown in a terminal of 82 columns."""
    os.environ["COLUMNS"] = "82"
    parsers = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    every = []
    for parser in parsers.choices.values():
        nested = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        every += [parser, *(within for a in nested for within in a.choices.values())]
    return "\n".join(f"## {each.prog}\n\n```text\n{each.format_help().rstrip()}\n```\n" for each in every)


def group_of(name: str) -> str:
    """The heading for a public name."""
    home = sftknow._HOMES[name].removeprefix("sftknow.")
    return next(
        (title for title, modules in GROUPS.items() if any(f"{home}.".startswith(f"{m}.") for m in modules)), "Further"
    )


def names() -> str:
    """A directive of mkdocstrings for every public name, by group."""
    groups: dict[str, list[str]] = {title: [] for title in (*GROUPS, "Further")}
    for name in sftknow.__all__:
        groups[group_of(name)].append(f"::: {sftknow._HOMES[name]}.{name}\n")
    return "\n".join(f"## {title}\n\n" + "\n".join(found) for title, found in groups.items() if found)


def recipe() -> str:
    """The recipe for a model and facts of one's own."""
    return f"```yaml\n{(ROOT / 'sftknow/recipes/any-model.yaml').read_text(encoding='utf-8').rstrip()}\n```"


MADE: dict[str, Callable[[], str]] = {"commands": commands, "names": names, "recipe": recipe}


def on_config(config: Any) -> Any:
    """Leave out of the navigation what is not written yet."""
    config["nav"] = _there(config["nav"])
    return config


def _there(entries: list[Any]) -> list[Any]:
    found = []
    for entry in entries:
        title, page = next(iter(entry.items())) if isinstance(entry, dict) else (None, entry)
        if isinstance(page, list):
            found.append({title: _there(page)})
        elif any((ROOT / "docs" / page).with_suffix(suffix).is_file() for suffix in (".md", ".ipynb")):
            found.append(entry)
    return found


def on_files(files: Files, config: Any) -> Files:
    """Make a page of every notebook, as it was executed."""
    for notebook in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        page = f"notebooks/{notebook.stem}.md"
        files.append(File.generated(config, page, content=as_page(json.loads(notebook.read_text(encoding="utf-8")))))
    return files


def as_page(notebook: dict[str, Any]) -> str:
    """A notebook as Markdown: texts, code, and of what came out the text or the picture."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/png" in data:
                parts.append(f"![what came out](data:image/png;base64,{''.join(data['image/png']).strip()})")
            elif said := "".join(data.get("text/plain", "")).rstrip():
                parts.append(f"```text\n{said}\n```")
    return "\n\n".join(parts)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A page's text with what is made."""
    return re.sub(r"<!-- made: (\w+) -->", lambda match: MADE[match[1]](), markdown)
