"""A conversation as a text, in the chat template that a tokenizer brings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from sftknow.errors import ModelError, first_line


def has_template(tokenizer: Any) -> bool:
    """Whether a model is a chat model by its tokenizer."""
    return bool(getattr(tokenizer, "chat_template", None))


def chat_text(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> str:
    """The text after which the assistant's answer begins, without the BOS that the tokenizer adds by itself.

    Raises:
        ModelError: the template refuses such messages, such as a system message.
    """
    try:
        shown: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    except (TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ModelError(f"the model's chat template refuses messages of {roles}: {first_line(error)}") from None
    return shown.removeprefix(tokenizer.bos_token or "")
