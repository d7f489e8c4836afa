"""Tokens that end a text, and the longest sequence."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import LlamaConfig

from sftknow.errors import ModelError
from sftknow.models.limits import end_ids, most_positions, refuse_long
from tests.tiny import tiny_tokenizer


def holder(ids: Any) -> SimpleNamespace:
    return SimpleNamespace(eos_token_id=ids)


def test_end_tokens_are_those_of_every_source_in_their_order() -> None:
    assert end_ids(holder(None), holder(3), holder([2, 3]), holder((3, 4)), object(), None) == (3, 2, 4)
    assert end_ids(holder(None)) == ()


@pytest.mark.parametrize("limit", [16, 4096])
def test_most_positions(limit: int) -> None:
    assert most_positions(LlamaConfig(max_position_embeddings=limit)) == limit
    assert most_positions(SimpleNamespace(get_text_config=SimpleNamespace)) is None


def test_texts_that_leave_no_room_are_named_with_the_longest() -> None:
    tokenizer = tiny_tokenizer()
    short, long = "The capital of", "The capital of the country of the river"
    room = len(tokenizer(long)["input_ids"])
    assert room > len(tokenizer(short)["input_ids"]) + 2

    def ask(positions: int | None) -> None:
        refuse_long("me", tokenizer, [short, long], new_tokens=2, positions=positions, way_out="Wait")

    ask(room + 2)
    ask(None)
    with pytest.raises(ModelError) as said:
        ask(room + 1)
    assert str(said.value) == (
        f"me takes {room + 1} tokens, which 1 of the texts that it is to go on with exceed with 2 new ones; the "
        f"longest has {room}: {long!r}. Wait, or take a model with a longer context"
    )
