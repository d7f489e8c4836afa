from __future__ import annotations

import pytest

from sftknow.checkpoints.regions import natural_order, parse_layers, parse_region, place_of
from sftknow.errors import CheckpointError


@pytest.mark.parametrize(
    ("name", "layer", "module"),
    [
        ("model.layers.10.mlp.down_proj.weight", 10, "mlp.down_proj"),
        ("model.layers.0.self_attn.q_proj.bias", 0, "self_attn.q_proj"),
        ("transformer.h.3.attn.c_attn.weight", 3, "attn.c_attn"),
        ("h.3.mlp.c_fc.bias", 3, "mlp.c_fc"),
        ("gpt_neox.layers.5.attention.query_key_value.weight", 5, "attention.query_key_value"),
        ("model.decoder.layers.7.fc1.weight", 7, "fc1"),
        ("model.layers.2.block_sparse_moe.experts.7.w1.weight", 2, "block_sparse_moe.experts.w1"),
        ("model.layers.2.mlp.experts.gate_up_proj", 2, "mlp.experts.gate_up_proj"),
        ("model.language_model.layers.4.mlp.up_proj.weight", 4, "mlp.up_proj"),
        ("model.vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight", None, None),
        ("model.visual.blocks.1.mlp.fc1.weight", None, None),
        ("model.embed_tokens.weight", None, "model.embed_tokens"),
        ("lm_head.weight", None, "lm_head"),
    ],
)
def test_places(name: str, layer: int | None, module: str | None) -> None:
    place = place_of(name)
    assert place.layer == layer
    assert module is None or place.module == module
    assert not place.norm
    assert not place.buffer


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.self_attn.q_norm.weight",
        "transformer.h.0.ln_1.bias",
        "transformer.ln_f.weight",
        "model.decoder.layers.0.self_attn_layer_norm.weight",
        "model.norm.weight",
    ],
)
def test_norms(name: str) -> None:
    assert place_of(name).norm
    assert name not in parse_region("transformer")
    assert name not in parse_region("attention,mlp,embedding")
    assert name in parse_region("all")


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "h.0.attn.bias",
        "transformer.h.0.attn.masked_bias",
        "gpt_neox.layers.0.attention.bias",
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq",
        "model.vision_tower.embeddings.position_ids",
    ],
)
def test_buffers_belong_to_no_region(name: str) -> None:
    assert place_of(name).buffer
    assert name not in parse_region("all")
    assert name not in parse_region("re:.*")


ATTENTION = ["model.layers.1.self_attn.o_proj.weight", "h.1.attn.c_proj.bias", "gpt_neox.layers.1.attention.dense.bias"]
MLP = ["model.layers.1.mlp.gate_proj.weight", "model.decoder.layers.1.fc2.bias", "model.layers.1.mlp.gate.weight"]
EMBEDDING = ["model.embed_tokens.weight", "transformer.wte.weight", "lm_head.weight", "gpt_neox.embed_out.weight"]


def test_regions_by_name() -> None:
    for region, inside in (("attention", ATTENTION), ("mlp", MLP), ("embedding", EMBEDDING)):
        found = parse_region(region)
        assert [name for name in ATTENTION + MLP + EMBEDDING if name in found] == inside
    assert [name for name in ATTENTION + MLP + EMBEDDING if name in parse_region("transformer")] == ATTENTION + MLP
    union = parse_region("embedding, attention")
    assert [name for name in ATTENTION + MLP + EMBEDDING if name in union] == ATTENTION + EMBEDDING
    assert "model.vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight" not in parse_region("transformer")


def test_regions_by_pattern_and_layers() -> None:
    found = parse_region(r"re:\.(gate|up)_proj\.", "0-1")
    assert "model.layers.1.mlp.gate_proj.weight" in found
    assert "model.layers.2.mlp.gate_proj.weight" not in found
    assert "model.layers.1.mlp.down_proj.weight" not in found
    assert "model.layers.1.self_attn.q_proj.weight" in parse_region(r"attention,re:[ab,]{2}never")
    assert "lm_head.weight" not in parse_region("all", "0-1")


def test_layers() -> None:
    assert parse_layers("0-3, 7") == {0, 1, 2, 3, 7}
    for text in ("", "3-1", "a", "1-", "-1", "1;2"):
        with pytest.raises(CheckpointError, match="layers"):
            parse_layers(text)


@pytest.mark.parametrize("region", ["", "decoder", "attention+mlp", "re:("])
def test_regions_that_are_refused(region: str) -> None:
    with pytest.raises(CheckpointError, match="region"):
        parse_region(region)


def test_natural_order() -> None:
    names = ["l.10.a", "l.2.b", "l.2.a", "a", "l.02.a", "10", "l"]
    assert natural_order(names) == ["10", "a", "l", "l.02.a", "l.2.a", "l.2.b", "l.10.a"]
    assert natural_order(names[::-1]) == natural_order(names)
