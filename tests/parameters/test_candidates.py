"""Methods of repair: each kernel against the plain way to compute it; a candidate in memory, on disk and as a patch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sftknow.checkpoints.reader import CheckpointReader
from sftknow.errors import CheckpointError
from sftknow.parameters.adapter_out import check_refactored, refactored, write_refactored
from sftknow.parameters.candidates import Candidate, Candidates, grid, move_, write_candidate, write_candidate_patch
from sftknow.parameters.methods import METHODS, THIRDS, Method, Part, between, scale_layers, set_back_layers
from sftknow.parameters.patch import apply_patch
from tests.parameters.checkpoint_pairs import read_checkpoint, stored, values_of, write_checkpoint
from tests.parameters.test_in_memory import llama, load, save_pair, state

FLOATS = st.floats(-4, 4, width=32)
WEIGHTS = {"model.embed_tokens.weight": (6, 4), "lm_head.weight": (6, 4), "model.norm.weight": (4,)} | {
    f"model.layers.{layer}.{name}.weight": (4, 4) for layer in range(3) for name in ("self_attn.q_proj", "mlp.up_proj")
}


def part(base: Any, tuned: Any, strength: str, **more: Any) -> Part:
    sides = {"base": np.array(base, dtype=np.float32), "tuned": np.array(tuned, dtype=np.float32)}
    return Part(**{"selected": None, "name": "w", "layer": None, "layers": 4, "strength": strength, **sides, **more})


def pair(folder: Path, dtype: str = "F32", seed: int = 0) -> tuple[Path, Path]:
    """Twelve small tensors, half of whose values changed by different amounts."""
    rng = np.random.default_rng(seed)
    base = {name: stored(rng.normal(size=shape), dtype) for name, shape in WEIGHTS.items()}
    tuned = {}
    for name, found in base.items():
        values = values_of(found)
        change = rng.normal(size=values.shape) * (rng.random(values.shape) < 0.5)
        tuned[name] = stored(values + change, dtype)
    config = {"model_type": "llama", "tie_word_embeddings": False}
    return (
        write_checkpoint(folder / "base", base, config=config),
        write_checkpoint(folder / "tuned", tuned, shards=2, config=config),
    )


def flat(folder: Path, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    found = read_checkpoint(folder)
    return np.concatenate([np.frombuffer(found[name], dtype=dtype) for name in sorted(found)])


def made(base: Path, tuned: Path, method: str, strength: str, out: Path, **more: Any) -> Path:
    candidate = Candidate(method, strength)
    candidates = Candidates(base, tuned, [candidate], **more)
    write_candidate(candidates, candidates.maker(candidate), out)
    return out


def in_memory(base: Path, tuned: Path, method: str, strength: str, **more: Any) -> dict[str, Any]:
    """By tensor the values that a candidate makes of float32 checkpoints, without a file."""
    candidate = Candidate(method, strength)
    candidates = Candidates(base, tuned, [candidate], **more)
    maker, found = candidates.maker(candidate), {}
    with CheckpointReader() as reader:
        for tensor in candidates.pair.tensors:
            sides = (reader.read(entry, 0, entry.elements) for entry in (tensor.base, tensor.tuned))
            found[tensor.name] = maker.bits(tensor, 0, *sides).copy().view(np.float32)
    return found


def joined(found: dict[str, Any]) -> np.ndarray[Any, Any]:
    return np.concatenate([found[name] for name in sorted(found)])


@settings(deadline=None)
@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=20), st.floats(0, 1))
def test_between_is_exact_at_its_ends_and_where_nothing_changed(
    sides: list[tuple[float, float]], weight: float
) -> None:
    tuned, base = (np.array(side, dtype=np.float32) for side in zip(*sides, strict=True))
    assert between(tuned, base, 0.0).tobytes() == tuned.tobytes()
    assert between(tuned, base, 1.0).tobytes() == base.tobytes()
    found = between(tuned, base, weight)
    assert np.allclose(found, (1 - weight) * tuned.astype(float) + weight * base.astype(float), atol=1e-5)
    assert (found >= np.minimum(tuned, base) - 1e-5).all()
    if 0 < weight < 1:
        assert found[tuned == base].tobytes() == tuned[tuned == base].tobytes()


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize(("strength", "side"), [("0%", "tuned"), ("100%", "base")])
def test_interpolation_reaches_both_sides_bit_by_bit(tmp_path: Path, dtype: str, strength: str, side: str) -> None:
    folders = pair(tmp_path, dtype)
    found = read_checkpoint(made(*folders, "interpolation", strength, tmp_path / "out"))
    assert found == read_checkpoint(tmp_path / side)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), kept=st.integers(1, 99))
def test_trim_keeps_exactly_the_largest_changes(tmp_path_factory: pytest.TempPathFactory, seed: int, kept: int) -> None:
    folder = tmp_path_factory.mktemp("trim")
    base, tuned = pair(folder, seed=seed)
    p, s = flat(base), flat(tuned)
    out = joined(in_memory(base, tuned, "trim", f"{100 - kept}%"))
    survivors = len(p) - len(p) * (100 - kept) // 100
    largest = np.sort(np.abs(s - p))[::-1][:survivors]
    assert np.array_equal(np.sort(np.abs(out - p))[::-1][:survivors], largest)
    assert np.count_nonzero(out != p) == np.count_nonzero(largest)
    assert np.isin(out, np.concatenate([p, s])).all()


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), share=st.sampled_from([5, 20, 40]))
def test_absolute_sets_back_exactly_the_largest_changes(
    tmp_path_factory: pytest.TempPathFactory, seed: int, share: int
) -> None:
    folder = tmp_path_factory.mktemp("absolute")
    base, tuned = pair(folder, seed=seed)
    out = in_memory(base, tuned, "absolute", f"{share}%")
    before, after = (read_checkpoint(side) for side in (base, tuned))
    names = [name for name in sorted(WEIGHTS) if "layers" in name]
    p, s, o = (np.concatenate([np.frombuffer(side[n], np.float32) for n in names]) for side in (before, after, out))
    count = len(p) * share // 100
    assert np.array_equal(np.sort(np.abs(s - p)[o != s]), np.sort(np.sort(np.abs(s - p))[::-1][:count]))
    assert all(out[name].tobytes() == after[name] for name in WEIGHTS if name not in names)


def test_dare_keeps_the_mean(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path)
    p, s = flat(base).astype(float), flat(tuned).astype(float)
    draws = [joined(in_memory(base, tuned, "dare", "50%", seed=seed)).astype(float) for seed in range(60)]
    for out in draws[:5]:
        dropped = out == p
        assert np.count_nonzero(dropped[s != p]) > 0
        assert np.allclose(out[~dropped], (p + 2 * (s - p))[~dropped], atol=1e-5), "1 ÷ (1 − ½)"
    error = np.abs(np.mean(draws, axis=0) - s)
    assert (error <= 5 * np.abs(s - p) / np.sqrt(60) + 1e-5).all()


@pytest.mark.parametrize("strength", ["25%", "100%"])
def test_lines_scales_each_layer_by_its_depth(strength: str) -> None:
    less = float(strength[:-1]) / 100
    for layer, factor in ((0, 1 - less), (1, 1 - less * 2 / 3), (2, 1 - less / 3), (3, 1.0), (None, 1 - less)):
        found = scale_layers(part([1.0, 2.0], [3.0, 2.0], strength, layer=layer))
        assert np.allclose(found, [1 + 2 * factor, 2.0]), layer


def test_thirds_of_the_layers_are_all_layers_once() -> None:
    for layers in range(3, 12):
        for layer in range(layers):
            parts = [part([1.0], [2.0], third, layer=layer, layers=layers) for third in THIRDS]
            assert sorted(float(set_back_layers(each)[0]) for each in parts) == [1.0, 2.0, 2.0]
    assert set_back_layers(part([1.0], [2.0], "first"))[0] == 2.0, "outside of the layers"


@pytest.mark.parametrize(
    "dtypes",
    [
        ("F32", "BF16", torch.float32),
        pytest.param(("BF16", "BF16", torch.bfloat16), marks=pytest.mark.slow),
        pytest.param(("F32", "F32", torch.float32), marks=pytest.mark.slow),
    ],
)
def test_a_moved_model_is_what_is_written_and_patched(tmp_path: Path, dtypes: tuple[str, str, torch.dtype]) -> None:
    base, tuned = save_pair(tmp_path, llama(), *dtypes[:2])
    wanted = [candidate for candidate in grid() if candidate.strength == candidate.how.strengths[0]]
    candidates = Candidates(base, tuned, wanted, seed=1)
    model = load(tuned, dtypes[2])
    seen = set()
    for candidate in wanted:
        maker = candidates.maker(candidate)
        move_(model, candidates.pair, maker)
        values = write_candidate(candidates, maker, tmp_path / "out")
        assert state(load(tmp_path / "out", dtypes[2])) == state(model), candidate.name
        said = json.loads((tmp_path / "out" / "sftknow.json").read_text())["restoration"]
        assert (said["strategy"], said["level"], said["restored"]) == (candidate.method, candidate.strength, values)
        file = tmp_path / "patch.safetensors"
        assert write_candidate_patch(candidates, maker, file) >= values
        assert apply_patch(tuned, file, tmp_path / "patched").undone is False
        assert read_checkpoint(tmp_path / "patched") == read_checkpoint(tmp_path / "out")
        assert apply_patch(tmp_path / "out", file, tmp_path / "back").undone == (values > 0)
        assert read_checkpoint(tmp_path / "back") == read_checkpoint(tuned)
        seen.add(tuple(sorted(state(model).items())))
    assert len(seen) == len(wanted) == 8, "they are different models"
    move_(model, candidates.pair, None)
    assert state(model) == state(load(tuned, dtypes[2]))


def test_the_grid_and_what_it_refuses(tmp_path: Path) -> None:
    assert {candidate.method for candidate in grid(["lines"])} == {"lines", "random"}
    assert [c.strength for c in grid(["interpolation"], ["10%"]) if c.method == "interpolation"] == ["10%"]
    assert [c.strength for c in grid(["layers"], ["10%"]) if c.method == "layers"] == list(THIRDS)
    for methods, strengths, words in (
        (["none"], [], "no method of repair called none; there are relative, absolute"),
        (["random"], [], "is what methods are compared with"),
        ([], ["0%"], "changes nothing"),
        ([], ["200%"], "more than the whole"),
    ):
        with pytest.raises(CheckpointError, match=words):
            grid(methods, strengths)
    base, tuned = pair(tmp_path)
    with pytest.raises(CheckpointError, match="drops every change"):
        made(base, tuned, "dare", "100%", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    same = {"model.layers.0.mlp.up_proj.weight": stored(np.ones((2, 2)), "F32")}
    copies = [write_checkpoint(tmp_path / name, same) for name in ("same", "copy")]
    with pytest.raises(CheckpointError, match="nothing to repair"):
        made(*copies, "relative", "20%", tmp_path / "out")


def test_a_method_of_ones_own(tmp_path: Path) -> None:
    def halve_small(part: Part) -> Any:
        return np.where(np.abs(part.tuned - part.base) < part.share, between(part.tuned, part.base, 0.5), part.tuned)

    METHODS.register("small")(
        Method(values=halve_small, strengths=("50%",), title="changes below {strength} halved", source="this test")
    )
    METHODS.register("wide")(
        Method(values=lambda part: part.tuned.astype(np.float64), strengths=("50%",), title="", source="")
    )
    try:
        base, tuned = pair(tmp_path)
        p, s, out = flat(base), flat(tuned), flat(made(base, tuned, "small", "50%", tmp_path / "out"))
        assert np.array_equal(out, np.where(np.abs(s - p) < 0.5, between(s, p, 0.5), s))
        assert Candidate("small", "50%") in grid()
        with pytest.raises(CheckpointError, match="wide returned float64"):
            made(base, tuned, "wide", "50%", tmp_path / "wide")
    finally:
        METHODS.remove("small")
        METHODS.remove("wide")


def test_the_example_of_the_documentation_works(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "extending" / "repair-method.md"
    exec(page.read_text().split("```python\n")[1].split("```")[0], {})
    try:
        base, tuned = pair(tmp_path)
        p, s = flat(base), flat(tuned)
        out = flat(made(base, tuned, "clip", "50%", tmp_path / "out"))
        assert np.allclose(out, p + np.clip(s - p, -abs(p) / 2, abs(p) / 2))
    finally:
        METHODS.remove("clip")


def test_values_that_are_no_numbers_or_become_none_are_refused(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    base = write_checkpoint(tmp_path / "base", {name: stored(np.full((2, 2), -6e4), "F16")})
    tuned = write_checkpoint(tmp_path / "tuned", {name: stored(np.full((2, 2), 6e4), "F16")})
    with pytest.raises(CheckpointError, match="dare 50% makes a value too large for F16"):
        made(base, tuned, "dare", "50%", tmp_path / "out")
    broken = write_checkpoint(tmp_path / "broken", {name: stored(np.full((2, 2), np.nan), "F16")})
    with pytest.raises(CheckpointError, match="NaN"):
        made(base, broken, "interpolation", "50%", tmp_path / "out")


# ---- adapters --------------------------------------------------------------------------------------------------------


def adapter(folder: Path, **settings: Any) -> tuple[Path, Path]:
    base = folder / "base"
    llama().to(torch.float32).save_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(1)
    config = LoraConfig(r=3, lora_alpha=6, init_lora_weights=False, **{"target_modules": "all-linear", **settings})
    adapted = get_peft_model(model, config)
    adapted.save_pretrained(folder / "adapter")
    return base, folder / "adapter"


@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 8}}], ids=str
)
def test_an_adapter_of_the_old_rank(tmp_path: Path, settings: dict[str, Any]) -> None:
    base, tuned = adapter(tmp_path, **settings)
    wanted = [Candidate("interpolation", "50%"), Candidate("lines", "100%"), Candidate("relative", "40%")]
    candidates = Candidates(base, tuned, wanted)
    errors = {}
    for candidate in wanted:
        maker = candidates.maker(candidate)
        found = refactored(candidates, maker, tmp_path / "new")
        errors[candidate.method] = found.error
        write_candidate(candidates, maker, tmp_path / "whole")
        merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), found.folder).merge_and_unload()
        whole, before = load_file(tmp_path / "whole" / "model.safetensors"), load_file(base / "model.safetensors")
        missed = sum(float((merged.state_dict()[n] - w).square().sum()) for n, w in whole.items())
        change = sum(float((w - before[n]).square().sum()) for n, w in whole.items())
        assert (missed / change) ** 0.5 == pytest.approx(found.error, rel=0.01, abs=1e-5)
    assert errors["interpolation"] < 1e-5
    assert errors["lines"] < 1e-5, "the rank stays"
    assert 0.05 < errors["relative"] < 1
    out = tmp_path / "placed"
    for _ in range(2):  # its own output is replaced
        write_refactored(found, out, maker, like=tuned, manifest={"base": {"path": str(base)}}, notes={})
    assert json.loads((out / "sftknow.json").read_text())["restoration"]["error"] == found.error
    assert (out / "adapter_model.safetensors").read_bytes() == (found.folder / "adapter_model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="leave --adapter out"):
        check_refactored(*adapter(tmp_path / "dora", use_dora=True))


def test_part_of_a_method_without_an_order_has_nothing_selected() -> None:
    with pytest.raises(CheckpointError, match="register it with one"):
        _ = replace(part([1.0], [2.0], "5%")).chosen
