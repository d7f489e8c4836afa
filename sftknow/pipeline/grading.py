"""Grade facts by a model and write the mastery-split data set; used by whole runs and by `sftknow grade`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sftknow.answers import MatchRule, Synonyms
from sftknow.facts.prompts import statements_for
from sftknow.facts.sources import FactSet
from sftknow.facts.topics import Topic
from sftknow.mastery.shards import grade_facts
from sftknow.mastery.transformers_sampler import load_sampler
from sftknow.pipeline.base import BaseModel
from sftknow.recipes.schema import GradingSection
from sftknow.records import SamplingPolicy, to_json
from sftknow.storage.artifacts import digest
from sftknow.storage.mastery_data import write_mastery_data


def sampling_policy(section: GradingSection) -> SamplingPolicy:
    """The part of the section that decides what R means."""
    return SamplingPolicy(
        samples=section.samples,
        temperature=section.temperature,
        max_new_tokens=section.max_new_tokens,
        seed=section.seed,
    )


def grading_inputs(
    base: BaseModel, facts: FactSet, topics: Mapping[str, Topic], section: GradingSection
) -> dict[str, Any]:
    """Everything that the graded data set depends on."""
    return {
        "base": base.sha256,
        "dtype": base.ref.dtype,
        "facts": facts.sha256,
        "topics": digest({name: topic.templates for name, topic in topics.items()}),
        "policy": to_json(sampling_policy(section)),
        "templates": section.templates,
        "keep_texts": section.keep_texts,
        "shard_size": section.shard_size,
        "match": asdict(MatchRule()),
    }


def grade_dataset(
    base: BaseModel,
    facts: FactSet,
    topics: Mapping[str, Topic],
    synonyms: Synonyms,
    section: GradingSection,
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
    """
    policy = sampling_policy(section)
    rows = grade_facts(
        [(fact, statements_for(topics[fact.topic], fact.subject)) for fact in facts.facts],
        load_sampler(base.ref, device=device),
        policy,
        work,
        shard_size=section.shard_size,
        keep_texts=section.keep_texts,
        templates=section.templates,
        identity=f"{base.sha256}/{base.ref.dtype}",
    )
    manifest = {
        "graded_by": base.name,
        "graded_by_sha256": base.sha256,
        "policy": to_json(policy),
        "templates": section.templates,
        "facts": {"source": facts.source, "sha256": facts.sha256},
        "synonyms_sha256": synonyms.sha256,
    }
    write_mastery_data(out, rows, manifest)
