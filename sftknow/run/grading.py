"""Grade facts by a model and write the mastery-split data set; used by whole runs and by `sftknow grade`."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sftknow.answers import Synonyms
from sftknow.artifacts.files import digest
from sftknow.artifacts.manifests import read_manifest
from sftknow.artifacts.mastery_data import KIND, write_mastery_data
from sftknow.facts.prompts import Statements
from sftknow.facts.sources import FactSet
from sftknow.facts.topics import Topic
from sftknow.grading.estimate import seconds_each
from sftknow.grading.options import GradingOptions
from sftknow.grading.sampling import Sampler
from sftknow.grading.sequential import EarlyGrading
from sftknow.grading.shards import Engine, Shard, graded_facts, kept_tallies, plan_shards, sample_shards, unfinished
from sftknow.models.limits import most_positions, refuse_long
from sftknow.models.loading import load_config, load_tokenizer
from sftknow.models.resolving import BaseModel
from sftknow.records import to_json
from sftknow.run.replicas import load_sampler

GRADING_KEY = "inputs_sha256"
"""In a graded data set's manifest: the hash of everything that it depends on, see `grading_inputs`."""


_TRIED = 256
"""Facts from which those are taken that a time estimate is measured with."""


def topics_sha256(topics: Mapping[str, Topic]) -> str:
    """Hash of the topics' content, the person's own merged over the paper's."""
    return digest({name: asdict(topic) for name, topic in topics.items()})


def describe_facts(facts: FactSet, topics: Mapping[str, Topic], section: GradingOptions) -> Iterator[str]:
    """Lines that say what is graded, what was left out, and over how many tries R will stand."""
    parts = ", ".join(f"{count:,} {split}" for split, count in facts.counts().items() if count)
    yield f"facts: {len(facts.facts):,} from {facts.source} ({parts})"
    for note in facts.notes:
        yield f"  {note}"
    for reason, count in facts.removed.items():
        yield f"  left out: {count:,} ({reason})"
    wanted = set(range(max(len(topic.templates) for topic in topics.values())))
    if section.templates is not None:
        wanted &= set(section.templates)
    used = sorted({fact.topic for fact in facts.facts})
    statements = {name: sum(i in wanted for i in range(len(topics[name].templates))) for name in used}
    most = max(statements.values())
    upto = "at most " if section.certainty else ""
    line = f"  R stands on {upto}{most * section.samples} tries a fact: {most} statements × {section.samples} samples"
    fewer = [f"{n * section.samples} in {name} ({n} × {section.samples})" for name, n in statements.items() if n < most]
    if fewer:
        line += f"; fewer: {', '.join(fewer[:5])}{' …' if len(fewer) > 5 else ''}"
    yield line
    if section.certainty:
        yield f"  a fact is asked in rounds until its bucket is sure with probability {section.certainty:g}"
    yield f"  a hit is {section.rule}"


def grading_inputs(
    base: BaseModel, facts: FactSet, topics: Mapping[str, Topic], section: GradingOptions
) -> dict[str, Any]:
    """Everything that the graded data set depends on."""
    early = {} if section.certainty is None else {"certainty": section.certainty}
    return {
        **early,
        "base": base.sha256,
        "dtype": base.ref.dtype,
        "facts": facts.sha256,
        "topics": digest({name: topic.templates for name, topic in topics.items()}),
        "policy": to_json(section.policy),
        "templates": section.templates,
        "keep_texts": section.keep_texts,
        "shard_size": section.shard_size,
        "match": asdict(section.rule),
        "sampler": section.sampler,
    }


def is_graded(out: Path, base: BaseModel, facts: FactSet, topics: Mapping[str, Topic], section: GradingOptions) -> bool:
    """Whether a folder holds the data set that `grade_dataset` would make of the same.

    Raises:
        RunError: the folder's ``sftknow.json`` is damaged.
    """
    manifest = read_manifest(out, KIND) or {}
    return manifest.get(GRADING_KEY) == digest(grading_inputs(base, facts, topics, section))


def statement_seconds(
    base: BaseModel, facts: FactSet, topics: Mapping[str, Topic], section: GradingOptions, *, device: str
) -> float:
    """Seconds that a statement takes, measured: `sftknow.grading.estimate`, on facts from everywhere.

    Raises:
        ModelError, DeviceError: as `grade_dataset`.
    """
    chosen = random.Random(0).sample(facts.facts, min(_TRIED, len(facts.facts)))
    shards = plan_shards(
        [(fact, Statements(topics[fact.topic], fact.subject)) for fact in chosen],
        section.policy,
        Path(),
        shard_size=_TRIED,
        templates=section.templates,
    )
    sampler = load_sampler(base, replace(section, engine="local"), device=device, rule=section.rule)
    assert not isinstance(sampler, Engine)
    return seconds_each(sampler, shards[0].requests, section.policy)


def grade_dataset(
    base: BaseModel,
    facts: FactSet,
    topics: Mapping[str, Topic],
    synonyms: Synonyms,
    section: GradingOptions,
    *,
    work: Path,
    out: Path,
    device: str,
) -> None:
    """Sample every statement of every fact (paper, 3.1 and F.1).

    Args:
        base: the model that is asked.
        facts: with their accepted answers.
        topics: statement templates by relation.
        synonyms: recorded by hash; the facts carry them already.
        section: how to sample.
        work: finished shards lie here, so that a second start continues.
        out: where the data set goes, whole or not at all.
        device: ``auto``, ``cpu``, ``cuda`` …

    Raises:
        ModelError: the model or its tokenizer cannot be loaded, or its context is shorter than a statement with what
            is to follow it.
    """
    policy, rule, keep_texts = section.policy, section.rule, section.keep_texts
    statements = [(fact, Statements(topics[fact.topic], fact.subject)) for fact in facts.facts]

    def load(left: Sequence[Shard]) -> Sampler | Engine:
        refuse_long(
            base.name,
            load_tokenizer(base.ref),
            (request.prompt for shard in left for request in shard.requests),
            new_tokens=policy.max_new_tokens,
            positions=most_positions(load_config(base.ref)),
            way_out="Give a smaller --max-new-tokens (grading.max_new_tokens of a recipe), leave those facts out",
        )
        return load_sampler(base, section, device=device, rule=rule)

    how: dict[str, Any] = {
        "shard_size": section.shard_size,
        "keep_texts": keep_texts,
        "templates": section.templates,
        "identity": f"{base.sha256}/{base.ref.dtype}/{section.sampler}/{digest(rule)}",
    }
    if section.certainty is None:
        shards = plan_shards(statements, policy, work, **how)
        left = unfinished(shards, policy, keep_texts=keep_texts)
        if left:
            sample_shards(shards, load(left), policy, keep_texts=keep_texts, left=left)
        rows = graded_facts(shards, policy, keep_texts=keep_texts)
        kept = kept_tallies(shards, policy) if keep_texts else None
    else:
        early = EarlyGrading(statements=statements, policy=policy, folder=work, certainty=section.certainty, **how)
        early.sample(load)
        rows, kept = early.facts(), early.tallies() if keep_texts else None
    manifest = {
        "graded_by": base.name,
        "graded_by_sha256": base.sha256,
        "policy": to_json(policy),
        "match": asdict(rule),
        "sampler": section.sampler,
        "templates": section.templates,
        **({} if section.certainty is None else {"certainty": section.certainty}),
        "facts": {"source": facts.source, "sha256": facts.sha256, "official_release": facts.official},
        "removed": dict(facts.removed),
        "topics_sha256": topics_sha256({name: topics[name] for name in sorted({f.topic for f in facts.facts})}),
        "synonyms_sha256": synonyms.sha256,
        GRADING_KEY: digest(grading_inputs(base, facts, topics, section)),
    }
    write_mastery_data(
        out,
        rows,
        manifest,
        continuations=kept,
        own_aliases=facts.own_aliases,
    )
