"""Strategies that change what counts in the loss, what is trained on, and what moving away from the base costs."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest
import torch

from sftknow.artifacts.files import read_json
from sftknow.errors import MasteryDataError, ModelError, RecipeError
from sftknow.records import ModelRef
from sftknow.training.examples import IGNORED, encode
from sftknow.training.recipe import SFTRecipe
from sftknow.training.strategies.data import MasterySampling, Replay, shares_of
from sftknow.training.strategies.knowledge import known_statements
from sftknow.training.strategies.losses import Flow, SelectiveTokenMasking
from sftknow.training.strategies.measures import fisher_diagonal, padded, token_losses
from sftknow.training.strategies.penalties import EWC, Divergence, KLToBase
from sftknow.training.train import LoadedBase, TrainingSet, load_base
from tests.training.small_strategies import FACTS, KNOWLEDGE, RECIPE, a_pass, raw, scene_of, tuned


@pytest.fixture(scope="module")
def ref(tiny_model: Path) -> ModelRef:
    return ModelRef(path=str(tiny_model))


@pytest.fixture(scope="module")
def loaded(ref: ModelRef) -> LoadedBase:
    return load_base(ref, RECIPE)


@pytest.fixture(scope="module")
def data(loaded: LoadedBase) -> TrainingSet:
    examples = encode(loaded.tokenizer, FACTS, answer_only_loss=True, max_length=256)
    return TrainingSet(examples=examples, record={"fact_ids": [fact.id for fact in FACTS]}, knowledge=KNOWLEDGE)


def one_by_one(loaded: LoadedBase, data: TrainingSet) -> list[torch.Tensor]:
    """Losses of the tokens that count, each sequence by itself."""
    found = []
    for example in data.examples:
        with torch.no_grad():
            logits = loaded.model(input_ids=torch.tensor([example.input_ids])).logits[0, :-1].log_softmax(-1)
        labels = torch.tensor(example.labels[1:])
        chosen = logits.gather(-1, labels.clamp(min=0)[:, None])[:, 0]
        found.append(-chosen[labels != IGNORED])
    return found


def test_losses_under_the_base_are_those_of_each_sequence_alone(loaded: LoadedBase, data: TrainingSet) -> None:
    for batched, alone in zip(token_losses(loaded.model, data.examples, 5), one_by_one(loaded, data), strict=True):
        torch.testing.assert_close(batched, alone)


def test_stm_masks_the_tokens_of_high_perplexity(loaded: LoadedBase, data: TrainingSet) -> None:
    limit = float(torch.cat(one_by_one(loaded, data)).median().exp())
    masked = SelectiveTokenMasking(perplexity=limit).prepare(data, scene_of(loaded))
    for before, after, losses in zip(data.examples, masked.examples, one_by_one(loaded, data), strict=True):
        places = [i for i, label in enumerate(before.labels) if label != IGNORED]
        wanted = [loss <= math.log(limit) + 1e-5 for loss in losses.tolist()]
        assert [after.labels[i] != IGNORED for i in places] == wanted
        assert [a for a, b in zip(after.labels, before.labels, strict=True) if a != b] == [IGNORED] * wanted.count(
            False
        )
    total = sum(map(len, one_by_one(loaded, data)))
    assert masked.record["tokens"] == total
    assert 0 < masked.record["tokens_masked"] < total
    with pytest.raises(ModelError, match=f"stm: the base finds each of the {total} tokens .* raise its option perplex"):
        SelectiveTokenMasking(perplexity=1.01).prepare(data, scene_of(loaded))


def test_flow_weighs_by_the_loss_under_the_base(
    ref: ModelRef, loaded: LoadedBase, data: TrainingSet, tmp_path: Path
) -> None:
    losses = one_by_one(loaded, data)
    means = [float(loss.mean()) for loss in losses]
    weights = [math.exp(-2 * mean / median(means)) for mean in means]
    found = Flow(strength=2).prepare(data, scene_of(loaded)).examples
    assert [example.weight for example in found] == pytest.approx(weights, rel=1e-4)
    whole = tuned(ref, loaded, tmp_path / "whole", Flow(strength=2))
    parts = tuned(ref, loaded, tmp_path / "parts", Flow(strength=2), replace(RECIPE, per_device_batch_size=1))
    first = sum(w * float(loss.sum()) for w, loss in zip(weights[:4], losses[:4], strict=True))
    curves = [[step["loss"] for step in read_json(made.checkpoint / "loss.json")] for made in (whole, parts)]
    assert curves[0][0] == pytest.approx(first / sum(map(len, losses[:4])), rel=1e-3)
    assert curves[1] == pytest.approx(curves[0], rel=1e-2)


# ---- data ------------------------------------------------------------------------------------------------------


def test_replay_mixes_known_statements_evenly_into_the_facts(loaded: LoadedBase, data: TrainingSet) -> None:
    mixed = Replay(ratio=0.5).prepare(data, scene_of(loaded))
    assert mixed.record["replayed"] == 8
    own = [e for e in mixed.examples if e in data.examples]
    assert own == list(data.examples), "the facts keep their order"
    places = [i for i, e in enumerate(mixed.examples) if e not in data.examples]
    assert len(places) == 8
    assert max(b - a for a, b in pairwise(places)) <= 4
    known = {row.fact.subject: row for row in KNOWLEDGE.rows if row.mastery.rate >= 0.5}
    texts = [loaded.tokenizer.decode(mixed.examples[i].input_ids) for i in places]
    subjects = set()
    for place, text in zip(places, texts, strict=True):
        subject = text.removeprefix("<s>").strip().partition(" has, as page")[0]
        assert text.endswith(f"says, {known[subject].fact.object}"), "no end token: a statement may go on"
        assert known[subject].fact not in FACTS
        assert mixed.examples[place].labels == mixed.examples[place].input_ids
        subjects.add(subject)
    assert len(subjects) == 8, "a second statement of a fact only where each has had one"
    again = Replay(ratio=0.5).prepare(data, scene_of(loaded))
    assert again.examples == mixed.examples
    assert Replay(ratio=0.5).prepare(data, scene_of(loaded, seed=1)).examples != mixed.examples


def test_too_few_known_statements_and_no_graded_facts_are_refused(loaded: LoadedBase, data: TrainingSet) -> None:
    with pytest.raises(
        MasteryDataError, match=r"replay wants 1600 statements .*R of at least 0.5\) and there are \d+ of"
    ):
        Replay(ratio=100).prepare(data, scene_of(loaded))
    for strategy in (Replay(), MasterySampling()):
        with pytest.raises(RecipeError, match=f"the strategy {strategy.name} needs graded facts"):
            strategy.prepare(data, scene_of(loaded, knowledge=None))
    with pytest.raises(RecipeError, match="the strategy ewc needs graded facts"):
        EWC().start(scene_of(loaded, knowledge=None))


def test_mastery_sampling_shows_known_facts_more_often(loaded: LoadedBase, data: TrainingSet) -> None:
    rates = {row.fact.id: row.mastery.rate for row in KNOWLEDGE.rows}
    shown = MasterySampling(strength=2).prepare(data, scene_of(loaded))
    times = shown.record["times_shown"]
    assert sum(times) == len(shown.examples) == len(FACTS)
    assert Counter(data.examples.index(e) for e in shown.examples) == {i: n for i, n in enumerate(times) if n}
    scale = len(FACTS) / sum(math.exp(2 * rates[fact.id]) for fact in FACTS)
    for fact, count in zip(FACTS, times, strict=True):
        assert abs(count - scale * math.exp(2 * rates[fact.id])) < 1
    assert list(MasterySampling(strength=0).prepare(data, scene_of(loaded)).examples) == list(data.examples)


def test_shares_are_whole_and_add_up() -> None:
    for total, weights in ((7, [1.0] * 7), (10, [0.1, 5, 0.1, 2.2]), (3, [1e-9, 1]), (5, [1 / 3] * 5)):
        shares = shares_of(total, weights)
        assert sum(shares) == total
        exact = [total * weight / sum(weights) for weight in weights]
        assert all(abs(a - b) < 1 for a, b in zip(shares, exact, strict=True))
    assert shares_of(7, [0.3] * 7) == [1] * 7


# ---- penalties -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["prompt", "all"])
def test_kl_is_that_of_the_two_models(loaded: LoadedBase, positions: str) -> None:
    scene = scene_of(loaded)
    hooks = Divergence(scene, KLToBase(strength=0.5, positions=positions))  # type: ignore[arg-type]
    here = a_pass(loaded, scene.model)
    assert float(hooks.penalty(here)) == pytest.approx(0, abs=1e-6)  # type: ignore[arg-type]
    torch.manual_seed(0)
    for parameter in scene.model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    expected, prompts = 0.0, encode(loaded.tokenizer, FACTS[:4], answer_only_loss=True, max_length=256)
    for example in prompts:
        ids = torch.tensor([example.input_ids])
        with torch.no_grad():
            p, q = (model(input_ids=ids).logits[0, :-1].log_softmax(-1) for model in (loaded.model, scene.model))
        kl = (p.exp() * (p - q)).sum(-1)
        expected += float(sum(k for k, label in zip(kl, example.labels[1:], strict=True)
                              if positions == "all" or label == IGNORED))  # fmt: skip
    found = hooks.penalty(here)
    assert found is not None
    assert float(found) == pytest.approx(0.5 * expected / int(here.tokens), rel=1e-3)
    found.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None for parameter in loaded.model.parameters())
    assert scene.model.lm_head.weight.grad.abs().sum() > 0


def test_kl_keeps_the_model_near_the_base_on_prompts(ref: ModelRef, loaded: LoadedBase, tmp_path: Path) -> None:
    here = a_pass(loaded, None)

    def moved(strategy: KLToBase | None, name: str) -> float:
        model = load_base(ModelRef(path=str(tuned(ref, loaded, tmp_path / name, strategy).checkpoint)), RECIPE).model
        measure = Divergence(scene_of(loaded), KLToBase())
        return float(measure.penalty(replace(here, model=model)))  # type: ignore[arg-type]

    assert moved(KLToBase(strength=20), "near") < 0.7 * moved(None, "plain")
    with pytest.raises(RecipeError, match="kl looks at prompts that do not count in the loss"):
        SFTRecipe(answer_only_loss=False, strategy=KLToBase())
    SFTRecipe(answer_only_loss=False, strategy=KLToBase(positions="all"))


def test_the_fisher_information_against_brute_force(loaded: LoadedBase) -> None:
    """The mean over examples of the squared gradient of log p, each by transformers' own loss and a backward pass."""
    examples = known_statements(scene_of(loaded), "ewc", known=0.5, count=3, without=(), object_only=True)
    assert all(IGNORED in example.labels and example.labels[-1] != IGNORED for example in examples)
    found = fisher_diagonal(loaded.model, examples)
    assert all(parameter.grad is None for parameter in loaded.model.parameters())
    model = loaded.copy_model()
    squares = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for example in examples:
        model.zero_grad()
        rows = padded([example], torch.device("cpu"))
        loss = model(input_ids=rows["input_ids"], labels=rows["labels"]).loss
        (loss * sum(label != IGNORED for label in example.labels[1:])).backward()
        for name, parameter in model.named_parameters():
            squares[name] += parameter.grad.square() / len(examples)
    assert found.keys() == squares.keys()
    for name, square in squares.items():
        torch.testing.assert_close(found[name], square, rtol=1e-3, atol=1e-4 * float(square.max()))


def test_ewc_holds_what_matters_more_than_what_does_not(ref: ModelRef, loaded: LoadedBase, tmp_path: Path) -> None:
    strong = EWC(strength=1e5, statements=8)
    assert raw(tuned(ref, loaded, tmp_path / "a", strong)) == raw(tuned(ref, None, tmp_path / "b", strong))
    examples = known_statements(scene_of(loaded), "ewc", known=0.5, count=8, without=(), object_only=True)
    importance = torch.cat([f.flatten() for f in fisher_diagonal(loaded.model, examples).values()])
    base = dict(loaded.model.named_parameters())

    def moves(model: object) -> torch.Tensor:
        after = load_base(ModelRef(path=str(model.checkpoint)), RECIPE).model  # type: ignore[attr-defined]
        return torch.cat([(p - base[name]).abs().flatten() for name, p in after.named_parameters()]).detach()

    held = moves(tuned(ref, loaded, tmp_path / "held", strong))
    free = moves(tuned(ref, loaded, tmp_path / "free", None))
    top = importance > importance.quantile(0.99)
    assert held[top].mean() / free[top].mean() < 0.8 * held[~top].mean() / free[~top].mean()
