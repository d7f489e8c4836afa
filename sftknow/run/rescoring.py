"""Grade kept continuations again, by other synonyms or another matching rule, without the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from sftknow.answers import DEFAULT_RULE, MatchRule, Synonyms
from sftknow.artifacts.mastery_data import MasteryData, write_mastery_data
from sftknow.errors import MasteryDataError
from sftknow.grading.mastery import grade
from sftknow.grading.rules import recount
from sftknow.progress import progress
from sftknow.records import SPLITS, Fact, GradedFact, SampleTally
from sftknow.run.grading import GRADING_KEY


def recorded_rule(data: MasteryData) -> MatchRule:
    """The rule that a data set was graded by; the paper's where it does not say."""
    return MatchRule(**data.manifest.get("match", asdict(DEFAULT_RULE)))


def rescore(
    old: MasteryData,
    out: str | Path,
    *,
    rule: MatchRule | None = None,
    synonyms: Synonyms | None = None,
    numbers: bool = False,
    keep_texts: bool = False,
) -> MasteryData:
    """Write the data set that grading by these rules would have given.

    The continuations were drawn to their end, so the counts are those of a fresh grading with the same seed.

    Args:
        old: a data set that was graded with its continuations kept.
        out: where the new one goes, whole or not at all; not the old one's folder.
        rule: how to compare; None for the rule that the old one was graded by.
        synonyms: put in the place of those that the old one was graded with; None keeps the answers as they are.
        numbers: also accept other spellings of numbers and dates.
        keep_texts: store the continuations with the new data set too.

    Raises:
        MasteryDataError: the continuations were not kept or are damaged, or ``out`` is the old folder.
    """
    out = Path(out)
    if not old.has_continuations:
        raise MasteryDataError(
            f"{old.folder} holds no continuations, so there is nothing to rescore; grade it again with --keep-texts"
        )
    if out.resolve() == old.folder.resolve():
        raise MasteryDataError(f"{out} is the data set that is rescored; give another --out")
    rule = rule or recorded_rule(old)
    own = old.own_aliases()
    facts = {}
    for split in SPLITS:
        for row in old.split(split):
            fact = row.fact
            if synonyms is not None:
                fact = replace(fact, aliases=synonyms.merged(fact.object, own.get(fact.id, ())))
            if numbers:
                fact = replace(fact, aliases=Synonyms({}, numbers=True).merged(fact.object, fact.aliases))
            facts[fact.id] = fact
    own_grading = ("continuations", GRADING_KEY)
    manifest = {key: value for key, value in old.manifest.items() if key not in own_grading} | {
        "match": asdict(rule),
        "rescored_from": {"fingerprint": old.fingerprint, "match": asdict(recorded_rule(old))},
    }
    if numbers:
        manifest["rescored_from"]["numbers"] = True
    if synonyms is not None:
        manifest["synonyms_sha256"] = synonyms.sha256
    write_mastery_data(
        out,
        _graded(old, facts, rule),
        manifest,
        continuations=_recounted(old.continuations(), facts, rule) if keep_texts else None,
        own_aliases=own,
    )
    return MasteryData(out)


def _recounted(tallies: Iterable[SampleTally], facts: Mapping[str, Fact], rule: MatchRule) -> Iterator[SampleTally]:
    return recount(((tally, facts[tally.fact_id].answers) for tally in tallies), rule)


def _graded(old: MasteryData, facts: Mapping[str, Fact], rule: MatchRule) -> Iterator[GradedFact]:
    about: Mapping[str, Any] = old.manifest["continuations"]
    with progress(int(about["count"]), "rescoring", unit="continuations") as bar:
        for fact_id, tallies in groupby(_recounted(old.continuations(), facts, rule), key=lambda tally: tally.fact_id):
            mastery = grade(fact_id, tallies)
            bar.update(mastery.tries)
            yield GradedFact(fact=facts[fact_id], mastery=mastery)
