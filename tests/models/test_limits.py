"""Tokens that end a text, and the longest sequence."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import LlamaConfig

from sftknow.models.limits import end_ids, most_positions


def holder(ids: Any) -> SimpleNamespace:
    return SimpleNamespace(eos_token_id=ids)


def test_end_tokens_are_those_of_every_source_in_their_order() -> None:
    assert end_ids(holder(None), holder(3), holder([2, 3]), holder((3, 4)), object(), None) == (3, 2, 4)
    assert end_ids(holder(None)) == ()


@pytest.mark.parametrize("limit", [16, 4096])
def test_most_positions(limit: int) -> None:
    assert most_positions(LlamaConfig(max_position_embeddings=limit)) == limit
    assert most_positions(SimpleNamespace(get_text_config=SimpleNamespace)) is None
