"""The notebooks of docs/notebooks/, run as Jupyter would: all cells in one namespace, the last expression shown.

    python -m tests.notebooks [NAME]         # run them, or one, anew and store what they show

Standard library only, so that neither the tests nor a reader's environment need Jupyter.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "notebooks"


def read(file: Path) -> dict[str, Any]:
    """A notebook: nbformat 4."""
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def sources(notebook: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Its code cells with their text."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            yield cell, "".join(cell["source"])


def run(notebook: dict[str, Any], folder: Path) -> None:
    """Run the cells in a folder and put what they show into the notebook.

    Whatever a cell raises ends it. Standard error (progress) is not kept.
    """
    space: dict[str, Any] = {"__name__": "__main__"}
    with contextlib.chdir(folder):
        for number, (cell, source) in enumerate(sources(notebook), start=1):
            tree = ast.parse(source)
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(tree, f"cell {number}", "exec"), space)
                value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), space) if last else None
            cell["execution_count"] = number
            cell["outputs"] = [*_stream(printed.getvalue()), *_shown(value, number)]


def _stream(text: str) -> list[dict[str, Any]]:
    return [{"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)}] if text else []


def _shown(value: Any, number: int) -> list[dict[str, Any]]:
    if value is None:
        return []
    data = {"text/plain": [repr(value)]}
    if hasattr(value, "_repr_html_"):
        data = {"text/html": value._repr_html_().splitlines(keepends=True), "text/plain": [type(value).__name__]}
    return [{"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": data}]


def main() -> None:
    """Run all of them and write them back."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for file in sorted(FOLDER.glob(f"{sys.argv[1] if sys.argv[1:] else '*'}.ipynb")):
        notebook = read(file)
        with tempfile.TemporaryDirectory() as folder:
            os.environ["SFTKNOW_CACHE"] = f"{folder}/cache"
            run(notebook, Path(folder))
        file.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
