"""The question prompt: the one place that says what a model is shown in fine-tuning and in evaluation (appendix A).

``<bos><|question|> {question} <|answer|>`` and then `` {answer} <eos>``. The two tags are plain text, so the vocabulary
does not grow. The prompt ends without a space: the space belongs to the answer.
"""

from __future__ import annotations

from typing import Any


def question_prompt(question: str) -> str:
    """The prompt's text without BOS, which is a token's business: see `prompt_ids`."""
    return f"<|question|> {question.strip()} <|answer|>"


def answer_text(answer: str, eos_token: str) -> str:
    """What follows the prompt in training: a space, the answer, a space and the end token's text (appendix A)."""
    return f" {answer.strip()} {eos_token}"


def prompt_ids(tokenizer: Any, question: str) -> list[int]:
    """Token ids of the prompt, with exactly one BOS where the tokenizer has one and none where it has none.

    Args:
        tokenizer: a transformers tokenizer.
        question: the question's text.
    """
    ids: list[int] = tokenizer(question_prompt(question), add_special_tokens=False)["input_ids"]
    if tokenizer.bos_token_id is None:
        return ids
    return [tokenizer.bos_token_id, *ids]
