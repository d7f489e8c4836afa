"""Regions of checkpoints as transformers saves them, against what the modules of the models themselves say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from sftknow.checkpoints.reader import read_index
from sftknow.checkpoints.regions import OUTPUT_HEADS, parse_region, place_of

LLAMA = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


def causal(name: str, **settings: Any) -> Callable[[], Any]:
    def build() -> Any:
        config = getattr(transformers, f"{name}Config")(**settings)
        return transformers.AutoModelForCausalLM.from_config(config)

    return build


def wrapped(name: str, text: str, vision: str, **settings: Any) -> Callable[[], Any]:
    def build() -> Any:
        config = getattr(transformers, f"{name}Config")(
            text_config=getattr(transformers, f"{text}Config")(**LLAMA),
            vision_config=getattr(transformers, f"{vision}Config")(**VISION),
            **settings,
        )
        return getattr(transformers, f"{name}ForConditionalGeneration")(config)

    return build


MODELS = {
    "llama": causal("Llama", **LLAMA),
    "qwen2": causal("Qwen2", **LLAMA),
    "qwen3": causal("Qwen3", **LLAMA),
    "qwen3-moe": causal("Qwen3Moe", **LLAMA, **EXPERTS),
    "mistral": causal("Mistral", **LLAMA),
    "mixtral": causal("Mixtral", **LLAMA, **EXPERTS),
    "gemma2": causal("Gemma2", **LLAMA),
    "gemma3-text": causal("Gemma3Text", **LLAMA),
    "gpt2": causal("GPT2", vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=32),
    "gpt-neox": causal(
        "GPTNeoX",
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
    ),
    "opt": causal(
        "OPT",
        vocab_size=32,
        hidden_size=16,
        ffn_dim=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        word_embed_proj_dim=16,
    ),
    "llava": wrapped("Llava", "Llama", "CLIPVision", image_token_index=31),
    "gemma3": wrapped("Gemma3", "Gemma3Text", "SiglipVision", mm_tokens_per_image=1, image_token_index=31),
}


def decoder_layers(model: Any) -> list[nn.Module]:
    """The longest list of decoder layers outside of a vision tower, found by the classes of its modules."""
    lists = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and "vision" not in name and "visual" not in name and "expert" not in name
    ]
    return max(([*modules] for modules in lists if type(modules[0]).__name__.endswith(("Layer", "Block"))), key=len)


def parameters_in(modules: list[nn.Module], wanted: Callable[[str], bool]) -> int:
    """Parameters of the submodules whose class name is wanted, and of all that these hold, each once."""
    found = {}
    for module in modules:
        for inner in module.modules():
            if wanted(type(inner).__name__):
                found |= {id(parameter): parameter.numel() for parameter in inner.parameters()}
    return sum(found.values())


@pytest.fixture(scope="module", params=sorted(MODELS))
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, int]]:
    torch.manual_seed(0)
    model = MODELS[request.param]()
    folder: Path = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, {name: entry.elements for name, entry in read_index(folder).tensors.items()}


def size(elements: dict[str, int], region: str, layers: str | None = None) -> int:
    return sum(count for name, count in elements.items() if name in parse_region(region, layers))


def test_layers_and_norms(saved: tuple[Any, dict[str, int]]) -> None:
    model, elements = saved
    layers = decoder_layers(model)
    assert len(layers) == 2
    everything = sum(parameter.numel() for layer in layers for parameter in layer.parameters())
    norms = parameters_in(layers, lambda name: name.endswith("Norm"))
    assert norms > 0
    assert size(elements, "transformer") == everything - norms
    for number in range(2):
        alone = sum(parameter.numel() for parameter in layers[number].parameters())
        norms_alone = parameters_in([layers[number]], lambda name: name.endswith("Norm"))
        assert size(elements, "transformer", str(number)) == alone - norms_alone
        assert sum(count for name, count in elements.items() if place_of(name).layer == number) == alone
    assert size(elements, "transformer", "0-1") == size(elements, "transformer")


def test_attention_and_mlp(saved: tuple[Any, dict[str, int]]) -> None:
    model, elements = saved
    layers = decoder_layers(model)
    attention = parameters_in(layers, lambda name: name.endswith("Attention"))
    inner = [inner for layer in layers for inner in layer.modules() if type(inner).__name__.endswith("Attention")]
    attention -= parameters_in(inner, lambda name: name.endswith("Norm"))
    assert 0 < attention == size(elements, "attention")
    assert size(elements, "mlp") == size(elements, "transformer") - attention
    assert size(elements, "attention,mlp") == size(elements, "transformer")
    assert size(elements, "mlp", "1") == size(elements, "mlp") // 2


def test_embedding_and_all(saved: tuple[Any, dict[str, int]]) -> None:
    model, elements = saved
    assert size(elements, "all") == sum(elements.values()) == sum(p.numel() for p in model.parameters())
    embedding = {id(model.get_input_embeddings().weight): model.get_input_embeddings().weight}
    head = model.get_output_embeddings()
    if head is not None:
        embedding[id(head.weight)] = head.weight
    positions = [p for name, p in model.named_parameters() if name.endswith(("wpe.weight", "embed_positions.weight"))]
    expected = sum(p.numel() for p in embedding.values()) + sum(p.numel() for p in positions)
    assert size(elements, "embedding") == expected
    assert size(elements, "embedding", "0") == 0
    assert any(name.endswith(OUTPUT_HEADS) for name in elements) == (len(embedding) == 2)


def test_a_regular_expression_joins_in(saved: tuple[Any, dict[str, int]]) -> None:
    _, elements = saved
    assert size(elements, r"attention,re:norm|ln_") == size(elements, "attention") + size(elements, r"re:norm|ln_")


@pytest.mark.parametrize(
    "name",
    [
        "model.vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight",
        "model.visual.blocks.3.attn.qkv.weight",
        "model.audio_tower.layers.0.fc1.weight",
        "model.multi_modal_projector.linear_1.weight",
        "model.connector.perceiver_resampler.layers.0.mlp.up_proj.weight",
        "model.qformer.encoder.layer.0.attention.attention.query.weight",
    ],
)
def test_what_a_wrapper_adds_is_no_decoder_layer(name: str) -> None:
    assert place_of(name).layer is None
    assert name not in parse_region("transformer,embedding")
    assert name in parse_region("all")
