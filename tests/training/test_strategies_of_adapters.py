"""Adapters of peft's: each keeps to the changes that it allows, and is merged into a whole checkpoint."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from sftknow.errors import DependencyError
from sftknow.records import ModelRef
from sftknow.training.strategies.adapters import OFT, OSF, Adapter, CorDA, DoRA, linear_layers
from sftknow.training.train import LoadedBase, load_base
from tests.training.small_strategies import RECIPE, tensors, tuned


@pytest.fixture(scope="module")
def ref(tiny_model: Path) -> ModelRef:
    return ModelRef(path=str(tiny_model))


@pytest.fixture(scope="module")
def loaded(ref: ModelRef) -> LoadedBase:
    return load_base(ref, RECIPE)


def changes(
    ref: ModelRef, loaded: LoadedBase, out: Path, strategy: Adapter
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Base and fine-tuned weight of every linear layer, in float64; all else has kept its bits."""
    before, after = load_file(Path(ref.path) / "model.safetensors"), tensors(tuned(ref, loaded, out, strategy))
    assert after.keys() == before.keys(), "no adapter is left"
    inside = {name for name in before if "_proj" in name}
    assert all(torch.equal(after[name], before[name]) for name in before.keys() - inside)
    assert all((after[name] - before[name]).abs().max() > 1e-4 for name in inside)
    return {name: (before[name].double(), after[name].double()) for name in inside}


# As a user sees it, who has not switched off what peft says of names of transformers.
@pytest.mark.filterwarnings("error:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_dora_learns_lengths_of_rows_apart(ref: ModelRef, loaded: LoadedBase, tmp_path: Path) -> None:
    """LoRA's change has the adapters' rank; a factor for each row besides makes it a change of all directions."""
    for base, tuned_ in changes(ref, loaded, tmp_path / "out", DoRA(rank=2, alpha=4)).values():
        assert torch.linalg.matrix_rank(tuned_ - base, atol=1e-5).item() > 2


def test_oft_turns_the_inputs(ref: ModelRef, loaded: LoadedBase, tmp_path: Path) -> None:
    """W R with orthogonal R: the products of rows, so lengths and angles between neurons, stay."""
    for base, tuned_ in changes(ref, loaded, tmp_path / "out", OFT(block_size=16)).values():
        torch.testing.assert_close(tuned_ @ tuned_.T, base @ base.T, rtol=1e-3, atol=1e-4)


def test_osf_leaves_the_largest_directions(ref: ModelRef, loaded: LoadedBase, tmp_path: Path) -> None:
    for base, tuned_ in changes(ref, loaded, tmp_path / "out", OSF(kept=0.5)).values():
        u, _, vh = torch.linalg.svd(base)
        kept = min(base.shape) // 2
        inside = u[:, :kept].T @ (tuned_ - base) @ vh[:kept].T
        assert inside.abs().max() < 0.05 * (tuned_ - base).abs().max()


def test_corda_changes_few_directions(ref: ModelRef, loaded: LoadedBase, tmp_path: Path) -> None:
    for base, tuned_ in changes(ref, loaded, tmp_path / "out", CorDA(rank=2, statements=8)).values():
        assert torch.linalg.matrix_rank(tuned_ - base, atol=1e-4).item() <= 4


def test_what_peft_lacks_is_one_line(
    ref: ModelRef, loaded: LoadedBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(peft, "OSFConfig")
    with pytest.raises(DependencyError, match=r"peft .* lacks a name \(cannot import name 'OSFConfig'"):
        tuned(ref, loaded, tmp_path / "out", OSF())
    assert list(tmp_path.iterdir()) == []


def test_linear_layers_of_other_kinds_are_found() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=4, n_layer=1, n_head=1))
    assert linear_layers(model) == ["c_attn", "c_fc", "c_proj"]
