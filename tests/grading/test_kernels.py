"""The CPU's kernels give what torch's own do, no less exactly, and leave the model as it was."""

import platform

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn import Linear, Parameter
from torch.nn.functional import scaled_dot_product_attention

from sftknow.grading.kernels import CpuKernels, available
from sftknow.grading.transformers_sampler import TransformersSampler
from sftknow.records import SamplingPolicy
from tests.grading.test_transformers_sampler import TOKENIZER, build, requests

pytestmark = pytest.mark.skipif(not available(), reason="torch's own kernels are used on this processor")


def by(model, *rows):
    with torch.inference_mode(), CpuKernels(model).used():
        return model(*rows)


def error(result, exact):
    return float((result.double() - exact).abs().max())


@settings(deadline=None, max_examples=40)
@given(
    inputs=st.integers(1, 300),
    outputs=st.integers(1, 300),
    shape=st.sampled_from([(1,), (2,), (7, 1), (16, 3), (65, 1), (2, 3, 4)]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_linear_layer_is_as_exact_as_torchs_own(inputs, outputs, shape, bias, seed):
    torch.manual_seed(seed)
    layer = Linear(inputs, outputs, bias=bias)
    rows = torch.randn(*shape, inputs)
    exact = torch.nn.functional.linear(
        rows.double(), layer.weight.double(), layer.bias.double() if bias else None
    ).detach()
    result = by(layer, rows)
    assert result.shape == exact.shape
    assert error(result, exact) <= 2 * error(layer(rows).detach(), exact) + 1e-6


@pytest.mark.parametrize(("inputs", "outputs"), [(576, 192), (1536, 576), (100, 7), (64, 5000), (2048, 512)])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_rows_bits_do_not_depend_on_its_company(inputs, outputs, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        layer, rows = Linear(inputs, outputs), torch.randn(300, inputs)
        whole = by(layer, rows)
        for count in (2, 3, 5, 8, 15, 16, 17, 31, 64, 131, 257):
            for start in (0, 43):
                assert torch.equal(by(layer, rows[start : start + count]), whole[start : start + count]), count
    finally:
        torch.set_num_threads(before)


def test_columns_of_a_wider_tensor_are_rows_too():
    layer, wide = Linear(8, 4), torch.randn(5, 24)
    torch.testing.assert_close(by(layer, wide[:, 8:16]), layer(wide[:, 8:16]).detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize("mask", ["none", "causal", "added", "hiding"])
def test_attention_in_two_bytes_is_no_less_exact_than_torchs_own(dtype, queries, mask):
    class Attention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = Parameter(torch.ones(1, dtype=dtype))

        def forward(self, *states):
            return scaled_dot_product_attention(*states, **options)

    torch.manual_seed(1)
    options = {"scale": 0.3, "enable_gqa": True}
    states = [torch.randn(3, heads, tokens, 16).to(dtype) for heads, tokens in ((4, queries), (2, 9), (2, 9))]
    exact_options = options
    if mask == "causal":
        options["is_causal"] = True
    elif mask != "none":
        hidden = torch.rand(3, 1, queries, 9) < 0.3
        options["attn_mask"] = ~hidden if mask == "hiding" else torch.zeros(hidden.shape, dtype=dtype) - 2 * hidden
        added = options["attn_mask"]
        exact_options = {**options, "attn_mask": added if added.dtype == torch.bool else added.double()}
    exact = scaled_dot_product_attention(*(each.double() for each in states), **exact_options)
    model = Attention()
    result = by(model, *states)
    assert result.dtype == dtype
    assert error(result, exact) <= error(model(*states).detach(), exact) + 1e-6


class Own(Linear):
    pass


def test_what_is_not_torchs_own_layer_in_float32_is_left_alone():
    moved = Linear(4, 4)
    moved.forward = lambda rows: rows * 0 + 7  # as accelerate does where weights are fetched on use
    layers = torch.nn.ModuleList([Linear(4, 4), Own(4, 4), Linear(4, 4).double(), Linear(4, 4).bfloat16(), moved])
    with CpuKernels(layers).used():
        assert ["forward" in vars(layer) for layer in layers] == [True, False, False, False, True]
        assert moved(torch.ones(2, 4)).eq(7).all()
    assert ["forward" in vars(layer) for layer in layers] == [False, False, False, False, True]


@pytest.mark.parametrize("lacking", ["processor", "oneDNN"])
def test_elsewhere_torchs_own_kernels_are_used(monkeypatch, lacking):
    if lacking == "processor":
        monkeypatch.setattr(platform, "machine", lambda: "arm64")
    else:
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    layer = Linear(4, 4)
    with CpuKernels(layer).used():
        assert "forward" not in vars(layer)


def test_an_error_leaves_the_model_as_it_was():
    layer = Linear(4, 4)
    with pytest.raises(RuntimeError), CpuKernels(layer).used():
        layer(torch.ones(2, 5))
    assert "forward" not in vars(layer)


def test_new_weights_are_used_and_hooks_still_run():
    layer, seen = Linear(4, 4, bias=False), []
    kernels = CpuKernels(layer)
    layer.register_forward_hook(lambda *_: seen.append(1))
    layer.weight = Parameter(torch.eye(4) * 3)
    with torch.inference_mode(), kernels.used():
        assert layer(torch.ones(2, 4)).eq(3).all()
    assert seen == [1]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-4), (torch.bfloat16, 0.5)])
def test_a_model_says_the_same_and_is_not_changed(kind, dtype, near):
    model = build(kind).to(dtype)
    ids = torch.randint(len(TOKENIZER), (4, 12), generator=torch.Generator().manual_seed(0))
    plain = model(input_ids=ids, use_cache=False).logits.detach()
    torch.testing.assert_close(by(model, ids).logits, plain, rtol=near / 10, atol=near)
    TransformersSampler(model, TOKENIZER).sample(requests(2), SamplingPolicy(samples=2, max_new_tokens=3))
    assert not any("forward" in vars(module) for module in model.modules())
