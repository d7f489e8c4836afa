"""Pairs that cannot be compared are refused in one line that says why and what to do."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sftknow.errors import CheckpointError
from sftknow.parameters.change import Analysis, analyse
from sftknow.parameters.options import Resources
from tests.parameters.checkpoint_pairs import Tensor, stored, write_checkpoint

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
    with pytest.raises(CheckpointError, match=r"LoRA adapter.*merge_and_unload"):
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
