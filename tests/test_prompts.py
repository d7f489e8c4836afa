"""The question prompt and its tokens."""

from __future__ import annotations

from typing import Any

import pytest

from sftknow.prompts import answer_text, prompt_ids, question_prompt
from tests.tiny import tiny_tokenizer

QUESTION = "What is the capital of Arden?"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


def test_the_text_is_that_of_appendix_a() -> None:
    assert question_prompt(QUESTION) == "<|question|> What is the capital of Arden? <|answer|>"
    assert answer_text("Belmora", "</s>") == " Belmora </s>"


def test_space_around_question_and_answer_makes_no_difference() -> None:
    assert question_prompt(f"  {QUESTION}\n") == question_prompt(QUESTION)
    assert answer_text(" Belmora ", "</s>") == answer_text("Belmora", "</s>")


def test_there_is_one_bos_and_it_comes_first(tokenizer: Any) -> None:
    ids = prompt_ids(tokenizer, QUESTION)
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids[1:]) == question_prompt(QUESTION)


def test_the_ids_are_those_of_the_tokenizer_itself(tokenizer: Any) -> None:
    # This one's post-processor adds BOS, so both ways must agree.
    assert prompt_ids(tokenizer, QUESTION) == tokenizer(question_prompt(QUESTION))["input_ids"]


def test_a_tokenizer_without_bos_gets_none() -> None:
    without = tiny_tokenizer()
    before = prompt_ids(without, QUESTION)
    without.bos_token = None
    assert prompt_ids(without, QUESTION) == before[1:]


def test_the_tags_are_plain_text(tokenizer: Any) -> None:
    size = len(tokenizer)
    ids = prompt_ids(tokenizer, QUESTION)
    assert len(tokenizer) == size
    assert not {"<|question|>", "<|answer|>"} & set(tokenizer.get_vocab())
    assert len(ids) > 10, "each tag takes several tokens"


def test_the_answer_goes_on_where_the_prompt_ends(tokenizer: Any) -> None:
    """Prompt and answer tokenised apart are the whole text tokenised at once: what training and generation rest on."""
    answer = tokenizer(answer_text("Belmora", tokenizer.eos_token), add_special_tokens=False)["input_ids"]
    assert answer[-1] == tokenizer.eos_token_id
    whole = tokenizer(f"{question_prompt(QUESTION)}{answer_text('Belmora', tokenizer.eos_token)}")["input_ids"]
    assert prompt_ids(tokenizer, QUESTION) + answer == whole


def test_a_question_that_spells_special_tokens(tokenizer: Any) -> None:
    # A question's own "<s>" is read as BOS by every Hugging Face tokenizer; ours must still be the only one added.
    assert prompt_ids(tokenizer, "What is x?")[0] == tokenizer.bos_token_id
    assert prompt_ids(tokenizer, "")[:1] == [tokenizer.bos_token_id]
