"""Drawing tokens: the inverse of each row's cumulative distribution at uniforms that the samples own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from sftknow.errors import ModelError

_BLOCK = 64
_AT_ONCE = 1 << 19
"""Logits that a CPU works on at a time, so that they stay in its cache from the first step to the last."""


def draw_tokens(
    logits: torch.Tensor, rows: torch.Tensor, uniforms: torch.Tensor, *, temperature: float
) -> torch.Tensor:
    """One token for each sample, from softmax(logits / temperature) over the whole vocabulary.

    Args and result: as `begin_draw`.

    Raises:
        ModelError: a row's logits hold NaN or +inf, or nothing but -inf.
    """
    return begin_draw(logits, rows, uniforms, temperature=temperature).tokens()


@dataclass(frozen=True)
class Draw:
    """Tokens that a GPU may still be drawing."""

    drawn: torch.Tensor
    finite: torch.Tensor
    """Whether all logits were, a single bool."""

    def tokens(self) -> torch.Tensor:
        """Wait for them; int64, shape [samples]. Raises as `draw_tokens`."""
        if not bool(self.finite):
            raise ModelError(
                "the model's logits are not finite (NaN or inf); load it in float32 or bfloat16, or mend its weights"
            )
        return self.drawn


def begin_draw(logits: torch.Tensor, rows: torch.Tensor, uniforms: torch.Tensor, *, temperature: float) -> Draw:
    """One token for each sample, from softmax(logits / temperature) over the whole vocabulary, without waiting for it.

    Two searches instead of a cumulative sum over the vocabulary: first the block of 64 tokens, then the token within
    it. Sums over blocks are float64, so that tokens of small probability keep their share in large vocabularies.

    Args:
        logits: any float dtype, shape [rows, vocabulary].
        rows: int64, shape [samples]: the row each sample draws from.
        uniforms: float64 in [0, 1), shape [samples].
        temperature: above 0.

    Returns:
        Token ids, int64, shape [samples]. Samples of one row are together a multinomial draw.
    """
    highest, sums = _block_sums(logits, temperature)
    ends = sums.cumsum(dim=-1)
    ends_of = ends[rows]
    target = _below(uniforms * ends_of[:, -1], ends_of[:, -1])
    # Where nothing is finite the search may end beyond the last block.
    block = torch.searchsorted(ends_of, target[:, None], right=True)[:, 0].clamp_(max=ends.shape[1] - 1)
    mass = sums[rows, block]
    share = (target - (ends_of.gather(1, block[:, None])[:, 0] - mass)) / mass
    # The chosen blocks alone are computed once more, which is cheaper than to have kept the weights of all.
    tokens = block[:, None] * _BLOCK + torch.arange(_BLOCK, device=logits.device)
    beyond = tokens >= logits.shape[-1]
    inside = logits[rows[:, None], tokens.masked_fill(beyond, 0)].float() / temperature
    inner = (inside - highest[rows]).exp_().masked_fill_(beyond, 0.0).double().cumsum(dim=-1)
    target = _below(share.clamp(min=0.0) * inner[:, -1], inner[:, -1])
    drawn = block * _BLOCK + torch.searchsorted(inner, target[:, None], right=True)[:, 0]
    return Draw(drawn, torch.isfinite(ends[:, -1]).all())


def _block_sums(logits: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's highest scaled logit, float32 [rows, 1], and the weights of its blocks, float64 [rows, blocks]."""
    rows, vocabulary = logits.shape
    at_once = rows if logits.is_cuda else max(1, _AT_ONCE // vocabulary)
    work = torch.empty((min(rows, at_once), vocabulary), dtype=torch.float32, device=logits.device)
    whole = vocabulary - vocabulary % _BLOCK
    highest, sums = [], []
    for start in range(0, rows, at_once):
        part = logits[start : start + at_once]
        weights = work[: len(part)]
        if part.dtype == torch.float32:
            torch.div(part, temperature, out=weights)
        else:  # divided in float32, not in their own dtype
            weights.copy_(part).div_(temperature)
        highest.append(weights.amax(dim=-1, keepdim=True))
        weights.sub_(highest[-1]).exp_()
        blocks = weights[:, :whole].view(len(part), whole // _BLOCK, _BLOCK).sum(dim=-1)
        if whole < vocabulary:
            blocks = pad(blocks, (0, 1))
            blocks[:, -1] = weights[:, whole:].sum(dim=-1)
        sums.append(blocks.double())
    return torch.cat(highest), torch.cat(sums)


def _below(values: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Values kept under the end of their distribution, where rounding would put them on it."""
    return torch.minimum(values, torch.nextafter(ends, torch.zeros_like(ends)))
