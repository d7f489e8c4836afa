"""Which facts and statements token divergence is measured on (paper, 4.1, "Data Selection")."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sftknow.artifacts.divergence import SkippedFact
from sftknow.errors import MasteryDataError
from sftknow.records import Fact, GradedFact, Split

WELL_MASTERED = 4
"""The bucket that the paper measures: its facts are completed whatever the statement (4.1)."""

NO_TALLIES = "no template detail in the grading"
"""Why a fact was left out (a key of ``skipped``)."""


@dataclass(frozen=True, kw_only=True)
class PromptChoice:
    """A fact and the statement it is measured with."""

    fact: Fact
    bucket: int
    """Mastery bucket of the fact."""
    template: int
    """Index of the statement template within the topic, from 0."""
    statement: str
    """The template with the subject in its place."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The facts to measure."""

    choices: tuple[PromptChoice, ...]
    headline: int
    """The bucket that summaries speak of; the others stand beside it."""
    templates: Mapping[int, Mapping[str, int]]
    """The template chosen for each topic, by bucket."""
    skipped: tuple[SkippedFact, ...] = ()
    """Facts left out."""


def select_prompts(
    rows: Sequence[GradedFact],
    statements: Mapping[str, Sequence[str]],
    *,
    buckets: Sequence[int] = (WELL_MASTERED,),
    split: Split = "test",
) -> Selection:
    """Choose facts and, for each topic, the statement template with the base's highest hit rate (paper, 4.1).

    The rate of a template is hits ÷ tries over the topic's facts in that bucket, compared as whole numbers; the
    lowest index wins a tie. Templates that were not sampled do not compete.

    Args:
        rows: graded facts; others than those of ``buckets`` and ``split`` are passed over.
        statements: templates for each topic, with ``{subject}`` in them, as they were when the facts were graded.
        buckets: mastery buckets to measure. The highest of them is the headline and must have facts; the paper
            measures bucket 4 alone.
        split: part of the data set.

    Raises:
        MasteryDataError: the headline bucket has no facts, no tallies are there, or the templates are not those of
            the grading.
    """
    headline = max(buckets)
    wanted = {b: [r for r in rows if r.mastery.bucket == b and r.fact.split == split] for b in sorted(set(buckets))}
    if not wanted[headline]:
        raise MasteryDataError(
            f"the data set holds no {split} facts in bucket {headline} to measure token divergence on; grade more facts"
        )
    tallied = {bucket: [r for r in found if sum(r.mastery.template_tries)] for bucket, found in wanted.items()}
    if not tallied[headline]:
        raise MasteryDataError(
            "the data set has no tallies for single templates; grade the facts again with sftknow grade"
        )
    templates = {bucket: _best_templates(found, statements) for bucket, found in tallied.items()}
    choices = tuple(
        PromptChoice(
            fact=row.fact,
            bucket=bucket,
            template=templates[bucket][row.fact.topic],
            statement=statements[row.fact.topic][templates[bucket][row.fact.topic]].replace(
                "{subject}", row.fact.subject
            ),
        )
        for bucket, found in tallied.items()
        for row in found
    )
    missing = [r for found in wanted.values() for r in found if not sum(r.mastery.template_tries)]
    return Selection(
        choices=choices,
        headline=headline,
        templates=templates,
        skipped=tuple(skipped_fact(r.fact, r.mastery.bucket, NO_TALLIES) for r in missing),
    )


def skipped_fact(fact: Fact, bucket: int, reason: str) -> SkippedFact:
    """The record of a fact that is left out."""
    return SkippedFact(fact_id=fact.id, topic=fact.topic, bucket=bucket, reason=reason)


def _best_templates(rows: Sequence[GradedFact], statements: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """For each topic, the template that the base completed best."""
    hits: dict[str, Counter[int]] = {}
    tries: dict[str, Counter[int]] = {}
    for row in rows:
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
    return {topic: _best_template(hits[topic], tries[topic]) for topic in hits}


def _best_template(hits: Mapping[int, int], tries: Mapping[int, int]) -> int:
    best = -1
    for template in sorted(tries):
        if tries[template] and (best < 0 or hits[template] * tries[best] > hits[best] * tries[template]):
            best = template
    return best
