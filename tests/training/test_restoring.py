"""Restoring while training: the bound after every projection, and the definition that restoration has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sftknow.checkpoints.regions import natural_order, parse_region
from sftknow.errors import ModelError, RecipeError
from sftknow.parameters.relative import Measure, relative_change
from sftknow.records import ModelRef
from sftknow.training.strategies import updates
from sftknow.training.strategies.updates import Restoring, restore_most_changed
from sftknow.training.train import LoadedBase, load_base
from tests.training.small_strategies import FACTS, RECIPE, tensors, tuned


@pytest.fixture(scope="module")
def ref(tiny_model: Path) -> ModelRef:
    return ModelRef(path=str(tiny_model))


@pytest.fixture(scope="module")
def loaded(ref: ModelRef) -> LoadedBase:
    return load_base(ref, RECIPE)


def by_definition(base: list[torch.Tensor], tuned: list[torch.Tensor], count: int) -> list[torch.Tensor]:
    """The same by a stable sort over all of r, as `sftknow.parameters` defines it."""
    flat = [np.concatenate([t.float().flatten().numpy() for t in side]) for side in (base, tuned)]
    order = np.argsort(-relative_change(*flat, Measure()), kind="stable")[:count]
    chosen = torch.zeros(len(flat[0]), dtype=torch.bool)
    chosen[torch.from_numpy(order.copy())] = True
    parts = chosen.split([t.numel() for t in base])
    return [torch.where(part.view(b.shape), b, t) for part, b, t in zip(parts, base, tuned, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [0, 1, 77, 500, 999, 1000])
def test_exactly_the_most_changed_elements_go_back(dtype: torch.dtype, count: int) -> None:
    """Ties, zeros that moved, values that did not move and both signs of zero are among them."""
    torch.manual_seed(count)
    base = [torch.randn(20, 30), torch.randn(400)]
    after = [tensor + 0.1 * torch.randn_like(tensor) for tensor in base]
    for p, s in zip(base, after, strict=True):
        p.view(-1)[:40] = 0.0
        s.view(-1)[10:20] = -0.0
        s.view(-1)[100:160] = p.view(-1)[100:160]
        p.view(-1)[200:260], s.view(-1)[200:260] = 2.0, 3.0
    base, after = [t.to(dtype) for t in base], [t.to(dtype) for t in after]
    wanted = by_definition(base, after, count)
    restore_most_changed(list(zip(after, base, strict=True)), count)
    for found, expected in zip(after, wanted, strict=True):
        assert torch.equal(found.view(torch.int32 if dtype == torch.float32 else torch.int16),
                           expected.view(torch.int32 if dtype == torch.float32 else torch.int16))  # fmt: skip


def test_the_bound_holds_after_every_projection(
    ref: ModelRef, loaded: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No element is left with a larger relative change than the smallest of those that were set back."""
    seen: list[int] = []

    def r_of(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> np.ndarray:
        sides = [np.concatenate([pair[side].detach().flatten().numpy() for pair in pairs]) for side in (1, 0)]
        return relative_change(*sides, Measure())

    def look(pairs: list[tuple[torch.Tensor, torch.Tensor]], count: int) -> None:
        before = r_of(pairs)
        restore_most_changed(pairs, count)
        after = r_of(pairs)
        assert count == len(before) * 3 // 10
        assert int((after != before).sum()) == count
        assert after.max() <= np.sort(before)[-count]
        assert (after == 0).sum() >= count
        seen.append(count)

    monkeypatch.setattr(updates, "restore_most_changed", look)
    tuned(ref, loaded, tmp_path / "each", Restoring(share="30%"))
    assert len(seen) == 4
    tuned(ref, loaded, tmp_path / "second", Restoring(share="3/10", every=2))
    assert len(seen) == 6


def test_after_one_update_it_is_the_restoration_of_plain_fine_tuning(
    ref: ModelRef, loaded: LoadedBase, tiny_model: Path, tmp_path: Path
) -> None:
    plain = tensors(tuned(ref, loaded, tmp_path / "plain", None, facts=FACTS[:4]))
    made = tensors(tuned(ref, loaded, tmp_path / "made", Restoring(share="5%"), facts=FACTS[:4]))
    base, region = load_file(tiny_model / "model.safetensors"), parse_region("transformer")
    names = natural_order([name for name in base if name in region])
    count = sum(base[name].numel() for name in names) // 20
    wanted = by_definition([base[n] for n in names], [plain[n] for n in names], count)
    for name, tensor in {**plain, **dict(zip(names, wanted, strict=True))}.items():
        assert torch.equal(made[name], tensor), name


def test_what_cannot_be_restored_is_refused(ref: ModelRef, loaded: LoadedBase, tmp_path: Path) -> None:
    for options, words in (
        ({"share": "120%"}, "share: the level 120% is more than the whole region"),
        ({"share": "5"}, "share should be a share such as"),
        ({"region": "heads"}, "region: unknown region 'heads'"),
        ({"every": 0}, "every should be greater than or equal to 1"),
    ):
        with pytest.raises(RecipeError, match=words):
            Restoring(**options)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="LlamaForCausalLM has no parameter in the region re:no_such; name another"):
        tuned(ref, loaded, tmp_path / "out", Restoring(region="re:no_such"))
