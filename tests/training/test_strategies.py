"""Training strategies: the property that makes each of them what it is, and what they have in common."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sftknow.artifacts.files import read_json
from sftknow.errors import ModelError, RecipeError
from sftknow.records import ModelRef, TrainedModel
from sftknow.training import trainer
from sftknow.training.arguments import training_arguments
from sftknow.training.distributed import check_spread
from sftknow.training.examples import encode
from sftknow.training.recipe import LoraSettings, SFTRecipe, TrainingOptions
from sftknow.training.strategies import STRATEGIES, Strategy
from sftknow.training.strategies.adapters import OSF
from sftknow.training.strategies.data import MasterySampling, Replay
from sftknow.training.strategies.distillation import SelfDistillation
from sftknow.training.strategies.frozen import (
    AttentionOnly,
    FeedForwardOnly,
    FrozenRounds,
    HalfFineTuning,
    LastLayers,
)
from sftknow.training.strategies.losses import DynamicFineTuning, Flow, SelectiveTokenMasking
from sftknow.training.strategies.penalties import EWC, L2SP, KLToBase, WeightPenalty
from sftknow.training.strategies.updates import MoFO, Restoring
from sftknow.training.train import LoadedBase, load_base
from tests.training.small_strategies import FACTS, RECIPE, a_pass, raw, scene_of, tensors, tuned


@pytest.fixture(scope="module")
def ref(tiny_model: Path) -> ModelRef:
    return ModelRef(path=str(tiny_model))


@pytest.fixture(scope="module")
def loaded(ref: ModelRef) -> LoadedBase:
    return load_base(ref, RECIPE)


@pytest.fixture(scope="module")
def before(tiny_model: Path) -> dict[str, torch.Tensor]:
    return load_file(tiny_model / "model.safetensors")


@pytest.fixture(scope="module")
def plain(ref: ModelRef, loaded: LoadedBase, tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    """Plain fine-tuning. Read only."""
    return tuned(ref, loaded, tmp_path_factory.mktemp("plain") / "out", None)


# ---- what all have in common -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "strategy",
    [
        L2SP(strength=0),
        EWC(strength=0),
        KLToBase(strength=0),
        SelfDistillation(strength=0),
        AttentionOnly(region="all"),
        HalfFineTuning(share=0),
        MoFO(share=1),
        Restoring(share="0%"),
        SelectiveTokenMasking(perplexity=1e30),
        Flow(strength=0),
        Replay(ratio=0),
        MasterySampling(strength=0),
    ],
    ids=lambda strategy: type(strategy).__name__,
)
def test_at_no_strength_it_is_plain_fine_tuning(
    ref: ModelRef, loaded: LoadedBase, plain: TrainedModel, tmp_path: Path, strategy: Strategy
) -> None:
    assert raw(tuned(ref, loaded, tmp_path / "out", strategy)) == raw(plain)


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_the_defaults_change_something_and_are_noted(
    ref: ModelRef, loaded: LoadedBase, plain: TrainedModel, tmp_path: Path, name: str
) -> None:
    kept = {key: tensor.clone() for key, tensor in loaded.model.state_dict().items()}
    # A base that knows nothing finds no token likely.
    more = {"stm": {"perplexity": 380.0}}.get(name, {})
    strategy = STRATEGIES.get(name)(**more)
    made = tuned(ref, loaded, tmp_path / "out", strategy)
    assert raw(made) != raw(plain)
    assert all(torch.equal(tensor, kept[key]) for key, tensor in loaded.model.state_dict().items())
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())
    noted = read_json(made.checkpoint / "sftknow.json")["sft"]["recipe"]["strategy"]
    assert noted == strategy.record()
    assert noted["name"] == name


def test_a_base_that_is_not_shared_gives_the_same_bytes(ref: ModelRef, loaded: LoadedBase, tmp_path: Path) -> None:
    strategy = L2SP(strength=3)
    assert raw(tuned(ref, None, tmp_path / "a", strategy)) == raw(tuned(ref, loaded, tmp_path / "b", strategy))


def test_its_own_learning_rate(ref: ModelRef, loaded: LoadedBase, tmp_path: Path) -> None:
    made = tuned(ref, loaded, tmp_path / "out", DynamicFineTuning(learning_rate=5e-3))
    assert read_json(made.checkpoint / "loss.json")[0]["learning_rate"] == pytest.approx(5e-3)


def test_plain_fine_tuning_is_noted_as_ever() -> None:
    assert "strategy" not in SFTRecipe().record()
    assert SFTRecipe(strategy=L2SP()).record()["strategy"] == {"name": "l2-sp", "learning_rate": None, "strength": 0.1}


@pytest.mark.parametrize(
    "strategy",
    [
        HalfFineTuning(round_steps=2),
        MoFO(),
        Restoring(every=2),
        EWC(statements=4),
        Flow(),
        Replay(),
        OSF(),
        SelfDistillation(),
    ],
    ids=lambda strategy: type(strategy).__name__,
)
def test_a_training_goes_on_from_its_snapshot_to_the_same_bytes(
    ref: ModelRef, loaded: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: Strategy
) -> None:
    straight = tuned(ref, loaded, tmp_path / "straight", strategy)
    options = TrainingOptions(save_steps=1)
    seen: list[int] = []

    def cut(watch: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        seen.append(state.global_step)
        if seen == [1, 2, 3]:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer.Watch, "on_step_end", cut)
    with pytest.raises(KeyboardInterrupt):
        tuned(ref, loaded, tmp_path / "out", strategy, options=options)
    resumed = tuned(ref, loaded, tmp_path / "out", strategy, options=options)
    assert seen[:5] == [1, 2, 3, 3, 4], "it went on from the snapshot of step 2"
    assert raw(resumed) == raw(straight)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(RecipeError, match="LoRA and the strategy dft do not go together"):
        SFTRecipe(lora=LoraSettings(), strategy=DynamicFineTuning())
    with pytest.raises(RecipeError, match="mofo needs AdamW's momenta and optimizer is sgd"):
        SFTRecipe(optimizer="sgd", strategy=MoFO())
    with pytest.raises(RecipeError, match="strategy half needs the whole model on each device"):
        check_spread(SFTRecipe(strategy=HalfFineTuning()), True)
    check_spread(SFTRecipe(strategy=HalfFineTuning()), False)
    check_spread(SFTRecipe(strategy=DynamicFineTuning()), True)
    for wrong, words in (({"strength": -1}, "strength should be"), ({"strength": "much"}, "strength should be")):
        with pytest.raises(RecipeError, match=words):
            L2SP(**wrong)
    with pytest.raises(RecipeError, match="region: unknown region 'heads'"):
        AttentionOnly(region="heads")


@pytest.mark.parametrize("name", ["Mine", "mixed", "lora", "base", "mine-b2", "b3", "mine_too", "-x"])
def test_names_that_cells_could_not_have_are_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=f"{name} cannot be the name of a training strategy"):
        STRATEGIES.register(name)
    assert name not in STRATEGIES


def test_the_page_has_every_strategy_with_its_options_and_defaults() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "strategies.md").read_text(encoding="utf-8")
    table = page.partition("| name | what it does |")[2].partition("\n\n")[0]
    rows = {match[1]: match[0] for match in re.finditer(r"^\| `([a-z0-9-]+)` \|.*$", table, re.MULTILINE)}
    assert sorted(rows) == sorted(STRATEGIES)
    for name, row in rows.items():
        told = dict(re.findall(r"`(\w+)` \(([^):]+)", row.rpartition(" | ")[2]))
        options = {key: value for key, value in vars(STRATEGIES.get(name)()).items() if key != "learning_rate"}
        assert told == {key: "none" if value is None else str(value) for key, value in options.items()}, name


# ---- losses ----------------------------------------------------------------------------------------------------


def test_dft_is_trls_loss(ref: ModelRef, loaded: LoadedBase, tmp_path: Path) -> None:
    """Against its formula, and against a trainer of TRL's that was asked for it."""
    made = tuned(ref, loaded, tmp_path / "out", DynamicFineTuning())
    here = a_pass(loaded, loaded.model)
    logits = loaded.model(input_ids=here.inputs["input_ids"], attention_mask=here.inputs["attention_mask"]).logits
    labels = here.inputs["labels"][:, 1:]
    chosen = logits[:, :-1].log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0][labels != -100]
    curve = read_json(made.checkpoint / "loss.json")
    assert curve[0]["loss"] == pytest.approx(float((-chosen.exp() * chosen).mean()), rel=1e-4)
    arguments = training_arguments(RECIPE, tmp_path / "trl", seed=0)
    arguments.loss_type = "dft"
    examples = encode(loaded.tokenizer, FACTS, answer_only_loss=True, max_length=256)
    other = trainer.build_trainer(loaded.copy_model(), loaded.tokenizer, examples, arguments)
    other.train()
    assert [e["loss"] for e in other.state.log_history if "loss" in e] == [e["loss"] for e in curve]


# ---- penalties -------------------------------------------------------------------------------------------------


def test_the_gradient_of_l2_sp_by_finite_differences(loaded: LoadedBase) -> None:
    scene = scene_of(loaded)
    hooks = WeightPenalty(scene, 0.7)
    torch.manual_seed(0)
    for parameter in scene.model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    here = a_pass(loaded, scene.model)
    hooks.penalty(here).backward()  # type: ignore[union-attr]
    base = dict(loaded.model.named_parameters())
    for name, parameter in scene.model.named_parameters():
        torch.testing.assert_close(parameter.grad, 0.7 * (parameter - base[name]).detach())
    weight = scene.model.model.layers[1].mlp.up_proj.weight
    place, step = (3, 5), 1e-2
    at = {}
    for sign in (1, -1):
        weight.data[place] += sign * step
        at[sign] = sum(
            0.35 * float((p.double() - base[n].double()).square().sum()) for n, p in scene.model.named_parameters()
        )
        assert float(hooks.penalty(here)) == pytest.approx(at[sign], rel=1e-5)  # type: ignore[arg-type]
        weight.data[place] -= sign * step
    assert float(weight.grad[place]) == pytest.approx((at[1] - at[-1]) / (2 * step), rel=1e-3)
    assert float(hooks.penalty(a_pass(loaded, scene.model, passes=4))) == pytest.approx(  # type: ignore[arg-type]
        float(hooks.penalty(here)) / 4  # type: ignore[arg-type]
    )


def test_l2_sp_holds_the_weights_near_the_base(
    ref: ModelRef, loaded: LoadedBase, plain: TrainedModel, before: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    def distance(model: TrainedModel) -> float:
        return sum(float((tensor - before[name]).square().sum()) for name, tensor in tensors(model).items())

    near = tuned(ref, loaded, tmp_path / "near", L2SP(strength=10))
    assert distance(near) < 0.5 * distance(plain)
    parts = tuned(ref, loaded, tmp_path / "parts", L2SP(strength=10), replace(RECIPE, per_device_batch_size=1))
    for name, tensor in tensors(near).items():
        torch.testing.assert_close(tensors(parts)[name], tensor, rtol=0, atol=2e-3)


# ---- frozen ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "trained"),
    [
        (AttentionOnly(), "self_attn"),
        (FeedForwardOnly(), ".mlp."),
        (FeedForwardOnly(region="embedding"), ("embed_tokens", "lm_head")),
        (LastLayers(), "layers.1."),
    ],
    ids=["attention", "mlp", "embedding", "last"],
)
def test_what_is_frozen_keeps_its_bits(
    ref: ModelRef,
    loaded: LoadedBase,
    before: dict[str, torch.Tensor],
    tmp_path: Path,
    strategy: Strategy,
    trained: str | tuple[str, ...],
) -> None:
    after = tensors(tuned(ref, loaded, tmp_path / "out", strategy, replace(RECIPE, weight_decay=0.1)))
    words = (trained,) if isinstance(trained, str) else trained
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == {name for name in after if any(word in name for word in words)}


def test_a_model_without_such_parameters_is_refused(ref: ModelRef, loaded: LoadedBase, tmp_path: Path) -> None:
    for strategy, words in (
        (AttentionOnly(region="re:no_such"), "LlamaForCausalLM has no parameter in the region re:no_such"),
        (LastLayers(layers=3), "last-layers: layers is 3 and the model has 2; give fewer"),
    ):
        with pytest.raises(ModelError, match=words):
            tuned(ref, loaded, tmp_path / "out", strategy)
    assert os.listdir(tmp_path) == []


def test_half_freezes_half_of_each_kind_and_draws_anew_each_round(loaded: LoadedBase) -> None:
    scene = scene_of(loaded)
    hooks = FrozenRounds(scene, HalfFineTuning(round_steps=2))
    rounds = [set(hooks.frozen(step)) for step in range(1, 9)]
    assert rounds[0] == rounds[1] != rounds[2] == rounds[3]
    assert len({frozenset(names) for names in rounds}) > 2
    for names in rounds:
        for layer in (0, 1):
            own = [name for name in names if f"layers.{layer}." in name]
            assert sum("self_attn" in name for name in own) == 2
            assert sum(".mlp." in name for name in own) in (1, 2)
            assert sum("layernorm" in name for name in own) == 1
        assert all("layers." in name for name in names), "embeddings, head and last norm are trained throughout"
    again = FrozenRounds(scene_of(loaded), HalfFineTuning(round_steps=2))
    assert set(again.frozen(5)) == rounds[4], "whatever was asked before"
    assert set(FrozenRounds(scene_of(loaded, seed=1), HalfFineTuning()).frozen(1)) != rounds[0]


def test_what_half_freezes_keeps_its_bits(
    ref: ModelRef, loaded: LoadedBase, before: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    after = tensors(tuned(ref, loaded, tmp_path / "out", HalfFineTuning(), replace(RECIPE, weight_decay=0.1)))
    frozen = FrozenRounds(scene_of(loaded), HalfFineTuning()).frozen(1)
    assert {name for name in after if torch.equal(after[name], before[name])} == set(frozen)


# ---- updates ---------------------------------------------------------------------------------------------------


def test_mofo_moves_the_largest_momenta_alone(
    ref: ModelRef, loaded: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every update at most the share of each tensor has moved, and it is where the momenta are largest."""
    looked: list[int] = []

    def look(watch: Any, args: Any, state: Any, control: Any, **given: Any) -> None:
        for name, parameter in given["model"].named_parameters():
            moved = (parameter.detach() != known[name]).flatten()
            known[name] = parameter.detach().clone()
            momenta = given["optimizer"].state[parameter]["exp_avg"].abs().flatten()
            most = -(-moved.numel() // 10)
            assert 0 < int(moved.sum()) <= most
            assert momenta[moved].min() >= momenta.sort(descending=True).values[most - 1]
        looked.append(state.global_step)

    known = {name: parameter.detach().clone() for name, parameter in loaded.model.named_parameters()}
    monkeypatch.setattr(trainer.Watch, "on_step_end", look)
    recipe = replace(RECIPE, lr_scheduler="constant", weight_decay=0.1)
    tuned(ref, loaded, tmp_path / "out", MoFO(share=0.1), recipe)
    assert looked == [1, 2, 3, 4]
