"""A check of two models: what was found, and its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from sftknow.artifacts.files import read_json, write_json
from sftknow.errors import RunError
from sftknow.records import to_json
from sftknow.shown import Shown

CHECK = "check.json"

Fate = Literal["kept", "lost", "gained", "never knew"]
FATES: tuple[Fate, ...] = ("kept", "lost", "gained", "never knew")
"""By any hit before and after: both, only before, only after, neither."""

Finding = Literal["gone", "suppressed", "only another format"]
FINDINGS: tuple[Finding, ...] = ("only another format", "suppressed", "gone")
"""What became of a lost fact that was asked again: completed with solved examples before it or as a question; completed
without either at least once in many tries; never."""


@dataclass(frozen=True, kw_only=True)
class CheckedFact:
    """One fact, asked of both models in the same statements with the same random numbers."""

    id: str
    topic: str
    subject: str
    object: str
    tries: int
    """Continuations drawn from each model."""
    before: int
    """Hits of the base."""
    after: int
    """Hits of the tuned model."""
    bucket_before: int
    """Mastery bucket of before ÷ tries (paper, 3.1)."""
    bucket_after: int
    worse: bool
    """Surely known worse, by a test of its own; see `sftknow.checking.kept.surely_worse`."""
    finding: Finding | None = None
    """Where it was lost and asked again."""
    text: str = ""
    """Of a fact that was asked again: what the tuned model says, a hit where there was one."""

    @property
    def fate(self) -> Fate:
        return FATES[2 * (self.before == 0) + (self.after == 0)]


@dataclass(frozen=True, kw_only=True)
class CheckResult(Shown):
    """What `sftknow.check` found."""

    base: str
    tuned: str
    facts_source: str
    facts_available: int
    verdict: Literal["kept", "lost", "open"]
    """No loss beyond the margin, surely one, or it cannot be told."""
    sentence: str
    """The verdict in words."""
    kept: float | None
    """Share of the base's knowledge that the tuned model keeps; None where the base knows none of the facts."""
    low: float | None
    """Ends of its 95 % interval; None where too few facts are known to tell one."""
    high: float | None
    known: int
    """Facts that the base was seen to know; the interval stands on them."""
    margin: float
    """Points."""
    precision: float
    """Points that were asked for."""
    more_facts: int | None
    """About how many more facts would decide, where the verdict is open and that can be told."""
    seconds: float
    """Spent asking, in this start and earlier ones."""
    by_level: tuple[tuple[int, int, float, float], ...]
    """Bucket by one half of the statements, facts, and the two models' mean rates in the other half."""
    by_relation: Mapping[str, tuple[int, float, float]]
    """Of each relation: facts, and the two models' mean rates over all its facts."""
    questions: tuple[float, float, int] | None
    """The question form: share of right answers before and after, and questions; in the tuned model's chat template
    where it has one."""
    chat: bool
    """Whether the tuned model was asked in a chat template of its own."""
    facts: tuple[CheckedFact, ...]
    options: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 no loss beyond the margin, 1 surely one, 3 it cannot be told."""
        return {"kept": 0, "lost": 1, "open": 3}[self.verdict]

    def count(self, fate: Fate) -> int:
        """Facts of that fate."""
        return sum(fact.fate == fate for fact in self.facts)

    def flow(self) -> list[list[int]]:
        """Facts by their bucket before (rows) and after (columns), 5 × 5."""
        table = [[0] * 5 for _ in range(5)]
        for fact in self.facts:
            table[fact.bucket_before][fact.bucket_after] += 1
        return table

    def headline(self) -> str:
        """The verdict in words."""
        return self.sentence

    def rows(self) -> list[dict[str, Any]]:
        """One row a fact, with its fate."""
        return [{**asdict(fact), "fate": fact.fate} for fact in self.facts]


def write_check(folder: Path, result: CheckResult) -> None:
    """Write ``check.json``, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CHECK, to_json(result))


def read_check(folder: Path) -> CheckResult:
    """Read what `write_check` wrote.

    Raises:
        RunError: the file is missing or damaged.
    """
    content = read_json(folder / CHECK)
    try:
        given = {field.name: content[field.name] for field in fields(CheckResult)}
        return CheckResult(
            **{
                **given,
                "facts": tuple(CheckedFact(**fact) for fact in given["facts"]),
                "by_level": tuple(tuple(row) for row in given["by_level"]),
                "by_relation": {name: tuple(row) for name, row in given["by_relation"].items()},
                "questions": tuple(given["questions"]) if given["questions"] else None,
                "notes": tuple(given["notes"]),
            }
        )
    except (KeyError, TypeError) as error:
        raise RunError(f"{folder / CHECK} holds no whole check ({error}); check again") from None
