"""What names say of every causal and image-text class of transformers, against the classes of its modules."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto import modeling_auto

from sftknow.checkpoints.regions import named_part, place_of
from sftknow.models.loader_names import LoaderNames

CLASSES = sorted(
    {
        str(name if isinstance(name, str) else name[0])
        for table in ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES")
        for name in getattr(modeling_auto, table).values()
    }
)
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers")

KNOWN = {
    r"lm_head\.bias$": "the bias of an output head counts with the head",
    r"e_score_correction_bias$": "held as a parameter by some classes, trained by none",
    r"^model\.patcher\.": "a second, small model within the model",
    r"^Inkling2.*(?:_input\.query|\.norm\.scale)$": "mixes layers; its norms are of a class of another name",
    r"^Evolla.*\.adapter\.": "a feed-forward network inside of an attention class",
    r"^NemotronH_Omni.*lm_head": "the wrapper does not say which module is its output head",
    r"^(?:PPFormulaNet|VisionEncoderDecoder).*encoder\.": "image encoders",
}
"""Where name and class differ, by class and tensor, and why that is right."""


def build(name: str, *, shallow: bool) -> Any:
    kind = getattr(transformers, name)
    config = kind.config_class()
    for part in (config, getattr(config, "text_config", None)):
        for key in DEPTHS if shallow else ():
            if isinstance(getattr(part, key, None), int):
                setattr(part, key, min(getattr(part, key), 4))
    with torch.device("meta"):
        return kind._from_config(config)


def model_of(name: str) -> Any:
    """Without weights, four layers deep where the class takes that; skipped where its own default config is refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return build(name, shallow=True)
        except Exception:
            try:
                return build(name, shallow=False)
            except Exception as error:
                pytest.skip(f"transformers cannot build it from its default configuration: {error}")


def check(name: str) -> None:
    model = model_of(name)
    loader = LoaderNames(model)
    wrong = {}
    for parameter, _ in model.named_parameters():
        said, found = named_part(parameter), loader.part(parameter)
        explained = any(re.search(rule, text) for rule in KNOWN for text in (parameter, f"{name} {parameter}"))
        if said not in (None, "outside", found) and not explained:
            wrong[re.sub(r"\d+", "N", parameter)] = (said, found)
    assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_every_class(name: str) -> None:
    check(name)


@pytest.mark.parametrize(
    ("name", "region", "tensors"),
    [
        ("NemotronHForCausalLM", "mixer", ["in_proj", "conv1d", "A_log", "out_proj"]),
        ("Zamba2ForCausalLM", "mixer", ["mamba.in_proj", "mamba.out_proj"]),
        ("FalconMambaForCausalLM", "mixer", ["mixer.in_proj", "mixer.x_proj"]),
        ("RecurrentGemmaForCausalLM", "attention", ["temporal_block.q_proj", "temporal_block.o_proj"]),
        ("RecurrentGemmaForCausalLM", "mixer", ["temporal_block.linear_x", "temporal_block.rg_lru"]),
        ("BartForCausalLM", "attention", ["encoder_attn.k_proj", "self_attn.q_proj"]),
        ("MllamaForConditionalGeneration", "attention", ["cross_attn.q_proj"]),
        ("JambaForCausalLM", "mixer", ["mamba.x_proj"]),
        ("OPTForCausalLM", "mlp", ["fc1", "fc2"]),
    ],
)
def test_parts_of_a_layer(name: str, region: str, tensors: list[str]) -> None:
    """By the classes; and the names, where they say something, say the same."""
    check(name)
    model = model_of(name)
    loader = LoaderNames(model)
    for wanted in tensors:
        found = [n for n, _ in model.named_parameters() if f".{wanted}" in n and place_of(n).layer is not None]
        assert found, wanted
        if name != "NemotronHForCausalLM":
            assert {loader.part(parameter) for parameter in found} == {region}, wanted
        else:
            assert region in {loader.part(parameter) for parameter in found}, wanted
