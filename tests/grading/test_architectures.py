"""Families of models with caches, positions and masks of every kind: sampled exactly, or refused with one line."""

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from sftknow.errors import ModelError
from sftknow.grading.transformers_sampler import TransformersSampler
from sftknow.models.forward import CACHE_NAMES
from sftknow.records import SamplingPolicy
from tests.grading.test_transformers_sampler import (
    COMMON,
    GROUPED,
    SHAPE,
    TOKENIZER,
    build,
    one_by_one,
    requests,
    spread,
)

PLAIN = {**COMMON, **SHAPE, "max_position_embeddings": 96}
GPT = {**COMMON, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96}
HEADS = {**GROUPED, "head_dim": 8}
WINDOW = {**HEADS, "sliding_window": 7}  # continuations outgrow it
OPT = {**COMMON, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
LATENT |= {**EXPERTS, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
MPT = {"vocab_size": COMMON["vocab_size"], "eos_token_id": 1, "d_model": 32, "n_heads": 4, "n_layers": 2}
LOCAL = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}

EXACT = {
    "Gemma2": WINDOW,
    "Phi": PLAIN,
    "OPT": {**OPT, "word_embed_proj_dim": 32, "max_position_embeddings": 96},
    "Bloom": {**COMMON, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "Falcon": {**COMMON, **SHAPE, "alibi": True, "new_decoder_architecture": False},
}
EXACT_TOO = {
    "Gemma": HEADS,
    "Phi3": GROUPED,
    "Qwen3": HEADS,
    "Olmo2": GROUPED,
    "StableLm": GROUPED,
    "Cohere": GROUPED,
    "Starcoder2": GROUPED,
    "Mpt": {**MPT, "max_seq_len": 96},
    "GPTJ": {**GPT, "rotary_dim": 4},
    "GPTBigCode": GPT,
    "CodeGen": {**GPT, "rotary_dim": 4},
    "GPTNeo": {**COMMON, **LOCAL, "window_size": 7, "max_position_embeddings": 96},
    "Mixtral": {**GROUPED, "num_local_experts": 4},
    "Qwen3Moe": {**HEADS, **EXPERTS, "num_experts": 4},
    "DeepseekV3": {**PLAIN, **LATENT, "num_key_value_heads": 4},
    "GptOss": {**WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},
}
REFUSED = {
    "Mamba": {**COMMON, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "Rwkv": {**COMMON, "hidden_size": 32, "num_hidden_layers": 2, "context_length": 96},
    "Lfm2": {**GROUPED, "layer_types": ["conv", "full_attention"], "block_ff_dim": 64},
}


def tiny(name, options):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**options, "tie_word_embeddings": False})
    return AutoModelForCausalLM.from_config(config).eval()


def assert_exact(name, options):
    model = spread(tiny(name, options))
    asked, policy = requests(1), SamplingPolicy(samples=3, max_new_tokens=8, seed=3)
    tallies = TransformersSampler(model, TOKENIZER, max_rows=6).sample(asked, policy, keep_texts=True)
    assert [tally.texts for tally in tallies] == [one_by_one(model, TOKENIZER, each, policy) for each in asked]


@pytest.mark.parametrize("name", EXACT)
def test_every_sample_is_what_it_would_be_alone(name):
    assert_exact(name, EXACT[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT_TOO)
def test_every_sample_is_what_it_would_be_alone_in_further_families(name):
    assert_exact(name, EXACT_TOO[name])


@pytest.mark.parametrize("name", REFUSED)
def test_other_caches_are_refused(name):
    with pytest.raises(ModelError, match=r"key-value cache|keys and values") as caught:
        TransformersSampler(tiny(name, REFUSED[name]), TOKENIZER)
    assert "\n" not in str(caught.value)
    assert "vLLM" in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cache_that_changes_what_the_model_says_is_noticed(dtype):
    model = build("llama").to(dtype)
    with torch.no_grad():
        for layer in model.model.layers:  # attention that looks at places
            layer.self_attn.q_proj.weight.mul_(20)
            layer.self_attn.k_proj.weight.mul_(20)
    TransformersSampler(model, TOKENIZER)  # it is right as it is
    forward = model.model.forward

    def forgetful(*arguments, position_ids=None, **others):
        ids = others.get("input_ids", arguments[0] if arguments else None)
        position_ids = torch.arange(ids.shape[1])[None]  # as if every pass began the text
        return forward(*arguments, position_ids=position_ids, **others)

    model.model.forward = forgetful
    with pytest.raises(ModelError, match="other next tokens with a key-value cache"):
        TransformersSampler(model, TOKENIZER)


def test_a_model_that_breaks_on_the_cache_is_one_clear_line():
    model = build("llama")

    def unable(_module, _arguments, options):
        if any(options.get(name) is not None for name in CACHE_NAMES):
            raise ValueError("only my own cache\nwill do")

    model.register_forward_pre_hook(unable, with_kwargs=True)
    with pytest.raises(ModelError, match="does not work with a plain key-value cache") as caught:
        TransformersSampler(model, TOKENIZER)
    assert "only my own cache" in str(caught.value)
    assert "\n" not in str(caught.value)
