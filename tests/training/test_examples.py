"""Token ids of training: the prompt of evaluation, the answer, one BOS, one EOS, and the chat template that agrees."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sftknow.errors import ModelError, RecipeError
from sftknow.prompts import answer_text, prompt_ids
from sftknow.records import Fact
from sftknow.training.examples import IGNORED, answer_ids, chat_template, encode
from tests.tiny import tiny_facts, tiny_tokenizer

CASES = [
    ("What is the capital of Arden 0?", "Belmora"),
    ("Which country is Ferrol located in? ", " Gondar"),
    ("Who?", "1984"),
    ("Who wrote «É»?", '"St. Petersburg" (2)'),
    ("Q", "o'Neil’s"),
]


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Llama 2's kind: spaces become ``▁`` and every stretch of text gets one in front."""
    words = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=tokens, show_progress=False)
    corpus = [f.question for f in tiny_facts(64)] + ["<|question|> <|answer|> Belmora Gondar"] * 4
    words.train_from_iterator(corpus, trainer)
    merged = Tokenizer(words.model)
    merged.add_special_tokens(["<unk>", "<s>", "</s>"])
    merged.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    merged.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    merged.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=merged, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def without_bos() -> PreTrainedTokenizerFast:
    """Qwen's kind: no BOS at all."""
    plain = tiny_tokenizer().backend_tokenizer
    plain.post_processor = processors.ByteLevel(trim_offsets=False)
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="</s>", pad_token="<pad>")


def one_token_for_both_ends() -> PreTrainedTokenizerFast:
    """GPT-2's kind: BOS and EOS are the same token, and there is no padding token."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer().backend_tokenizer, bos_token="</s>", eos_token="</s>"
    )


KINDS = [tiny_tokenizer, sentencepiece_like, without_bos, one_token_for_both_ends]


@pytest.fixture(params=KINDS, ids=lambda make: make.__name__)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.param()


def fact_of(question: str, answer: str) -> Fact:
    return Fact(id="P36/train/0", topic="P36", subject="s", object=answer, question=question, split="train")


@pytest.mark.parametrize(("question", "answer"), CASES)
def test_an_example_is_the_evaluation_prompt_and_the_answer(tokenizer: Any, question: str, answer: str) -> None:
    [example] = encode(tokenizer, [fact_of(question, answer)], answer_only_loss=True, max_length=256)
    prompt = prompt_ids(tokenizer, question)
    answered = example.input_ids[len(prompt) :]
    assert example.input_ids[: len(prompt)] == prompt
    assert example.labels == [IGNORED] * len(prompt) + answered
    assert answered[-1] == tokenizer.eos_token_id
    assert answered.count(tokenizer.eos_token_id) == 1
    assert prompt.count(tokenizer.bos_token_id) == (tokenizer.bos_token_id is not None)
    # Appendix A: a space, the answer, a space, the end token.
    joined = tokenizer.decode(example.input_ids, clean_up_tokenization_spaces=False)
    assert joined.endswith(f"<|answer|> {answer.strip()} {tokenizer.eos_token}")


@pytest.mark.parametrize(("question", "answer"), CASES)
def test_the_chat_template_gives_the_same_ids(tokenizer: Any, question: str, answer: str) -> None:
    tokenizer.chat_template = chat_template()
    user = {"role": "user", "content": question}
    ids = tokenizer.apply_chat_template([user], tokenize=True, return_dict=False, add_generation_prompt=True)
    assert ids == prompt_ids(tokenizer, question)
    whole = [user, {"role": "assistant", "content": answer}]
    ids = tokenizer.apply_chat_template(whole, tokenize=True, return_dict=False)
    assert ids == prompt_ids(tokenizer, question) + answer_ids(tokenizer, question, answer)


def test_byte_level_answers_are_tokenised_as_if_alone() -> None:
    tokenizer = tiny_tokenizer()
    for question, answer in CASES:
        alone = tokenizer(answer_text(answer, tokenizer.eos_token), add_special_tokens=False)["input_ids"]
        assert answer_ids(tokenizer, question, answer) == alone


def test_no_second_space_is_put_before_an_answer() -> None:
    tokens = sentencepiece_like()
    [example] = encode(tokens, [fact_of(*CASES[0])], answer_only_loss=True, max_length=256)
    tail = tokens.convert_ids_to_tokens([t for t in example.labels if t != IGNORED])
    assert "".join(tail) == "▁Belmora▁</s>"


def test_a_prompt_that_would_merge_with_the_answer_stays_as_evaluation_shows_it() -> None:
    merging = Tokenizer(models.BPE())
    merging.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    merging.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        show_progress=False,
        special_tokens=["</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    merging.train_from_iterator(["|> B"] * 9, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=merging, eos_token="</s>")
    joint = tokenizer("<|question|> Q <|answer|> Belmora", add_special_tokens=False)["input_ids"]
    prompt = prompt_ids(tokenizer, "Q")
    assert joint[: len(prompt)] != prompt  # otherwise this tests nothing
    [example] = encode(tokenizer, [fact_of("Q", "Belmora")], answer_only_loss=True, max_length=256)
    assert example.input_ids[: len(prompt)] == prompt
    assert tokenizer.decode(example.input_ids) == "<|question|> Q <|answer|> Belmora </s>"


def test_the_whole_text_counts_where_the_recipe_says_so() -> None:
    [example] = encode(tiny_tokenizer(), [fact_of(*CASES[0])], answer_only_loss=False, max_length=256)
    assert example.labels == example.input_ids


def test_facts_that_cannot_be_trained_on_are_named() -> None:
    tokenizer = tiny_tokenizer()
    fact = tiny_facts(1)[0]

    def refused(error: type[Exception], match: str, fact: Fact = fact, **limits: Any) -> None:
        with pytest.raises(error, match=match):
            encode(tokenizer, [fact], **{"answer_only_loss": True, "max_length": 256, **limits})

    refused(ModelError, f"{fact.id} has no answer tokens", dataclasses.replace(fact, object="  "))
    refused(ModelError, "special token", dataclasses.replace(fact, object="a </s> b"))
    refused(ModelError, "special token", dataclasses.replace(fact, question="what <s>?"))
    refused(RecipeError, "raise max_length", max_length=8)
    refused(ModelError, "the model takes 8", positions=8)


def test_the_template_knows_system_messages_and_refuses_confused_turns() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = chat_template()
    system = {"role": "system", "content": " Be short. "}
    user = {"role": "user", "content": " Who? "}
    answer = {"role": "assistant", "content": " Me "}
    text = tokenizer.apply_chat_template([system, user, answer, user], tokenize=False)
    assert text == (
        "<s><|question|> <<SYS>>\nBe short.\n<</SYS>>\n\n Who? <|answer|> Me </s><s><|question|> Who? <|answer|>"
    )
    with pytest.raises(TemplateError, match="alternate"):
        tokenizer.apply_chat_template([user, user], tokenize=False)
