"""What README and docs hold: pages, their code, their links, their headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md")))

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w-]*)[^\n]*\n(?P<text>.*?)^(?P=indent)```", re.DOTALL | re.MULTILINE
)
_INLINE = re.compile(r"`([^`]+)`")
_INDENTED = re.compile(r"^    (\S.*)$", re.MULTILINE)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.*?)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Code:
    """A piece of code of a page."""

    page: Path
    text: str
    language: str | None
    """Of a block; None for code within a sentence."""

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.text}"


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def blocks(page: Path) -> Iterator[Code]:
    """The fenced and indented blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        yield Code(page, match["text"], match["language"])
    for match in _INDENTED.finditer(_FENCE.sub("", text)):
        yield Code(page, match[1], "")


def in_sentences(page: Path) -> Iterator[Code]:
    """The code within sentences and tables."""
    for match in _INLINE.finditer(prose(page)):
        yield Code(page, " ".join(match[1].replace("\\|", "|").split()), None)


def command_lines(page: Path) -> Iterator[Code]:
    """What a reader would type: lines of shell blocks, one command each, and code in sentences that begins like one."""
    for block in blocks(page):
        if block.language in ("bash", "", "yaml"):
            joined = re.sub(r"\\\n\s*", " ", block.text)
            for line in joined.splitlines():
                for part in re.split(r" && | \|\| ", line.partition(" # ")[0].strip()):
                    if part and (block.language == "bash" or part.startswith(PROGRAMS)):
                        yield Code(page, part, block.language)
    for code in in_sentences(page):
        for part in code.text.split(" && "):
            if part.startswith(PROGRAMS):
                yield Code(page, part, None)


PROGRAMS = ("sftknow ", "lm_eval ", "python -m tests.", "pytest", "pip install ", "inspect eval ", "mkdocs ")


def links(page: Path) -> list[str]:
    """Where a page's links and pictures lead."""
    return _LINK.findall(_INLINE.sub("", prose(page)))


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as GitHub and MkDocs both make them."""
    plain = (re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in _HEADING.findall(prose(page)))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in plain}
