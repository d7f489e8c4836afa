"""Which facts and statements token divergence is measured on (paper, 4.1, "Data Selection")."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sftknow.errors import MasteryDataError
from sftknow.records import Fact, GradedFact, Split

NO_TALLIES = "no template detail in the grading"
"""Why a fact was left out (a key of ``skipped``)."""


@dataclass(frozen=True, kw_only=True)
class PromptChoice:
    """A fact and the statement it is measured with."""

    fact: Fact
    template: int
    """Index of the statement template within the topic, from 0."""
    statement: str
    """The template with the subject in its place."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The facts to measure."""

    choices: tuple[PromptChoice, ...]
    templates: Mapping[str, int]
    """The template chosen for each topic."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Facts left out, by reason."""


def select_prompts(
    rows: Sequence[GradedFact],
    statements: Mapping[str, Sequence[str]],
    *,
    bucket: int | None = 4,
    split: Split | None = "test",
) -> Selection:
    """Choose facts and, for each topic, the statement template with the base's highest hit rate (paper, 4.1).

    The rate of a template is hits ÷ tries over the topic's chosen facts, compared as whole numbers; the lowest index
    wins a tie. Templates that were not sampled do not compete.

    Args:
        rows: graded facts; others than those of ``bucket`` and ``split`` are passed over.
        statements: templates for each topic, with ``{subject}`` in them, as they were when the facts were graded.
        bucket: mastery bucket; None takes all.
        split: part of the data set; None takes all.

    Raises:
        MasteryDataError: no fact is left, no tallies are there, or the templates are not those of the grading.
    """
    wanted = [r for r in rows if bucket in (None, r.mastery.bucket) and split in (None, r.fact.split)]
    if not wanted:
        what = f"{split or ''} facts" + ("" if bucket is None else f" in bucket {bucket}")
        raise MasteryDataError(f"the data set holds no {what.strip()} to measure token divergence on; grade more facts")
    tallied = [r for r in wanted if sum(r.mastery.template_tries)]
    if not tallied:
        raise MasteryDataError(
            "the data set has no tallies for single templates; grade the facts again with sftknow grade"
        )
    hits: dict[str, Counter[int]] = {}
    tries: dict[str, Counter[int]] = {}
    for row in tallied:
        topic, mastery = row.fact.topic, row.mastery
        known = statements.get(topic, ())
        # A grading by some of the statements ends at the last one it sampled, with 0 tries for those it left out.
        if not len(mastery.template_hits) == len(mastery.template_tries) <= len(known):
            raise MasteryDataError(
                f"{row.fact.id} was graded with {len(mastery.template_tries)} statement templates, but topic {topic} "
                f"has {len(known)}; use the topics file of the grading or grade again"
            )
        hits.setdefault(topic, Counter()).update(dict(enumerate(mastery.template_hits)))
        tries.setdefault(topic, Counter()).update(dict(enumerate(mastery.template_tries)))
    best = {topic: _best_template(hits[topic], tries[topic]) for topic in hits}
    choices = tuple(
        PromptChoice(
            fact=row.fact,
            template=best[row.fact.topic],
            statement=statements[row.fact.topic][best[row.fact.topic]].replace("{subject}", row.fact.subject),
        )
        for row in tallied
    )
    missing = len(wanted) - len(tallied)
    return Selection(choices=choices, templates=best, skipped={NO_TALLIES: missing} if missing else {})


def _best_template(hits: Mapping[int, int], tries: Mapping[int, int]) -> int:
    best = -1
    for template in sorted(tries):
        if tries[template] and (best < 0 or hits[template] * tries[best] > hits[best] * tries[template]):
            best = template
    return best
