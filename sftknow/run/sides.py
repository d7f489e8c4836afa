"""What two models are asked, and the two loaded: what `sftknow check` and `sftknow repair` begin with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path

from sftknow.artifacts.files import digest
from sftknow.checking.options import AskingOptions
from sftknow.checkpoints.adapters import is_adapter
from sftknow.facts.prompts import Statements
from sftknow.facts.topics import Topic, load_topics
from sftknow.grading.options import GradingOptions
from sftknow.grading.samplers import SAMPLERS
from sftknow.models.limits import most_positions, refuse_long
from sftknow.models.loading import load_config, load_tokenizer
from sftknow.models.options import ModelOptions
from sftknow.models.resolving import BaseModel, resolve_base, resolve_model
from sftknow.recipes.schema import FactsSection
from sftknow.records import Fact, ModelRef
from sftknow.run.asking import Side
from sftknow.run.checkpoint_pairs import LocalPair, refuse_swapped
from sftknow.run.python import read_facts
from sftknow.run.related import refuse_unrelated


@dataclass(frozen=True, kw_only=True)
class Material:
    """The facts, and the statements of their topics."""

    facts: tuple[Fact, ...]
    topics: Mapping[str, Topic]
    sha256: str
    """Of the facts."""
    source: str
    """As the person gave it."""

    @classmethod
    def load(cls, facts: str | Path | FactsSection) -> Material:
        """Facts as `load_facts` takes them, or with columns, topics, synonyms of the person's own."""
        wanted = facts if isinstance(facts, FactsSection) else FactsSection(source=str(facts))
        found, _ = read_facts(wanted)
        return cls(facts=found.facts, topics=load_topics(wanted.topics), sha256=found.sha256, source=wanted.source)

    def key(self, models: Sequence[BaseModel], options: AskingOptions, *more: object) -> str:
        """What identifies the asking of models; not how long it may take, nor what its outcome is held against."""
        who = [[model.sha256, model.ref.dtype] for model in models]
        how = {field.name: getattr(options, field.name) for field in fields(AskingOptions) if field.name != "minutes"}
        return digest([*who, self.sha256, how, digest(self.topics), *more])


def resolve_sides(
    base: str, tuned: str, running: ModelOptions, *, any_pair: bool | None = None
) -> tuple[list[BaseModel], list[str]]:
    """Find both models on this machine or the Hub; returns them, and what to say of them.

    Raises:
        ModelError, CheckpointError, HubError: one is not there, the two are swapped, or the tuned one was not made from
            the base, which ``any_pair`` allows; None where the caller has no such option.
    """
    one, two = map(ModelRef.parse, (base, tuned))
    models = [
        resolve_base(one.path, one.revision, running.dtype),
        resolve_model(two.path, two.revision, running.dtype),
    ]
    notes = []
    if not is_adapter(Path(models[1].ref.path)):
        refuse_swapped(LocalPair(base=models[0], tuned=Path(models[1].ref.path)), base, tuned)
    if models[0].sha256 == models[1].sha256:
        notes.append("the two models have the same weights")
    elif not any_pair:
        option = None if any_pair is None else "--any-pair"
        refuse_unrelated(*(Path(model.ref.path) for model in models), names=(base, tuned), option=option)
    return models, notes


CHAT_BASE = "the base is a chat model itself; its statements are completed as plain text"


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
