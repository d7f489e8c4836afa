"""The rule by which a restoration level, or one of several models, is chosen. It stands here and nowhere else.

The paper's measure counts an answer that contains the object, so a model that runs on, naming one thing after another,
gains by it. Two more measures say whether answers keep their form: exact match, and the share of answers that end by
themselves, before their sixteen tokens are used. A candidate breaks the form where one of the two is more than
`FORM_MARGIN` below what it is compared with: of a level the fine-tuned model as it was trained, of a fine-tuned model
its base. The values themselves are compared and not their intervals: what cannot be told apart from a broken form is
not worth choosing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from sftknow.artifacts.levels import UNTOUCHED, by_share
from sftknow.records import EvalRun

ENDED = "ended"
"""Metric of the answers' form: how many end by themselves, before their 16 tokens are used."""

ChooseBy = Literal["acc", "exact", "both"]
"""``acc``: highest containment, as the paper. ``exact``: highest exact match. ``both``: highest containment among those
that do not break the form."""

FORM_MARGIN = 0.02
"""How far exact match, or the share of answers that end by themselves, may fall; a share between 0 and 1."""

FORM: Mapping[str, str] = {"exact_match": "exact match", ENDED: "answers that end by themselves"}
"""The measures of form, in words."""
BESIDE: Mapping[str, str] = {"acc_word": "whole word", **FORM}
"""What stands beside containment wherever something is recommended, chosen or published."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a model scores on one split: means over the buckets, shares between 0 and 1; None where not measured."""

    acc: float
    """Contains the answer."""
    acc_word: float | None = None
    exact_match: float | None = None
    ended: float | None = None
    """Answers that end by themselves."""

    @classmethod
    def by(cls, value: Callable[[str], float | None]) -> Measured | None:
        """From what gives each measure by its name; None where there is no containment."""
        acc = value("acc")
        return None if acc is None else cls(acc=acc, **{name: value(name) for name in BESIDE})

    @classmethod
    def of(cls, run: EvalRun, split: str) -> Measured:
        """From an evaluation. Raises KeyError where it was not scored on the split."""
        task = f"cbqa_mastery_{split}"
        found = {m.metric: m.value for m in run.metrics if m.task == task}
        return cls(acc=run.value(task).value, **{name: found.get(name) for name in BESIDE})

    def broken(self, plain: Measured) -> tuple[str, ...]:
        """Names of the measures of form that are more than `FORM_MARGIN` below those of `plain`."""
        pairs = {name: (getattr(self, name), getattr(plain, name)) for name in FORM}
        return tuple(
            name
            for name, (here, there) in pairs.items()
            if here is not None and there is not None and there - here > FORM_MARGIN + 1e-9
        )

    @property
    def beside(self) -> dict[str, float]:
        """What stands beside containment, as far as it was measured."""
        return {name: value for name in BESIDE if (value := getattr(self, name)) is not None}


def choose(candidates: Mapping[str, Measured], plain: Measured | None, by: ChooseBy = "both") -> str:
    """The name of the candidate that is chosen; of equals the first.

    Where all candidates break the form, the highest exact match among them.

    Args:
        candidates: by name, at least one.
        plain: what their form is compared with; None compares it with nothing.
        by: see `ChooseBy`.
    """

    def exact(name: str) -> float:
        found = candidates[name].exact_match
        return candidates[name].acc if found is None else found

    names = list(candidates)
    if by == "both" and plain is not None:
        names = [name for name in names if not candidates[name].broken(plain)]
        if not names:
            return max(candidates, key=exact)
    return max(names, key=exact if by == "exact" else lambda name: candidates[name].acc)


def choose_level(scores: Mapping[str, Measured], by: ChooseBy = "both") -> str:
    """The level that is chosen; among equals the smallest restoration, which is the weaker intervention.

    Args:
        scores: of each level; ``0%`` is the fine-tuned model itself, with which the form of the others is compared.
        by: see `ChooseBy`.
    """
    return choose({level: scores[level] for level in by_share(scores)}, scores.get(UNTOUCHED), by)


def rule_words(by: ChooseBy) -> str:
    """The rule in words, to stand behind “chosen by”."""
    return {
        "acc": "containment alone",
        "exact": "exact match",
        "both": "containment, among those whose exact match and share of answers that end by themselves are at most "
        f"{100 * FORM_MARGIN:g} points lower",
    }[by]
