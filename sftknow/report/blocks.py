"""The sections of the report's page, and the tables and figures that stand in them.

Each is a function with the decorator `report_block`: those that ship, in the files named after the sections, and those
that others add.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from sftknow.errors import RunError
from sftknow.registry import Registry
from sftknow.report.contents import Report
from sftknow.report.layout import Block, Section

Maker = Callable[[Report], Block | None]
"""Makes a table or figure of a run; None where the run does not hold what it needs."""

M = TypeVar("M", bound=Maker)

SECTIONS = {
    "mastery": (
        "What does the base model know?",
        "Each fact was put to the base model as statements to complete. R is the share of sampled completions that "
        "contain the answer; it decides the fact’s bucket.",
    ),
    "accuracy": (
        "What does fine-tuning do to answers?",
        "The base and every fine-tuned model answer the same test questions, sorted by how well the base "
        "mastered the fact.",
    ),
    "restoration": (
        "What does restoring do?",
        "Selected elements get the base’s values back; then the model answers the same questions again.",
    ),
    "divergence": (
        "How far does the first token move?",
        "A model that drifts from its base should lose what the base knew. The divergence of the first "
        "predicted token measures the drift; the accuracy on bucket 4, the facts known best, measures the loss.",
    ),
    "change": (
        "Which parameters changed?",
        "The relative change of an element is r = |tuned − base| ÷ (|base| + ε), from the values as they are stored.",
    ),
    "claims": (
        "Does the paper hold here?",
        "The paper’s two phenomena and four findings, one by one, against this run.",
    ),
    "added": ("Further tables", "Tables and figures that other packages add."),
    "lab": (
        "Is the measuring right?",
        "In the lab it is known how often the pretraining text stated each fact: measured mastery should follow it.",
    ),
    "run": ("What was run?", "The sheet below is taken from the run’s own artifacts."),
}
"""Title and introduction by id, in the order of the page."""


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A table or figure with its place."""

    section: str
    after: str | None
    make: Maker


BLOCKS: Registry[Registered] = Registry("report table", RunError)
"""Tables and figures by name."""


def report_block(name: str, *, section: str = "added", after: str | None = None) -> Callable[[M], M]:
    """A decorator that adds a table or figure to every report.

    Args:
        name: unique among all. The names of its files are `layout.Table.id`.
        section: one of `SECTIONS`.
        after: name of the one that it stands behind; None puts it last in its section.

    Raises:
        RunError: there is no such section, or the name is taken.
    """
    if section not in SECTIONS:
        raise RunError(f"the report has no section {section}; there are {', '.join(SECTIONS)}")

    def add(make: M) -> M:
        BLOCKS.register(name)(Registered(section=section, after=after, make=make))
        return make

    return add


def in_order(section: str) -> Iterator[Maker]:
    """A section's tables and figures in the order of the page."""
    own = {name: entry for name in BLOCKS if (entry := BLOCKS.get(name)).section == section}

    def with_followers(name: str) -> Iterator[Maker]:
        yield own[name].make
        for follower, entry in own.items():
            if entry.after == name:
                yield from with_followers(follower)

    for name, entry in own.items():
        if entry.after not in own:
            yield from with_followers(name)


def compose_sections(report: Report, advance: Callable[[], object]) -> Iterator[Section]:
    """The sections that the run has something for.

    Args:
        report: the run.
        advance: called after each table or figure.
    """
    for id, (title, intro) in SECTIONS.items():
        blocks = []
        for make in in_order(id):
            block = make(report)
            blocks += [block] if block is not None else []
            advance()
        if blocks:
            yield Section(id=id, title=title, intro=intro, blocks=tuple(blocks))
