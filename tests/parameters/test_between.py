"""What restoring is compared with: set back at random by streaming, blends of all weights, and equal distances."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sftknow.parameters.between import Distances, blend_, distances, set_back_
from sftknow.parameters.change import analyse
from sftknow.parameters.in_memory import ModelLevels
from tests.parameters.test_in_memory import llama, load, save_pair, state


@pytest.fixture(scope="module", params=["BF16", "F32"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_pair(tmp_path_factory.mktemp("pair"), llama(), request.param, "BF16")


def vector(model: torch.nn.Module, region: bool = False) -> torch.Tensor:
    """All weights, or those of the decoder layers without norms, in float64."""
    named = [(name, value) for name, value in model.named_parameters() if not region or "layers" in name]
    return torch.cat([value.detach().double().flatten() for name, value in named if not region or "norm" not in name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("strategy", ["top", "random"])
def test_streamed_is_what_the_levels_in_memory_are(pair: tuple[Path, Path], strategy: str, dtype: torch.dtype) -> None:
    plan = analyse(*pair, ("20%", "60%"), strategy=strategy, seed=3).plan
    streamed, moved = load(pair[1], dtype), load(pair[1], dtype)
    levels = ModelLevels(moved, *pair, plan)
    for level in ("60%", "20%"):
        levels.to(level)
        blend_(streamed, *pair, 0.0)
        set_back_(streamed, *pair, plan, level)
        assert state(streamed) == state(moved)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blends_reach_from_one_end_to_the_other(pair: tuple[Path, Path], dtype: torch.dtype) -> None:
    tuned = load(pair[1], dtype)
    blend_(tuned, *pair, 0.7)
    assert state(tuned) != state(load(pair[1], dtype))
    blend_(tuned, *pair, 0.0)
    assert state(tuned) == state(load(pair[1], dtype)), "bit by bit back"
    blend_(tuned, *pair, 1.0)
    rounded = load(pair[0], torch.bfloat16).to(dtype)  # as a checkpoint of the fine-tuned model's dtype would hold it
    assert state(tuned) == state(rounded)


def test_distances_are_those_of_the_weights(pair: tuple[Path, Path]) -> None:
    plan = analyse(*pair, ("20%",)).plan
    found = distances(*pair, plan, "20%")
    base = load(pair[0], torch.bfloat16).float()  # as it is set back
    tuned, restored = (load(pair[1], torch.float32) for _ in range(2))
    assert found.whole == pytest.approx(float((vector(tuned) - vector(base)).square().sum()), rel=1e-9)
    assert found.region == pytest.approx(float((vector(tuned, True) - vector(base, True)).square().sum()), rel=1e-9)
    set_back_(restored, *pair, plan, "20%")
    left = float((vector(restored) - vector(base)).square().sum())
    assert left == pytest.approx(found.whole - found.restored, rel=1e-9)
    # The controls of equal distance: exact for the blend but for rounding, in expectation at random.
    blend_(restored, *pair, found.weight)
    assert float((vector(restored) - vector(base)).square().sum()) == pytest.approx(left, rel=0.05)
    random = analyse(*pair, (found.level,), strategy="random").plan
    blend_(restored, *pair, 0.0)
    set_back_(restored, *pair, random, found.level)
    assert float((vector(restored) - vector(base)).square().sum()) == pytest.approx(left, rel=0.1)


def test_nothing_changed_has_no_distance() -> None:
    none = Distances(whole=0.0, region=0.0, restored=0.0)
    assert (none.level, none.weight) == ("0.0000%", 0.0)
    assert replace(none, whole=4.0, region=2.0, restored=1.0).level == "50.0000%"
