"""The numbers of the README and of docs/lab.md, written from runs: no number there is typed by hand.

    sftknow run lab --out runs/lab && sftknow run lab-full --out runs/lab-full
    python -m tests.readme_tables runs/lab --full runs/lab-full
    python -m tests.benchmarks.machines runs/lab --docs         # how much they move from machine to machine

Each part stands between two comments, ``<!-- from RUN: PART -->`` and ``<!-- end -->``; the rest of a file is left as
it is, and so are the parts of a run that is not given. A second call changes nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FILES = (ROOT / "README.md", ROOT / "docs" / "lab.md")
_PART = re.compile(r"(<!-- from (?P<run>[a-z-]+): (?P<part>[a-z0-9-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_PAPER = re.compile(r" (?:paper|pattern) [\d,.]+.*$")
_WIDTH = 118


def words(results: Mapping[str, Any]) -> str:
    """What the terminal says at the end of the run, as a block of text."""
    said = [textwrap.fill(s, _WIDTH, initial_indent="• ", subsequent_indent="  ") for s in results["plain_words"]]
    return "\n".join(["```text", *said, "```"])


def table(results: Mapping[str, Any], id: str, columns: Sequence[str] | None = None) -> str:
    """A table of the report without the paper's numbers, as Markdown.

    Args:
        results: the content of results.json.
        id: the table's.
        columns: some of its columns by their titles; None for all.

    Raises:
        KeyError, ValueError: there is no such table or column.
    """
    found = results["tables"][id]
    places = [found["columns"].index(title) for title in columns or found["columns"]]
    rows = [[_PAPER.sub("", row[i]["text"]).replace("|", "\\|") for i in places] for row in found["rows"]]
    head = [found["columns"][i] for i in places]
    numbers = [any(row[i]["value"] is not None for row in found["rows"]) and i > 0 for i in places]
    lines = [head, ["--:" if number else ":--" for number in numbers], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _accuracy(results: Mapping[str, Any]) -> str:
    readings = [f"{split} test: {way} (%)" for split in ("In-domain", "Out-of-domain") for way in ("contains", "exact")]
    return table(results, "table-b-strictness", ("Trained on", "Facts", *readings))


def _verdicts(results: Mapping[str, Any]) -> str:
    return table(results, "table-m-verdicts", ("Claim", "Here", "Why"))


PARTS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "words": words,
    "accuracy": _accuracy,
    "restoration": lambda results: table(results, "table-4a-restoration-test"),
    "controls": lambda results: table(results, "table-q-controls"),
    "verdicts": _verdicts,
}
"""What stands between the comments, by name."""


def written(text: str, runs: Mapping[str, Mapping[str, Any]]) -> str:
    """A file's text with the parts of the given runs.

    Args:
        text: of the file.
        runs: the content of results.json by the name that the comments give the run.

    Raises:
        KeyError: a comment names a part that there is not, or a table that the run lacks.
    """

    def part(match: re.Match[str]) -> str:
        results = runs.get(match["run"])
        return match[0] if results is None else f"{match[1]}{PARTS[match['part']](results)}\n{match[4]}"

    return _PART.sub(part, text)


def replaced(text: str, name: str, block: str) -> str:
    """A file's text with one part, ``<!-- from NAME -->``, given."""
    whole = re.compile(rf"(<!-- from {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    return whole.sub(lambda match: f"{match[1]}{block}\n{match[2]}", text)


def main() -> None:
    """Write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="a finished run of the recipe lab")
    parser.add_argument("--full", type=Path, help="a finished run of lab-full")
    asked = parser.parse_args()
    folders = {"lab": asked.run, "lab-full": asked.full}
    reports = {name: folder / "report" / "results.json" for name, folder in folders.items() if folder}
    runs = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in reports.items()}
    for path in FILES:
        before = path.read_text(encoding="utf-8")
        after = written(before, runs)
        path.write_text(after, encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {'unchanged' if after == before else 'written'}")


if __name__ == "__main__":
    main()
