"""A repair: what was tried, what was chosen, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sftknow.shown import Shown


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number in points with its 95 % interval."""

    value: float
    low: float | None
    """Ends of the interval; None where too few facts or rows were asked to tell one."""
    high: float | None
    count: int
    """Facts or rows that it stands on."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One candidate on the facts that the choice is made on."""

    name: str
    """Method and strength."""
    words: str
    """What it does."""
    control: bool
    """Whether it is there for comparison only."""
    gain: Estimate | None
    """Share of the base's knowledge that it keeps, less that of the fine-tuned model; of the facts that both were asked
    before the candidate was left behind."""
    task: Estimate | None
    """Score on what is to be kept, less that of the fine-tuned model."""
    rounds: int
    """Rounds of the choice that it was in; the better half of the candidates goes on."""


@dataclass(frozen=True, kw_only=True)
class RepairResult(Shown):
    """What `sftknow.repair` found and wrote."""

    base: str
    tuned: str
    facts_source: str
    verdict: Literal["nothing lost", "repaired", "no help", "open"]
    """There is nothing to repair; a candidate surely helps on facts that no choice has seen; surely none does; it
    cannot be told."""
    sentence: str
    """The verdict in words."""
    kept: Estimate | None
    """Share of the base's knowledge that the fine-tuned model keeps, in per cent, over all known facts asked."""
    chosen: str | None
    """The candidate that was best in the choice; None where none kept the task and gained."""
    gain: Estimate | None
    """What it brings back, in points of the base's knowledge, on facts that no choice has seen."""
    kept_after: Estimate | None
    """Share of the base's knowledge that the chosen candidate keeps there, in per cent."""
    task: Estimate | None
    """How much the score on what is to be kept changes there."""
    kept_task: str
    """What was to be kept, in words."""
    random: str | None
    """The random restoration that was best in the choice."""
    beyond_random: Estimate | None
    """What the chosen candidate keeps more than that one, on facts that no choice has seen."""
    more_facts: int | None
    """About how many more facts would decide, where the verdict is open and that can be told."""
    facts_choosing: int
    """Known facts of the part that choices are made on, and of the other part."""
    facts_confirming: int
    trials: tuple[Trial, ...]
    written: str | None
    """Where the repaired model, patch or adapter is; None where nothing was written."""
    values: int | None
    """How many values of what was written differ from the fine-tuned model's; None of an adapter."""
    error_of_adapter: float | None
    """Of a re-factored adapter: ‖its change − the repaired change‖ ÷ ‖the repaired change‖ (Frobenius)."""
    seconds: float
    """Spent asking, in this start and earlier ones."""
    options: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 repaired, or nothing was lost; 1 surely nothing helps; 3 it cannot be told."""
        return {"nothing lost": 0, "repaired": 0, "no help": 1, "open": 3}[self.verdict]

    def headline(self) -> str:
        """The verdict in words."""
        return self.sentence

    def rows(self) -> list[dict[str, Any]]:
        """One row a candidate, as it stood in the choice."""
        rows = []
        for trial in self.trials:
            row: dict[str, Any] = {"candidate": trial.name, "control": trial.control, "rounds": trial.rounds}
            for name, found in (("gain", trial.gain), ("task", trial.task)):
                row |= {
                    name: found.value if found else None,
                    f"{name}_low": found.low if found else None,
                    f"{name}_high": found.high if found else None,
                }
            rows.append({**row, "facts": trial.gain.count if trial.gain else 0, "chosen": trial.name == self.chosen})
        return rows
