"""Memory decides how many rows are worked on at once, and nothing else: the same bits with any number of them."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from sftknow.errors import DeviceError
from sftknow.grading import transformers_sampler
from sftknow.grading.batch import Batch
from sftknow.grading.room import room_for
from sftknow.grading.transformers_sampler import TransformersSampler, load_sampler
from sftknow.machine import free_memory, used_memory
from sftknow.records import ModelRef, SamplingPolicy
from sftknow.resources import lab_folder
from tests.grading.test_transformers_sampler import TOKENIZER, build, requests

POLICY = SamplingPolicy(samples=4, max_new_tokens=6, seed=5)


@pytest.fixture(scope="module")
def sampler():
    return TransformersSampler(build("llama"), TOKENIZER)


@pytest.fixture
def bits(monkeypatch):
    """Every logit that anything was drawn from, by statement and the tokens so far."""
    seen = {}
    plain = Batch._draw

    def note(batch, logits, first_row, which):
        for row in sorted(set(batch.samples.row[which].tolist())):
            request = batch.requests[batch.rows.request[row]]
            steps = int(batch._steps(batch.rows.request[row : row + 1])[0])
            key = (request.fact_id, request.template, *batch.rows.tokens[row, :steps].tolist())
            seen[key] = logits[row - first_row].numpy().tobytes()
        return plain(batch, logits, first_row, which)

    monkeypatch.setattr(Batch, "_draw", note)
    return seen


class Bounded:
    """A sampler in rooms of given sizes."""

    def __init__(self, sampler, monkeypatch):
        self.sampler, self.monkeypatch = sampler, monkeypatch

    def __call__(self, asked, policy=POLICY, **bounds):
        def room(*arguments, **options):
            return replace(room_for(*arguments, **options), **bounds)

        with self.monkeypatch.context() as patched:
            patched.setattr(transformers_sampler, "room_for", room)
            return self.sampler.sample(asked, policy, keep_texts=True)


@settings(max_examples=4, deadline=None, suppress_health_check=[*HealthCheck])
@given(samples=st.integers(1, 40), rows=st.integers(1, 40), tokens=st.integers(1, 150), order=st.randoms())
def test_no_bit_depends_on_rows_samples_tokens_or_order(sampler, bits, monkeypatch, samples, rows, tokens, order):
    bounded, asked = Bounded(sampler, monkeypatch), requests(2)
    bits.clear()
    whole, expected = bounded(asked), dict(bits)
    bits.clear()
    shuffled = order.sample(range(len(asked)), len(asked))
    some = bounded([asked[i] for i in shuffled], samples=samples, rows=rows, tokens=tokens)
    assert some == [whole[i] for i in shuffled]
    assert bits == expected


def test_logits_are_the_same_bits_with_every_number_of_rows(sampler, bits, monkeypatch):
    asked = requests(3)
    bounded = Bounded(sampler, monkeypatch)
    whole, expected = bounded(asked), dict(bits)
    assert len(expected) > 60
    for count in (1, 11, 17, 30):
        bits.clear()
        assert bounded(asked, samples=count, rows=max(1, count // 2), tokens=3 * count) == whole
        assert bits == expected, f"with {count}"


@pytest.mark.slow
def test_the_lab_gives_the_same_bits_with_every_number_of_rows(monkeypatch, bits):
    sampler = load_sampler(ModelRef(path=str(lab_folder() / "model")), device="cpu")
    asked, policy = requests(3), SamplingPolicy(samples=10, max_new_tokens=16)
    bounded = Bounded(sampler, monkeypatch)
    whole = bounded(asked, policy)
    expected = dict(bits)
    for count in range(1, 91):
        bits.clear()
        assert bounded(asked, policy, samples=count, rows=count, tokens=7 * count) == whole
        assert bits == expected, f"with {count}"


def shape(vocabulary, wider=1):
    """A model of SmolLM2-135M's shape that takes no memory."""
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=576 * wider, intermediate_size=1536 * wider, num_hidden_layers=30,
        num_attention_heads=9 * wider, num_key_value_heads=3,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    return SimpleNamespace(
        config=config, device=torch.device("cpu"), dtype=torch.float32, parameters=lambda: iter([*model.parameters()])
    )


@pytest.mark.parametrize("vocabulary", [49_152, 128_256, 262_144])
def test_a_real_shape_stays_within_the_default(vocabulary, monkeypatch):
    monkeypatch.setattr("sftknow.grading.room.free_memory", lambda: 64 * 10**9)
    room = room_for(shape(vocabulary), 60, each=10, memory=None, most=None)
    assert 60 < room.samples < 2048
    assert room.rows >= 16
    kept = 2 * 30 * 3 * 64 * 60 * 4 * (room.samples + room.least)
    assert kept + room.rows * vocabulary * 4 < 1024e6
    monkeypatch.setattr("sftknow.grading.room.free_memory", lambda: 400 * 10**6)
    assert room_for(shape(vocabulary), 60, each=10, memory=None, most=None).samples < room.samples


def test_small_models_have_many_samples_and_large_ones_short_passes():
    small = room_for(build("llama"), 40, each=10, memory=None, most=None)
    assert small.samples == 2048
    large = room_for(shape(49_152, wider=8), 40, each=10, memory=100 * 10**9, most=None)
    assert large.tokens < small.tokens
    assert large.rows < small.rows


def test_too_little_memory_is_refused_with_what_is_needed(sampler):
    held = used_memory()
    with pytest.raises(DeviceError, match=r"--memory 0\.00GB does not hold the model .* give at least") as refused:
        room_for(sampler.model, 40, each=10, memory=10**6, most=None)
    enough = float(str(refused.value).split("at least ")[1].split("GB")[0]) * 1e9
    assert held < enough < held + 10**9
    room_for(sampler.model, 40, each=10, memory=int(enough + 2 * 10**8), most=None)


def test_what_the_machine_has_is_told():
    free = free_memory()
    assert free is None or 10**7 < free < 10**14
    before = used_memory()
    held = np.ones(40_000_000)
    assert before == 0 or used_memory() - before > 0.8 * held.nbytes
