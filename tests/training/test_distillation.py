"""Self-distillation: its loss against one that is computed token by token, against TRL's, and what it draws from."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from sftknow.errors import ModelError, OptionError
from sftknow.prompts import text_ids
from sftknow.records import ModelRef
from sftknow.training.examples import IGNORED, Example, encode
from sftknow.training.recipe import SFTRecipe
from sftknow.training.strategies import Pass
from sftknow.training.strategies.distillation import Distillation, SelfDistillation, Teaching, of_answers, split
from sftknow.training.strategies.measures import padded
from sftknow.training.train import LoadedBase, TrainingSet, load_base
from tests.training.small_strategies import FACTS, RECIPE, a_pass, scene_of


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> LoadedBase:
    return load_base(ModelRef(path=str(tiny_model)), RECIPE)


def distillation(loaded: LoadedBase, seed: int = 0, **options: float) -> Distillation:
    """With a model that was moved away from its base."""
    scene = scene_of(loaded, seed)
    noise = torch.Generator().manual_seed(7)
    for parameter in scene.model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=noise)
    hooks = Distillation(scene, SelfDistillation(**options))  # type: ignore[arg-type]
    hooks.moved = scene.model  # type: ignore[attr-defined]
    return hooks


def alone(model: torch.nn.Module, text: list[int]) -> torch.Tensor:
    """Log-probabilities of the token after a text, (vocabulary,)."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([text])).logits[0, -1].double().log_softmax(-1)


def test_the_loss_is_the_divergence_at_each_token_of_the_drawn_answers(loaded: LoadedBase) -> None:
    hooks = distillation(loaded, strength=0.25, max_new_tokens=5)
    model = hooks.moved  # type: ignore[attr-defined]
    here = a_pass(loaded, model, passes=2)
    examples = encode(loaded.tokenizer, FACTS[:4], answer_only_loss=True, max_length=256)
    pairs = [split(example.input_ids, example.labels) for example in examples]
    drawn = hooks._answers(model, [prompt for prompt, _ in pairs])
    assert all(1 <= len(answer) <= 5 for answer in drawn)
    teaching, found = Teaching(loaded.tokenizer), []
    for (prompt, answer), own in zip(pairs, drawn, strict=True):
        assert answer[-1] == loaded.tokenizer.eos_token_id
        begins = [loaded.tokenizer.bos_token_id]
        assert prompt[:1] == begins
        shown = [*prompt, *answer[:-1], *text_ids(loaded.tokenizer, "\n\n")[1:], *prompt[1:]]
        assert teaching.shown(prompt, answer) == shown
        for place in range(len(own)):
            says = alone(model, [*prompt, *own[:place]])
            taught = alone(loaded.model, [*shown, *own[:place]])
            found.append(float((says.exp() * (says - taught)).sum()))
    loss = hooks.penalty(here)
    assert loss is not None
    assert loss.item() == pytest.approx(0.25 * sum(found) / len(found) / 2, rel=1e-4)
    assert hooks.plain_share == 0.75
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert all(p.grad is None for p in hooks._base.parameters())


def test_the_divergence_is_trls(loaded: LoadedBase) -> None:
    theirs = pytest.importorskip("trl.experimental.sdft.loss_utils", reason="TRL has moved its experimental SDFT")
    hooks = distillation(loaded, max_new_tokens=4)
    model = hooks.moved  # type: ignore[attr-defined]
    here = a_pass(loaded, model)
    examples = encode(loaded.tokenizer, FACTS[:4], answer_only_loss=True, max_length=256)
    pairs = [split(example.input_ids, example.labels) for example in examples]
    prompts = [prompt for prompt, _ in pairs]
    drawn = hooks._answers(model, prompts)
    says = of_answers(model, prompts, drawn)
    taught = of_answers(loaded.model, [Teaching(loaded.tokenizer).shown(*pair) for pair in pairs], drawn)
    tokens = theirs.compute_full_logit_self_distillation_loss(says, taught, distillation_alpha=1.0)
    loss = hooks.penalty(here)
    assert loss is not None
    assert loss.item() == pytest.approx(tokens.mean().item(), rel=1e-5)


def test_answers_are_drawn_from_the_model_and_end_at_the_end_token(loaded: LoadedBase) -> None:
    """The first tokens of many draws have the model's own chances; a seed and a batch give the same draws."""
    prompt = text_ids(loaded.tokenizer, "a prompt")
    hooks = distillation(loaded, max_new_tokens=1)
    model = hooks.moved  # type: ignore[attr-defined]
    many = 4000
    seen = Counter(answer[0] for answer in hooks._answers(model, [prompt] * many))
    chances = alone(model, prompt).exp()
    for token in chances.topk(5).indices.tolist():
        chance = float(chances[token])
        assert abs(seen[token] / many - chance) < 4.5 * math.sqrt(chance * (1 - chance) / many)
    longer = distillation(loaded, max_new_tokens=40)
    ends = loaded.tokenizer.eos_token_id
    model.lm_head.weight.data[ends] *= 3  # so that some answers end
    first = longer._answers(model, [prompt] * 50)
    assert first == longer._answers(model, [prompt] * 50)
    assert first != distillation(loaded, seed=1, max_new_tokens=40)._answers(model, [prompt] * 50)
    assert any(answer[-1] == ends for answer in first)
    assert all(ends not in answer[:-1] for answer in first)
    assert model.training is False


def test_rows_without_an_answer_are_left_out(loaded: LoadedBase) -> None:
    hooks = distillation(loaded)
    rows = padded([Example(input_ids=[5, 6, 7], labels=[IGNORED] * 3)], torch.device("cpu"))
    here = Pass(model=hooks.moved, inputs=rows, tokens=torch.tensor(1), passes=1)  # type: ignore[attr-defined]
    assert hooks.penalty(here) is None


def test_the_base_itself_learns_nothing_but_from_the_solution(
    loaded: LoadedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = scene_of(loaded)
    hooks = Distillation(scene, SelfDistillation())
    here = a_pass(loaded, scene.model)
    with torch.no_grad():
        taught = hooks.penalty(here)
        monkeypatch.setattr(Teaching, "shown", lambda self, prompt, answer: prompt)
        untaught = hooks.penalty(here)
    assert taught is not None
    assert untaught is not None
    assert taught.item() > 100 * abs(untaught.item())
    assert abs(untaught.item()) < 1e-7


def test_what_it_cannot_work_on_is_refused(loaded: LoadedBase) -> None:
    with pytest.raises(OptionError, match="nothing tells where they end"):
        SFTRecipe(strategy=SelfDistillation(), answer_only_loss=False)
    limit = loaded.model.config.max_position_embeddings
    long = Example(input_ids=[5] * limit, labels=[IGNORED] * (limit - 1) + [5])
    data = TrainingSet(examples=[long], record={})
    with pytest.raises(ModelError, match=f"up to {2 * limit + 17} tokens and the model takes {limit}"):
        SelfDistillation().prepare(data, scene_of(loaded))
    assert SelfDistillation(strength=0).prepare(data, scene_of(loaded)) is data
