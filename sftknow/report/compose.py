"""Puts the report of a run together: one page, its tables and figures as files, and every number as JSON."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from sftknow.artifacts.files import atomic_file, read_json, write_json, write_text
from sftknow.errors import RunError
from sftknow.progress import progress
from sftknow.records import to_json
from sftknow.report import (  # noqa: F401
    accuracy,
    changes,
    claims,
    divergence,
    facts_sheet,
    knowledge,
    mastery,
    pairs,
    restoration,
    trainings,
)
from sftknow.report.advice import advice
from sftknow.report.answer import GLOSSARY, answer, picture
from sftknow.report.blocks import BLOCKS, compose_sections
from sftknow.report.collect import collect
from sftknow.report.contents import Missing, Report
from sftknow.report.findings import findings
from sftknow.report.layout import Block, Figure, Section, Table
from sftknow.report.style import inline_svg
from sftknow.report.summary import plain_words

FORMAT = 1
"""Version of the layout of ``results.json``."""

RESULTS = "results.json"
FOOTER = (
    "Tables and figures that the paper (arXiv 2509.16596, EMNLP 2025) has carry its numbers; the others carry letters. "
    "Beside this page lie results.json with every number, tables/ as CSV and Markdown, and figures/ as SVG and PNG."
)
_TEMPLATE = Path(__file__).with_name("report.html.j2")


def write_report(run: str | Path, out: str | Path) -> Path:
    """Write a run's report and return the path of its page.

    Only the run directory's artifacts are read. A partial run gives a partial report that says what is missing. ``out``
    gets ``report.html`` (self-contained), ``results.json`` (every number shown), ``tables/`` (CSV and Markdown) and
    ``figures/`` (SVG, PNG and the data as CSV). The page is written last.

    Raises:
        RunError: ``run`` is no run directory, or one of its files is damaged.
    """
    run = Path(run)
    out = Path(out)
    return write_pages(collect(run), out)


def write_pages(report: Report, out: Path) -> Path:
    """As `write_report`, for a run that is read already."""
    first, sections = picture(report), compose(report)
    shown = [Section(id="answer", title="Answer", intro="", blocks=(first,)), *sections] if first else sections
    results = build_results(report, shown)
    write_files(out, shown)
    write_json(out / RESULTS, results)
    page = out / "report.html"
    content = render(
        name=report.name,
        subtitle=facts_sheet.subtitle(report),
        sentence=results["answer"].replace(" %", "\u00a0%"),
        first=first,
        words=results["plain_words"],
        advice=results["advice"],
        missing=report.missing,
        sections=sections,
    )
    write_text(page, content)
    return page


def compose(report: Report) -> list[Section]:
    """The report's sections, without those that the run has nothing for."""
    with progress(len(list(BLOCKS)), "Report", unit="parts") as bar:
        sections = list(compose_sections(report, bar.update))
    if report.unasked and report.models:
        sections.append(
            Section(
                id="unasked",
                title="Not part of this run",
                intro="Parts of the paper that the recipe did not ask for, and the way to get them.",
                points=tuple(f"{gap.what[0].upper()}{gap.what[1:]}: {gap.where}." for gap in report.unasked),
            )
        )
    limits = tuple(facts_sheet.limits(report))
    intro = "Read the numbers above with these in mind."
    return [*sections, Section(id="limits", title="What this cannot tell", intro=intro, points=limits)]


def build_results(report: Report, sections: list[Section]) -> dict[str, Any]:
    """The content of ``results.json``: findings, words, and every table and figure with its numbers."""
    found = findings(report)
    results: dict[str, Any] = {
        "format": FORMAT,
        "run": report.name,
        "base": report.base_name,
        "paper_model": report.beside.model,
        "findings": found,
        "answer": answer(report, found),
        "advice": advice(report, found),
        "verdicts": [
            {"id": j.id, "title": j.title, "word": j.verdict.word, "why": j.verdict.why, "test": j.test}
            for j in claims.judge(report)
        ],
        **content_of(sections),
        "limits": [point for section in sections if section.id == "limits" for point in section.points],
        "missing": [to_json(gap) for gap in report.missing],
        "unasked": [to_json(gap) for gap in report.unasked],
    }
    return {**results, "plain_words": plain_words(results)}


def content_of(sections: Sequence[Section]) -> dict[str, dict[str, Any]]:
    """The numbers of every table and figure, by id, as ``results.json`` holds them."""
    return {kind: {b.id: b.json() for b in _blocks(sections) if b.kind == kind} for kind in ("tables", "figures")}


def write_files(out: Path, sections: Sequence[Section]) -> None:
    """Every table as CSV and Markdown, every figure as SVG, PNG and CSV. Those of an earlier report go away.

    Which these are its ``results.json`` says, so that nobody else's files are deleted.
    """
    try:
        before = read_json(out / RESULTS)
    except RunError:
        before = {}
    for kind in ("tables", "figures"):
        files = {name: data for block in _blocks(sections) if block.kind == kind for name, data in block.files.items()}
        for name, content in files.items():
            with atomic_file(out / kind / name) as partial:
                partial.write_bytes(content)
        ids = before.get(kind) if isinstance(before, dict) else None
        for path in [path for path in (out / kind).glob("*") if ids and path.stem in ids and path.name not in files]:
            path.unlink()


def _blocks(sections: Sequence[Section]) -> list[Block]:
    return [block for section in sections for block in section.blocks]


def _link(text: str, kind: str) -> str:
    """A file inside the page: the link works wherever the page is taken."""
    return f"data:{kind};base64,{base64.b64encode(text.encode()).decode()}"


def render(
    *,
    name: str,
    subtitle: str,
    sentence: str,
    first: Figure | None,
    words: Sequence[str],
    advice: Sequence[str],
    missing: Sequence[Missing],
    sections: Sequence[Section],
    pages: Mapping[str, str] | None = None,
    glossary: Mapping[str, str] = GLOSSARY,
    aside: str = "What to do with this model",
    footer: str = FOOTER,
) -> str:
    """The page. An undefined name in the template is an error, and everything that is text is escaped.

    Args:
        name: heading.
        subtitle: line below it.
        sentence: what to read first.
        first: the figure to see first.
        words: what is found, in sentences.
        advice: what to do, in sentences.
        missing: what is left out.
        sections: tables and figures.
        pages: other pages beside this one, by title.
        glossary: words with their meanings.
        aside: heading of the advice.
        footer: last lines.
    """
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["drawing"] = lambda panel: Markup(inline_svg(panel))
    environment.filters["csv_link"] = lambda block: _link(block.csv(), "text/csv")
    environment.tests["table"] = lambda block: isinstance(block, Table)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        name=name,
        subtitle=subtitle,
        sentence=sentence,
        first=first,
        glossary=glossary,
        aside=aside,
        footer=footer,
        words=words,
        advice=advice,
        missing=missing,
        sections=sections,
        pages=pages or {},
    )
