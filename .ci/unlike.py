"""Prints the installed packages whose version is not that of a constraints file."""

from __future__ import annotations

import re
import sys
from importlib.metadata import distributions
from pathlib import Path


def normal(name: str) -> str:
    """A distribution's name as packages are compared by (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def unlike(constraints: Path) -> list[str]:
    """One line a package that is there in another version, such as ``transformers 5.24.0 (pinned: 5.23.0)``."""
    lines = constraints.read_text(encoding="utf-8").split()
    pinned = {normal(name): version for name, _, version in (line.partition("==") for line in lines)}
    here = {normal(found.metadata["Name"]): found.version for found in distributions()}
    return [
        f"  {name} {version} (pinned: {pinned[name]})"
        for name, version in sorted(here.items())
        if name in pinned and version.partition("+")[0] != pinned[name]
    ]


if __name__ == "__main__":
    print("\n".join(unlike(Path(sys.argv[1]))) or "  nothing")
