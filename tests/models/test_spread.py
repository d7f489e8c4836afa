"""One model over several devices: a GPU's worth of layers each. Here the devices are the CPU and the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model

from sftknow.divergence.forward import first_token_logits, greedy
from sftknow.errors import DeviceError
from sftknow.evaluation.harness import Harness
from sftknow.grading.sampling import SampleRequest
from sftknow.grading.transformers_sampler import TransformersSampler
from sftknow.models import loading
from sftknow.models.loading import SPREAD, find_device, load_model, load_tokenizer
from sftknow.records import ModelRef, SamplingPolicy
from tests.tiny import tiny_facts


def spread_out(folder: Path, work: Path) -> torch.nn.Module:
    """The model with its second layer and its head on the disk: accelerate's hooks bring them and the values along."""
    model = load_model(ModelRef(path=str(folder)))
    places = dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "model.layers.0", "model.norm"), "cpu")
    places |= {"model.layers.1": "disk", "lm_head": "disk"}
    return dispatch_model(model, places, main_device="cpu", offload_dir=str(work), force_hooks=True)


def test_grading_scoring_and_divergence_take_a_model_that_lies_in_several_places(
    tiny_model: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    whole, tokenizer = load_model(ModelRef(path=str(tiny_model))), load_tokenizer(ModelRef(path=str(tiny_model)))
    apart = spread_out(tiny_model, tmp_path / "offloaded")
    assert {weight.device.type for weight in apart.parameters()} == {"cpu", "meta"}
    facts = tiny_facts(6)
    asked = [SampleRequest(fact_id=f.id, template=0, prompt=f.question, answers=("e",)) for f in facts]
    policy = SamplingPolicy(samples=4, max_new_tokens=8)
    found = [
        [tally.hits for tally in TransformersSampler(model, tokenizer).sample(asked, policy)]
        for model in (whole, apart)
    ]
    assert sum(found[0]) > 0
    # Weights that lie elsewhere in memory may be added up in another order.
    assert sum(abs(one - other) for one, other in zip(*found, strict=True)) <= 1
    scores = [
        [
            (m.task, m.metric, m.value)
            for m in Harness(tiny_dataset, device="cpu").score(m_, tokenizer, name="m").metrics
        ]
        for m_ in (whole, apart)
    ]
    assert scores[0] == scores[1]
    prompts = [tokenizer(fact.question)["input_ids"] for fact in facts]
    for (_, one), (_, other) in zip(*(first_token_logits(m, prompts, 4) for m in (whole, apart)), strict=True):
        torch.testing.assert_close(one, other)
    limits = [5] * len(prompts)
    assert greedy(whole, prompts, limits, ()) == greedy(apart, prompts, limits, ())


def test_spread_wants_gpus_that_hold_the_model(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="no GPUs to spread a model over; use cpu or auto"):
        load_model(ModelRef(path=str(tiny_model)), device=SPREAD)
    # Where accelerate would leave layers in main memory: here all of them, there being no GPU.
    monkeypatch.setattr(loading, "find_device", lambda name: torch.device("cpu"))
    with pytest.raises(DeviceError, match=r"do not hold .* would stay in main memory"):
        load_model(ModelRef(path=str(tiny_model)), device=SPREAD)


@pytest.mark.gpu
def test_spread_over_the_gpus_that_are_there(tiny_model: Path) -> None:
    model = load_model(ModelRef(path=str(tiny_model)), device=SPREAD)
    assert find_device(SPREAD).type == "cuda"
    assert {weight.device.type for weight in model.parameters()} == {"cuda"}
