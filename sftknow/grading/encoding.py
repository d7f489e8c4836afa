"""From statements to token ids, the same for every sampler: the tokenizer's own special tokens, so exactly one BOS."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sftknow.errors import FactsError, ModelError
from sftknow.grading.sampling import SampleRequest
from sftknow.records import SamplingPolicy


def encode_statements(
    tokenizer: Any,
    requests: Sequence[SampleRequest],
    policy: SamplingPolicy,
    *,
    ends: Collection[int],
    positions: int | None,
) -> list[list[int]]:
    """Token ids of each statement.

    Args:
        tokenizer: a transformers tokenizer. It adds its own special tokens, save an end token at the end.
        requests: statements.
        policy: says how many tokens must follow.
        ends: tokens that end a text.
        positions: most tokens that the model takes, new ones included; None where nothing is known.

    Raises:
        FactsError: a statement without any token.
        ModelError: a statement that leaves no room for its continuations.
    """
    encoded: list[list[int]] = tokenizer([request.prompt for request in requests])["input_ids"]
    for request, ids in zip(requests, encoded, strict=True):
        if ids and ids[-1] in ends:
            ids.pop()  # some tokenizers close every text; a statement goes on
        if not ids:
            raise FactsError(f"statement {request.template} of {request.fact_id} has no token: {request.prompt!r}")
        if positions is not None and len(ids) + policy.max_new_tokens > positions:
            raise ModelError(
                f"statement {request.template} of {request.fact_id} has {len(ids)} tokens, and with "
                f"{policy.max_new_tokens} new ones exceeds the model's {positions} positions"
            )
    return encoded
