"""Drawing tokens: the inverse of each row's cumulative distribution at uniforms that the samples own."""

from __future__ import annotations

import torch

from sftknow.errors import ModelError

_BLOCK = 64


def draw_tokens(
    logits: torch.Tensor, rows: torch.Tensor, uniforms: torch.Tensor, *, temperature: float
) -> torch.Tensor:
    """One token for each sample, from softmax(logits / temperature) over the whole vocabulary.

    Two searches instead of a cumulative sum over the vocabulary: first the block of 64 tokens, then the token within
    it. Sums over blocks are float64, so that tokens of small probability keep their share in large vocabularies.

    Args:
        logits: any float dtype, shape [rows, vocabulary].
        rows: int64, shape [samples]: the row each sample draws from.
        uniforms: float64 in [0, 1), shape [samples].
        temperature: above 0.

    Returns:
        Token ids, int64, shape [samples]. Samples of one row are together a multinomial draw.

    Raises:
        ModelError: a row's logits hold NaN or +inf.
    """
    scaled = logits.float() / temperature
    weights = scaled.sub_(scaled.amax(dim=-1, keepdim=True)).exp_()
    beyond = -weights.shape[-1] % _BLOCK
    if beyond:
        weights = torch.nn.functional.pad(weights, (0, beyond))
    blocks = weights.view(len(weights), -1, _BLOCK)
    sums = blocks.sum(dim=-1).double()
    ends = sums.cumsum(dim=-1)
    if not bool(torch.isfinite(ends[:, -1]).all()):
        raise ModelError("the model's logits are not finite (NaN or inf); load it in float32 or bfloat16")
    ends_of = ends[rows]
    target = _below(uniforms * ends_of[:, -1], ends_of[:, -1])
    block = torch.searchsorted(ends_of, target[:, None], right=True)[:, 0]
    share = (target - (ends_of.gather(1, block[:, None])[:, 0] - sums[rows, block])) / sums[rows, block]
    inner = blocks[rows, block].double().cumsum(dim=-1)
    target = _below(share.clamp(min=0.0) * inner[:, -1], inner[:, -1])
    return block * _BLOCK + torch.searchsorted(inner, target[:, None], right=True)[:, 0]


def _below(values: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Values kept under the end of their distribution, where rounding would put them on it."""
    return torch.minimum(values, torch.nextafter(ends, torch.zeros_like(ends)))
