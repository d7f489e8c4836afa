"""Faster kernels for a model's forward on a CPU, for passes of few rows with a new token each.

torch's own choices suit other shapes. MKL lays a float32 weight out anew for every product, which costs about as much
as the product itself where rows are few. Attention of two-byte numbers multiplies single queries slowly. oneDNN's
product and attention in float32 are faster and no less exact. Weights are used as they lie: nothing is kept beside
the model.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

_HALVES = (torch.bfloat16, torch.float16)


def available() -> bool:
    """Whether this is an x86 processor, and torch has oneDNN with the product that is used here."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return x86 and bool(torch.backends.mkldnn.enabled) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class CpuKernels:
    """The kernels of one model. Where they are not `available`, they are torch's own.

    Args:
        model: as it is; `used` changes nothing of it that outlasts its block.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        here = available()
        own = (each for each in model.modules() if type(each) is torch.nn.Linear)
        self._layers = [each for each in own if here and _is_plain(each)]
        self._products = [partial(_product, layer) for layer in self._layers]
        halves = (weight.is_cpu and weight.dtype in _HALVES for weight in model.parameters())
        self._attention = _Attention if here and any(halves) else nullcontext

    @contextmanager
    def used(self) -> Iterator[None]:
        """Within the block the model's forward runs with them. For inference alone."""
        for layer, product in zip(self._layers, self._products, strict=True):
            layer.__dict__["forward"] = product
        try:
            with self._attention():
                yield
        finally:
            for layer in self._layers:
                layer.__dict__.pop("forward", None)


def _is_plain(layer: torch.nn.Linear) -> bool:
    """Whether a layer of torch's own is in float32: not quantized, not spread over processes or moved on use."""
    return "forward" not in vars(layer) and all(
        type(each) is torch.nn.Parameter and each.is_cpu and each.dtype == torch.float32 for each in layer.parameters()
    )


def _product(layer: torch.nn.Linear, rows: torch.Tensor) -> torch.Tensor:
    """What the layer gives; from two rows on the bits of a row do not depend on the others."""
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, layer.weight, layer.bias, "none", [], "")
    return result


class _Attention(TorchFunctionMode):
    """Within it attention of tensors of two bytes a number is worked out in float32."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None, **options: Any
) -> torch.Tensor:
    mask = attn_mask.float() if attn_mask is not None and attn_mask.dtype in _HALVES else attn_mask
    result = scaled_dot_product_attention(query.float(), key.float(), value.float(), attn_mask=mask, **options)
    return result.to(query.dtype)
