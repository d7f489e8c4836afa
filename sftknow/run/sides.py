"""What two models are asked, and the two loaded: what `sftknow check` and `sftknow repair` begin with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from sftknow.answers import Synonyms
from sftknow.artifacts.files import digest
from sftknow.checking.options import AskingOptions
from sftknow.facts.prompts import Statements
from sftknow.facts.sources import load_facts
from sftknow.facts.topics import Topic, load_topics
from sftknow.grading.options import GradingOptions
from sftknow.grading.samplers import SAMPLERS
from sftknow.models.limits import most_positions, refuse_long
from sftknow.models.loading import load_config, load_tokenizer
from sftknow.models.options import ModelOptions
from sftknow.models.resolving import BaseModel, resolve_base, resolve_model
from sftknow.records import Fact, ModelRef, to_json
from sftknow.run.asking import Side
from sftknow.run.related import refuse_unrelated


@dataclass(frozen=True, kw_only=True)
class Material:
    """The facts, and the statements of their topics."""

    facts: tuple[Fact, ...]
    topics: Mapping[str, Topic]
    sha256: str
    """Of the facts."""

    @classmethod
    def load(cls, source: str, topics: Path | None, synonyms: Path | None) -> Material:
        """See `load_facts`; ``topics`` and ``synonyms`` are files of the person's own."""
        known = load_topics(topics)
        found = load_facts(source, topics=known, synonyms=Synonyms.load(synonyms))
        return cls(facts=found.facts, topics=known, sha256=found.sha256)

    def key(self, models: Sequence[BaseModel], options: AskingOptions, *more: object) -> str:
        """What identifies the asking of models."""
        who = [[model.sha256, model.ref.dtype] for model in models]
        return digest([*who, self.sha256, to_json(options), digest(self.topics), *more])


def resolve_sides(
    base: str, tuned: str, running: ModelOptions, *, any_pair: bool = False
) -> tuple[list[BaseModel], list[str]]:
    """Find both models on this machine or the Hub; returns them, and what to say of them.

    Raises:
        ModelError, CheckpointError, HubError: one is not there, or the tuned one was not made from the base, which
            ``any_pair`` allows.
    """
    one, two = map(ModelRef.parse, (base, tuned))
    models = [
        resolve_base(one.path, one.revision, running.dtype),
        resolve_model(two.path, two.revision, running.dtype),
    ]
    notes = []
    if models[0].sha256 == models[1].sha256:
        notes.append("the two models have the same weights")
    elif not any_pair:
        refuse_unrelated(*(Path(model.ref.path) for model in models), names=(base, tuned))
    return models, notes


def load_sides(
    models: Sequence[BaseModel],
    names: Sequence[str],
    folders: Sequence[Path],
    material: Material,
    options: AskingOptions,
    device: str,
) -> list[Side]:
    """Load models to be asked the facts of a material.

    Args:
        models: from `resolve_sides`.
        names: as the person gave them.
        folders: where what each of them says is kept.

    Raises:
        ModelError: a model cannot be loaded, or takes too few tokens.
    """
    grading = GradingOptions()
    sides = [
        Side(model, SAMPLERS.get(grading.sampler)(model.ref, grading, device), load_tokenizer(model.ref), folder)
        for model, folder in zip(models, folders, strict=True)
    ]
    for side, given in zip(sides, names, strict=True):
        asked = (text for fact in material.facts for text in Statements(material.topics[fact.topic], fact.subject))
        refuse_long(
            given,
            side.tokenizer,
            chain(asked, [side.question(max(material.facts, key=lambda fact: len(fact.question)))]),
            new_tokens=options.max_new_tokens,
            positions=most_positions(load_config(side.model.ref)),
            way_out="Give a smaller --max-new-tokens, other facts",
        )
    return sides
