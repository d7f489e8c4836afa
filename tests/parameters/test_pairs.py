"""Pairs that cannot be compared are refused in one line that says why and what to do."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import MixtralConfig, MixtralForCausalLM

from sftknow.errors import CheckpointError
from sftknow.parameters.change import Analysis, analyse
from sftknow.parameters.options import Resources
from sftknow.parameters.restore import restore, restore_levels
from tests.parameters.checkpoint_pairs import Tensor, read_checkpoint, stored, write_checkpoint

WEIGHT = "model.layers.0.mlp.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def model(**other: Tensor) -> dict[str, Tensor]:
    tensors = {EMBEDDING: stored(np.ones((4, 2)), "BF16"), WEIGHT: stored(np.arange(1, 7).reshape(2, 3), "BF16")}
    return {**tensors, **{name.replace("__", "."): tensor for name, tensor in other.items()}}


def moved(**other: Tensor) -> dict[str, Tensor]:
    return {**model(**other), WEIGHT: stored(np.arange(1, 7).reshape(2, 3) * 1.5, "BF16")}


def compare(folder: Path, base: dict[str, Tensor], tuned: dict[str, Tensor], **options: Any) -> Analysis:
    base_config, tuned_config = options.pop("base_config", None), options.pop("tuned_config", None)
    write_checkpoint(folder / "base", base, config=base_config)
    write_checkpoint(folder / "tuned", tuned, config=tuned_config)
    return analyse(folder / "base", folder / "tuned", ["50%"], **options)


def refusal(folder: Path, base: dict[str, Tensor], tuned: dict[str, Tensor], **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        compare(folder, base, tuned, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_vocabulary_that_grew(tmp_path: Path) -> None:
    message = refusal(tmp_path, model(), moved(model__embed_tokens__weight=stored(np.ones((5, 2)), "BF16")))
    assert "vocabulary grew" in message
    assert "4 rows" in message
    assert "resize_token_embeddings(4)" in message
    assert "the first 4 with --common-rows" in message
    shrunk = refusal(tmp_path, model(), moved(model__embed_tokens__weight=stored(np.ones((3, 2)), "BF16")))
    assert "vocabulary shrank" in shrunk
    assert "further rows" not in shrunk
    grown = moved(model__embed_tokens__weight=stored(np.ones((5, 2)), "BF16"))
    assert compare(tmp_path, model(), grown, common_rows=True).change.elements == 6
    assert compare(tmp_path, model(), grown, common_rows=True, region="all").change.elements == 14
    wider = moved(model__embed_tokens__weight=stored(np.ones((5, 3)), "BF16"))
    assert "has shape [4, 2]" in refusal(tmp_path, model(), wider, common_rows=True)


def test_other_shapes(tmp_path: Path) -> None:
    other = {**model(), WEIGHT: stored(np.ones((3, 2)), "BF16")}
    assert f"{WEIGHT} has shape [2, 3]" in refusal(tmp_path, model(), other)


def test_missing_and_extra_tensors(tmp_path: Path) -> None:
    more = moved(model__layers__1__mlp__up_proj__weight=stored([1.0], "BF16"))
    assert "lacks tensors" in refusal(tmp_path / "a", more, model())
    message = refusal(tmp_path / "b", model(), more)
    assert "base lacks tensors" in message
    assert "model.layers.1.mlp.up_proj.weight" in message


@pytest.mark.parametrize(
    "name",
    [
        "v_head.summary.weight",
        "score.weight",
        "model.layers.0.self_attn.k_scale",
        "model.layers.1.self_attn.q_proj.weight",
        "mtp.layers.0.self_attn.q_proj.weight",
        "model.layers.0.mlp.gate.e_score_correction_bias",
    ],
)
def test_what_the_region_does_not_need(tmp_path: Path, name: str) -> None:
    """A value head, scales of a cache, layers that predict further tokens: copied, or left out."""
    one_layer = {"model_type": "no such model", "num_hidden_layers": 1}
    options = {"base_config": one_layer, "tuned_config": one_layer}
    more = {name: stored([1.0, 2.0], "BF16")}
    told = not name.endswith(("k_scale", "correction_bias"))
    found = compare(tmp_path / "a", model(), {**moved(), **more}, **options)
    assert found.change.elements == 6
    assert len(found.notes) == told
    if told:
        assert name in found.notes[0]
        assert "copied from" in found.notes[0]
    folders = (tmp_path / "a" / "base", tmp_path / "a" / "tuned")
    restore(*folders, found.plan, "50%", tmp_path / "out", manifest={})
    assert read_checkpoint(tmp_path / "out")[name] == more[name][1].tobytes()
    found = compare(tmp_path / "b", {**model(), **more}, moved(), **options)
    assert (found.change.elements, len(found.notes)) == (6, told)


@pytest.mark.parametrize("region", ["transformer", "all"])
@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "base_model.model.", "module._orig_mod."])
def test_what_wrappers_leave_in_names(tmp_path: Path, wrapper: str, region: str) -> None:
    wrapped = {wrapper + name: tensor for name, tensor in moved().items()}
    expected = compare(tmp_path / "plain", model(), moved(), region=region).change.changed
    assert compare(tmp_path / "tuned", model(), wrapped, region=region).change.changed == expected
    base = {wrapper + name: tensor for name, tensor in model().items()}
    assert compare(tmp_path / "base", base, moved(), region=region).change.changed == expected


def test_two_names_of_the_output_head(tmp_path: Path) -> None:
    head = stored(np.ones((4, 2)), "BF16")
    other = stored(np.full((4, 2), 2), "BF16")
    found = compare(tmp_path, {**model(), "embed_out.weight": head}, {**moved(), HEAD: other}, region="embedding")
    assert (found.change.elements, found.change.changed, found.notes) == (16, 8, ())


def test_tensors_that_are_to_be_left_alone(tmp_path: Path) -> None:
    more = moved(model__layers__0__mlp__extra__weight=stored([1.0], "BF16"))
    assert "--ignore" in refusal(tmp_path / "a", model(), more)
    found = compare(tmp_path / "b", model(), more, ignore=r"mlp\.extra")
    assert (found.change.elements, found.plan.ignore) == (6, r"mlp\.extra")
    reshaped = {**more, "model.layers.0.mlp.extra.weight": stored([1.0, 2.0, 3.0], "BF16")}
    assert compare(tmp_path / "c", reshaped, more, ignore="extra").change.elements == 6
    assert "cannot be read" in refusal(tmp_path / "d", model(), moved(), ignore="(")
    lora = moved(model__layers__0__mlp__up_proj__lora_A__weight=stored([1.0], "BF16"))
    assert "must be merged" in refusal(tmp_path / "e", model(), lora)


@pytest.mark.parametrize("packed_side", ["base", "tuned"])
def test_experts_packed_in_one_and_apart_in_the_other(tmp_path: Path, packed_side: str) -> None:
    """transformers holds Mixtral's experts in two parameters a layer and stores them one by one."""
    config = MixtralConfig(
        vocab_size=16, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=3, num_experts_per_tok=2, max_position_embeddings=16,
    )  # fmt: skip
    torch.manual_seed(0)
    models = {"base": MixtralForCausalLM(config), "tuned": MixtralForCausalLM(config)}
    for side, made in models.items():
        made.save_pretrained(tmp_path / side)
        if side == packed_side:
            state = {name: tensor.detach().clone() for name, tensor in made.state_dict().items()}
            save_file(state, tmp_path / side / "model.safetensors", metadata={"format": "pt"})
    pair = (tmp_path / "base", tmp_path / "tuned")
    found = analyse(*pair, ["30%", "100%"])
    assert found.notes == ()
    before, after = (dict(models[side].named_parameters()) for side in ("base", "tuned"))
    names = [name for name in before if "layers" in name and "norm" not in name]
    assert found.change.elements == sum(before[name].numel() for name in names)
    assert found.change.changed == sum(int((before[name] != after[name]).sum()) for name in names)
    restore_levels(*pair, found.plan, {"30%": tmp_path / "some", "100%": tmp_path / "all"}, shard_bytes=4000)
    whole = dict(MixtralForCausalLM.from_pretrained(tmp_path / "all").named_parameters())
    some = dict(MixtralForCausalLM.from_pretrained(tmp_path / "some").named_parameters())
    set_back = 0
    for name, value in whole.items():
        assert torch.equal(value, (before if name in names else after)[name]), name
        as_base = (some[name] == before[name]) & (before[name] != after[name])
        assert torch.equal(some[name], torch.where(as_base, before[name], after[name]))
        set_back += int(as_base.sum())
    assert set_back == found.change.levels[0].selected


def test_buffers_may_be_missing(tmp_path: Path) -> None:
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": stored([1.0], "F32")}
    assert compare(tmp_path, {**model(), **buffer}, moved()).change.elements == 6


@pytest.mark.parametrize("twice", ["base", "tuned"])
def test_tied_weights_stored_once_or_twice(tmp_path: Path, twice: str) -> None:
    head = {HEAD: stored(np.ones((4, 2)), "BF16")}
    tied = {"tie_word_embeddings": True}
    base, tuned = ({**model(), **head}, moved()) if twice == "base" else (model(), {**moved(), **head})
    configs = {"base_config": tied, "tuned_config": tied}
    assert compare(tmp_path, base, tuned, **configs).change.elements == 6
    if twice == "tuned":
        assert "count twice" in refusal(tmp_path, base, tuned, region="all", **configs)
    else:
        assert compare(tmp_path, base, tuned, region="all", **configs).change.elements == 14


def test_an_untied_head_must_be_there(tmp_path: Path) -> None:
    head = {HEAD: stored(np.ones((4, 2)), "BF16")}
    configs = {"base_config": {"tie_word_embeddings": False}, "tuned_config": {"tie_word_embeddings": False}}
    assert HEAD in refusal(tmp_path / "a", {**model(), **head}, moved(), **configs)
    assert HEAD in refusal(tmp_path / "b", model(), {**moved(), **head}, **configs)


@pytest.mark.parametrize("side", ["base", "tuned"])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_nan_and_infinities(tmp_path: Path, side: str, dtype: str) -> None:
    broken = {WEIGHT: stored([[1, -np.nan, np.nan], [np.inf, 2, 3]], dtype)}
    base, tuned = ({**model(), **broken}, moved()) if side == "base" else (model(), {**moved(), **broken})
    message = refusal(tmp_path, base, tuned)
    assert f"{WEIGHT} has 2 NaN and 1 infinite values in {tmp_path / side}:" in message
    assert "2 NaN" in refusal(tmp_path, base, tuned, resources=Resources(block=1))
    with pytest.warns(UserWarning, match="nothing changed"):
        compare(tmp_path, base, tuned, region="embedding")  # what lies outside of the region is not looked at


def test_nan_in_both(tmp_path: Path) -> None:
    broken = {WEIGHT: stored([[1, np.nan, 1], [1, 2, 3]], "BF16")}
    message = refusal(tmp_path, {**model(), **broken}, {**model(), **broken})
    assert message.count("1 NaN") == 2


def test_an_adapter(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", model())
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"adapter of kind None.*merge_and_unload"):
        analyse(tmp_path / "base", tmp_path / "tuned", ["50%"])


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth"])
def test_pickles(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path / "base", model())
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / name).write_bytes(b"\x80")
    with pytest.raises(CheckpointError, match=r"never opens"):
        analyse(tmp_path / "base", tmp_path / "tuned", ["50%"])


def test_quantised(tmp_path: Path) -> None:
    config = {"quantization_config": {"bits": 4}}
    assert "quantised" in refusal(tmp_path / "a", model(), moved(), tuned_config=config)
    assert "quantised" in refusal(tmp_path / "b", model(model__layers__0__mlp__up__qweight=("I32", CODES)), moved())


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F4"])
def test_codes_are_no_values(tmp_path: Path, dtype: str) -> None:
    codes: dict[str, Tensor] = {WEIGHT: (dtype, np.zeros((2, 0), dtype=np.uint8))}
    assert f"is quantised ({WEIGHT} is {dtype})" in refusal(tmp_path, model(), {**model(), **codes})


CODES = np.zeros(3, dtype=np.uint32)


def test_other_dtypes(tmp_path: Path) -> None:
    doubles = {WEIGHT: ("F64", np.ones((2, 3)))}
    message = refusal(tmp_path, {**model(), **doubles}, moved())
    assert f"{WEIGHT} is stored as F64" in message
    outside = {"model.layers.0.input_layernorm.weight": ("F64", np.ones(3))}
    assert compare(tmp_path, {**model(), **outside}, {**moved(), **outside}).change.elements == 6


def test_nothing_in_the_region(tmp_path: Path) -> None:
    assert "re:PATTERN" in refusal(tmp_path / "a", model(), moved(), region="attention")
    assert "layers 0 to 0" in refusal(tmp_path / "b", model(), moved(), layers="0-1")
    assert compare(tmp_path / "c", model(), moved(), layers="0").change.elements == 6


def test_swapped(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", model())
    write_checkpoint(tmp_path / "tuned", moved())
    manifest = {"sftknow": 1, "kind": "model", "base": {"path": str(tmp_path / "base")}}
    (tmp_path / "tuned" / "sftknow.json").write_text(json.dumps(manifest))
    analyse(tmp_path / "base", tmp_path / "tuned", ["50%"])
    with pytest.raises(CheckpointError, match="swapped"):
        analyse(tmp_path / "tuned", tmp_path / "base", ["50%"])


def test_one_folder(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "base", model())
    (tmp_path / "link").symlink_to(folder)
    for other in (folder, tmp_path / "link"):
        with pytest.raises(CheckpointError, match="are one folder"):
            analyse(folder, other, ["50%"])


def test_identical(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="nothing changed"):
        found = compare(tmp_path, model(), model())
    assert found.change.changed == 0
    assert np.isnan(found.change.levels[0].concentration)
    assert found.change.levels[0].selected_unchanged == 3


def test_a_prefix_more_or_less(tmp_path: Path) -> None:
    """The base model on the Hub is often stored without its head, and so without the prefix of the body."""
    names = ("h.0.mlp.c_fc.weight", "wte.weight", "h.0.attn.bias")
    bare = {name: stored(np.ones(3), "F32") for name in names}
    wrapped = {"transformer." + name: stored(np.full(3, 2.0), "F32") for name in names[:2]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i, (base, tuned) in enumerate(((bare, wrapped), (wrapped, bare))):
            found = compare(tmp_path / str(i), base, tuned)
            assert (found.change.elements, found.change.changed) == (3, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strategy": "best"}, "strategy"),
        ({"arithmetic": "float16"}, "arithmetic"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"region": "layers"}, "region"),
        ({"layers": "x"}, "layers"),
    ],
)
def test_settings_are_checked(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    assert words in refusal(tmp_path, model(), moved(), **options)
