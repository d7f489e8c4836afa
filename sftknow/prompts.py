"""The question prompt: the one place that says what a model is shown in fine-tuning and in evaluation (appendix A).

``<bos><|question|> {question} <|answer|>`` and then `` {answer} <eos>``. The two tags are plain text, so the vocabulary
does not grow. The prompt ends without a space: the space belongs to the answer.

BOS is written out as text and the text is tokenised as it is, without the special tokens that a tokenizer would add by
itself: so the paper's chat template does it, and so every path (training, lm-eval's model types, a chat template, a
server) can show the same ids. Tokenizers differ in everything else: whether BOS is added, whether an end token is too,
and whether the text behind a BOS that was added splits as the text behind a BOS that was written.
"""

from __future__ import annotations

from typing import Any

CHAT = "-chat"
"""Ends the name of a model that a run asks in the model's own chat template in place of this prompt."""


def question_prompt(question: str) -> str:
    """The prompt's text without BOS, which depends on the tokenizer: see `prompt_text`."""
    return f"<|question|> {question.strip()} <|answer|>"


def prompt_text(tokenizer: Any, question: str) -> str:
    """The prompt's text with BOS in front; without one where the tokenizer has none (Qwen).

    Args:
        tokenizer: a transformers tokenizer.
        question: the question's text.
    """
    return (tokenizer.bos_token or "") + question_prompt(question)


def answer_text(answer: str, eos_token: str) -> str:
    """What follows the prompt in training: a space, the answer, a space and the end token's text (appendix A)."""
    return f" {answer.strip()} {eos_token}"


def prompt_ids(tokenizer: Any, question: str) -> list[int]:
    """Token ids of the prompt, with exactly one BOS where the tokenizer has one and none where it has none.

    Args:
        tokenizer: a transformers tokenizer.
        question: the question's text.
    """
    ids: list[int] = tokenizer(prompt_text(tokenizer, question), add_special_tokens=False)["input_ids"]
    return ids


def text_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a prompt as lm-eval feeds it: BOS where the tokenizer adds one, or where it stands in the text."""
    written = bool(tokenizer.bos_token) and prompt.startswith(tokenizer.bos_token)
    ids: list[int] = (
        tokenizer(prompt, add_special_tokens=False)["input_ids"] if written else tokenizer(prompt)["input_ids"]
    )
    return ids


def completion_ids(tokenizer: Any, prompt: str, completion: str) -> list[int]:
    """Token ids of the completion as it follows the prompt, and the end token.

    Where the prompt's ids begin those of the whole text, the completion's are the rest of them; otherwise the two are
    tokenised apart.
    """
    alone, whole = text_ids(tokenizer, prompt), text_ids(tokenizer, prompt + completion)
    if whole[: len(alone)] == alone and len(whole) > len(alone):
        return [*whole[len(alone) :], tokenizer.eos_token_id]
    apart: list[int] = tokenizer(completion, add_special_tokens=False)["input_ids"]
    return [*apart, tokenizer.eos_token_id]
