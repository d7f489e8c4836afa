"""The model and the facts that ship, against the code that makes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftknow.answers import Synonyms
from sftknow.facts.prompts import statements_for
from sftknow.facts.sources import FactSet, load_facts
from sftknow.facts.topics import load_topics
from sftknow.grading.sampling import SampleRequest
from sftknow.grading.transformers_sampler import TransformersSampler
from sftknow.lab.world import WorldSize, build_world
from sftknow.records import SamplingPolicy
from sftknow.resources import lab_folder
from sftknow.run.laboratory import build_lab

MODEL = lab_folder() / "model"


@pytest.fixture(scope="module")
def facts() -> FactSet:
    return load_facts("lab", topics=load_topics(), synonyms=Synonyms.load())


def knowledge(model: Path, facts: FactSet, *, every: int) -> tuple[np.ndarray, np.ndarray]:
    """Hits among three samples of three statements, and the exposures, of every n-th fact."""
    topics = load_topics()
    chosen = facts.facts[::every]
    requests = [
        SampleRequest(fact_id=fact.id, template=template, prompt=statement, answers=fact.answers)
        for fact in chosen
        for template, statement in list(enumerate(statements_for(topics[fact.topic], fact.subject)))[::8]
    ]
    sampler = TransformersSampler(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), AutoTokenizer.from_pretrained(model)
    )
    hits = dict.fromkeys((fact.id for fact in chosen), 0)
    for tally in sampler.sample(requests, SamplingPolicy(samples=3)):
        hits[tally.fact_id] += tally.hits
    assert facts.exposures is not None
    return np.array(list(hits.values())) / 9, np.array([facts.exposures[fact.id].exposures for fact in chosen])


def test_model_is_small() -> None:
    assert (MODEL / "model.safetensors").stat().st_size <= 8_000_000
    assert {t.dtype for t in load_file(MODEL / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((MODEL / "config.json").read_text())["dtype"] == "float32", "stored small, loaded in float32"


def test_facts_are_the_worlds(facts: FactSet) -> None:
    built = build_world(load_topics(), size=WorldSize(), seed=0)
    assert [(f.id, f.subject, f.object, f.question) for f in facts.facts] == [
        (f.id, f.subject, f.object, f.question) for f in built
    ]


def test_what_was_seen_often_is_known_and_what_was_not_seen_is_not(facts: FactSet) -> None:
    rate, seen = knowledge(MODEL, facts, every=20)
    assert rate[seen == 0].mean() < 0.15
    assert rate[seen > 50].mean() > 0.5
    assert np.corrcoef(np.argsort(np.argsort(seen)), np.argsort(np.argsort(rate)))[0, 1] > 0.4


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_rebuilt_lab_knows_what_the_shipped_one_knows(facts: FactSet, tmp_path: Path) -> None:
    """Another machine gives other bits; what the model knows must be the same within the sampling error."""
    built = build_lab("world", tmp_path / "lab")
    again = load_facts(str(built.facts_file), topics=load_topics(), synonyms=Synonyms.load())
    assert again.sha256 == facts.sha256
    shipped, seen = knowledge(MODEL, facts, every=5)
    rebuilt, _ = knowledge(built.model, facts, every=5)
    for low, high in ((0, 0), (1, 20), (21, 50), (51, 200)):
        chosen = (seen >= low) & (seen <= high)
        assert rebuilt[chosen].mean() == pytest.approx(shipped[chosen].mean(), abs=0.08)
    assert np.corrcoef(shipped, rebuilt)[0, 1] > 0.8
