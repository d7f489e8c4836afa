"""Rows of prompt and completion: the ids that lm-eval feeds, what is learned, what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from sftknow.errors import ModelError, RecipeError
from sftknow.prompts import completion_ids, text_ids
from sftknow.records import ModelRef, TaskExample
from sftknow.training.examples import IGNORED
from sftknow.training.recipe import SFTRecipe
from sftknow.training.task_examples import encode_rows
from sftknow.training.train import fine_tune_on
from tests.evaluation.styles import STYLES
from tests.tiny import tiny_tokenizer

PROMPT = "Question: What is the capital of Arden 3?\nAnswer:"
ROWS = [TaskExample(id=f"train/{i}", prompt=PROMPT * (1 + i % 3), completion=f" It is Belmora {i}.") for i in range(9)]


def lm_eval_ids(tokenizer: Any, text: str) -> list[int]:
    """By lm-eval's own tokenization of a batch to generate from."""
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                         num_attention_heads=1, max_position_embeddings=256)  # fmt: skip
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    lm = HFLM(pretrained=LlamaForCausalLM(config), tokenizer=tokenizer)
    ids, mask = lm.tok_batch_encode([text])
    return [int(i) for i, kept in zip(ids[0], mask[0], strict=True) if kept]


@pytest.mark.parametrize("style", STYLES)
def test_prompt_of_training_is_the_prompt_of_lm_eval(style: str) -> None:
    tokenizer = STYLES[style]()
    assert text_ids(tokenizer, PROMPT) == lm_eval_ids(STYLES[style](), PROMPT)
    if tokenizer.bos_token:
        written = tokenizer.bos_token + PROMPT
        assert text_ids(tokenizer, written) == lm_eval_ids(STYLES[style](), written)


@pytest.mark.parametrize("style", STYLES)
def test_completion_ends_once_and_reads_back(style: str) -> None:
    tokenizer = STYLES[style]()
    # Only characters that every one of these small vocabularies has.
    asked = "What is the capital of Arden 3?"
    ids = completion_ids(tokenizer, asked, " Belmora 1")
    assert ids[-1] == tokenizer.eos_token_id
    assert ids.count(tokenizer.eos_token_id) == 1
    whole = tokenizer.decode([*text_ids(tokenizer, asked), *ids[:-1]], skip_special_tokens=True)
    assert whole.split("?")[-1].split() == ["Belmora", "1"]


def test_masks_and_order() -> None:
    tokenizer = tiny_tokenizer()
    found = encode_rows(tokenizer, ROWS, size=4, answer_only_loss=True, max_length=512)
    assert [example.input_ids[0] for example in found.examples] == [tokenizer.bos_token_id] * 4
    for row, example in zip(ROWS, found.examples, strict=False):
        prompt = text_ids(tokenizer, row.prompt)
        assert example.labels[: len(prompt)] == [IGNORED] * len(prompt)
        assert example.labels[len(prompt) :] == example.input_ids[len(prompt) :]
        assert tokenizer.decode(example.labels[len(prompt) :]) == f"{row.completion}</s>"
    assert found.record["rows"] == ["train/0", "train/1", "train/2", "train/3"]
    assert found.record["size"] == 4
    whole = encode_rows(tokenizer, ROWS, size=1, answer_only_loss=False, max_length=512).examples[0]
    assert whole.labels == whole.input_ids


def test_rows_that_are_too_long_are_left_out_and_counted() -> None:
    tokenizer = tiny_tokenizer()
    longest = len(text_ids(tokenizer, PROMPT)) + len(completion_ids(tokenizer, PROMPT, ROWS[0].completion))
    for limits in ({"max_length": longest}, {"max_length": 512, "positions": longest}):
        found = encode_rows(tokenizer, ROWS, size=3, answer_only_loss=True, **limits)
        assert found.record["rows"] == ["train/0", "train/3", "train/6"]
        assert found.record["rows_too_long"] == 4
        assert max(len(example.input_ids) for example in found.examples) <= longest
    every = encode_rows(tokenizer, ROWS, size=None, answer_only_loss=True, max_length=longest)
    assert (every.record["size"], every.record["rows_too_long"]) == (3, 6)
    with pytest.raises(RecipeError, match=r"4 training rows were asked for and 3 of 9 fit .* \(6 are longer\)"):
        encode_rows(tokenizer, ROWS, size=4, answer_only_loss=True, max_length=longest)
    with pytest.raises(RecipeError, match="10 training rows were asked for and 9 of 9 fit"):
        encode_rows(tokenizer, ROWS, size=10, answer_only_loss=True, max_length=512)


def test_end_token_in_the_text_is_refused() -> None:
    bad = TaskExample(id="train/7", prompt=PROMPT, completion=" yes</s>no")
    with pytest.raises(ModelError, match="row train/7 holds the tokenizer's end token"):
        encode_rows(tiny_tokenizer(), [bad], size=1, answer_only_loss=True, max_length=512)


def test_trains_and_says_what_on(tmp_path: Path, tiny_model: Path) -> None:
    recipe = SFTRecipe(learning_rate=1e-3, max_length=128)
    trained = fine_tune_on(
        ModelRef(path=str(tiny_model)),
        lambda tokenizer, positions: encode_rows(
            tokenizer, ROWS, size=8, answer_only_loss=True, max_length=recipe.max_length, positions=positions
        ),
        tmp_path / "tuned",
        recipe=recipe,
        seed=0,
        manifest={"task": {"name": "gsm8k"}},
    )
    assert trained.steps == 1
    manifest = json.loads((tmp_path / "tuned" / "sftknow.json").read_text())
    assert manifest["task"] == {"name": "gsm8k"}
    assert manifest["sft"]["rows"] == [row.id for row in ROWS[:8]]
    assert manifest["sft"]["bucket"] is None
    before = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned", dtype=torch.float32).state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
