"""Divergence between two next-token distributions (paper, 4.1): pure functions over logits.

Shapes stand at the end of a name: n examples, v vocabulary entries, k ids compared. So ``logits_nv`` has n rows of v
logits; it may be of any float dtype, all arithmetic is float64. Divergences are in nats.

Infinite logits are limits: -inf is a token of probability 0, and where a row holds +inf those tokens share all of the
probability evenly. 0 · log(0 / q) is 0, and p · log(p / 0) is +inf. NaN has no such reading and is refused.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_BLOCK = 2**20
"""Values drawn at once by the bootstrap."""


class TopDivergence(NamedTuple):
    """The paper's measure, with what it leaves out of sight."""

    kl_n: Tensor
    """float64: KL(fine-tuned ‖ base) over the k ids, each model re-normalised over them."""
    ids_nk: Tensor
    """int64: the fine-tuned model's k largest logits, largest first, ties by lowest id."""
    tuned_nk: Tensor
    """float64: the fine-tuned model's re-normalised probabilities of those ids."""
    base_nk: Tensor
    """float64: the base's. All 0 where the base gives those ids no probability at all."""


def log_softmax(logits_nv: Tensor) -> Tensor:
    """Log probabilities, float64, shape of the input; a row of nothing but -inf stays -inf.

    Raises:
        ValueError: a logit is NaN.
    """
    logits = logits_nv.double()
    if logits.isnan().any():
        raise ValueError("logits hold NaN")
    infinite = logits.isposinf()
    if infinite.any():
        # Where a row holds +inf, keep just those entries, as equals.
        limit = torch.where(infinite, 0.0, -torch.inf)
        logits = torch.where(infinite.any(-1, keepdim=True), limit, logits)
    log_p = torch.log_softmax(logits, -1)
    # A row of nothing but -inf comes out as NaN. Looking first is cheaper than filling: few models use -inf at all.
    ruled_out = logits.isneginf()
    return log_p.masked_fill_(ruled_out, -torch.inf) if ruled_out.any() else log_p


def relative_entropy(log_p_nv: Tensor, log_q_nv: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ p · (log p - log q) of log probabilities, float64 of shape n.

    Exactly 0 for equal inputs and never below 0.
    """
    terms = log_p_nv.exp() * (log_p_nv - log_q_nv)
    # The limits, where the product above is 0 · inf or inf - inf. A p that underflows is not 0: only its log tells.
    p_never, q_never = log_p_nv.isneginf(), log_q_nv.isneginf()
    if p_never.any() or q_never.any():
        terms = terms.masked_fill_(q_never, torch.inf).masked_fill_(p_never, 0.0)
    return terms.sum(-1).clamp_min(0.0)


def top_ids(logits_nv: Tensor, k: int) -> Tensor:
    """Ids of the k largest logits, largest first and ties by lowest id; int64 of shape n x min(k, v).

    `torch.topk` alone leaves it open which of equal logits it takes; bf16 logits often tie.

    Raises:
        ValueError: k is below 1, or a logit is NaN.
    """
    if k < 1:
        raise ValueError(f"k is {k}; give 1 or more")
    if logits_nv.isnan().any():
        raise ValueError("logits hold NaN")
    k = min(k, logits_nv.shape[-1])
    values, ids = torch.topk(logits_nv, k, -1)
    smallest = values[..., -1:]
    level = logits_nv == smallest
    # Rows where more logits equal the smallest chosen one than there was room for: there topk's choice is arbitrary.
    crowded = level.sum(-1) > (values == smallest).sum(-1)
    if crowded.any():
        above = logits_nv[crowded] > smallest[crowded]
        among = level[crowded]
        chosen = above | (among & (among.cumsum(-1) <= k - above.sum(-1, keepdim=True)))
        ids[crowded] = chosen.nonzero()[:, -1].view(-1, k)
    ids = ids.sort(-1).values
    order = logits_nv.gather(-1, ids).sort(stable=True, dim=-1, descending=True).indices
    return ids.gather(-1, order)


def common_rows(first_nv: Tensor, second_nv: Tensor) -> tuple[Tensor, Tensor]:
    """Both cut to the vocabulary entries that both have: output heads are padded to different sizes."""
    rows = min(first_nv.shape[-1], second_nv.shape[-1])
    return first_nv[..., :rows], second_nv[..., :rows]


def top_k_divergence(tuned_logits_nv: Tensor, base_logits_nv: Tensor, k: int = 10) -> TopDivergence:
    """KL(fine-tuned ‖ base) over the k tokens that the fine-tuned model ranks highest (paper, 4.1 and Figure 3).

    The k largest logits of the fine-tuned model and the base's logits at the same ids go through a softmax each. So
    the dummy words that a base likes and a fine-tuned model no longer does ("the", "a") do not enter.

    Args:
        tuned_logits_nv: of the fine-tuned model; any float dtype.
        base_logits_nv: of the base, row for row at the same prompts. v may differ: common entries are compared.
        k: number of ids; at most v are taken.

    Raises:
        ValueError: a logit is NaN, or k is below 1.
    """
    tuned, base = common_rows(tuned_logits_nv, base_logits_nv)
    ids = top_ids(tuned, k)
    tuned_log = log_softmax(tuned.gather(-1, ids))
    base_log = log_softmax(base.gather(-1, ids))
    return TopDivergence(relative_entropy(tuned_log, base_log), ids, tuned_log.exp(), base_log.exp())


def full_divergence(tuned_logits_nv: Tensor, base_logits_nv: Tensor) -> tuple[Tensor, Tensor]:
    """KL over the whole common vocabulary: (fine-tuned ‖ base, base ‖ fine-tuned), float64 of shape n each.

    Raises:
        ValueError: a logit is NaN.
    """
    tuned, base = common_rows(tuned_logits_nv, base_logits_nv)
    tuned_log, base_log = log_softmax(tuned), log_softmax(base)
    return relative_entropy(tuned_log, base_log), relative_entropy(base_log, tuned_log)


def mass(log_p_nv: Tensor, ids_nk: Tensor) -> Tensor:
    """Probability that the ids carry together, float64 of shape n, at most 1."""
    return log_p_nv.gather(-1, ids_nk).exp().sum(-1).clamp_max(1.0)


def rank(log_p_nv: Tensor, id_n: Tensor) -> Tensor:
    """Place of one token among all, from 1, ties by lowest id; int64 of shape n."""
    own = log_p_nv.gather(-1, id_n[:, None])
    before = torch.arange(log_p_nv.shape[-1], device=log_p_nv.device) < id_n[:, None]
    return 1 + ((log_p_nv > own) | ((log_p_nv == own) & before)).sum(-1)


def bootstrap_interval(
    values_n: np.ndarray[tuple[int], np.dtype[np.float64]], *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean: (low, high). The same draw for the same n and seed.

    Raises:
        ValueError: there are no values, or no resamples.
    """
    count = len(values_n)
    if not count or resamples < 1:
        raise ValueError(f"{count} values and {resamples} resamples; give at least one of each")
    generator = np.random.default_rng(seed)
    # As many resamples at a time as fit into a bounded block: memory does not grow with their number.
    at_once = max(1, _BLOCK // count)
    means = np.concatenate(
        [
            values_n[generator.integers(count, size=(min(at_once, resamples - done), count))].mean(-1)
            for done in range(0, resamples, at_once)
        ]
    )
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
