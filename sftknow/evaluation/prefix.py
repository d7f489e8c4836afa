"""What has to stand before the prompt's text so that lm-eval feeds the very token ids of training.

lm-eval tokenizes texts, and adds special tokens unless the text begins with BOS. Llama's tokenizers then add BOS by
themselves; GPT-2's has one and does not add it, so it must stand in the text.
"""

from __future__ import annotations

from typing import Any

from sftknow.errors import ModelError
from sftknow.prompts import prompt_ids, question_prompt

_PROBE = "What is the capital of France?"


def needed_prefix(tokenizer: Any, *, add_bos_token: bool | None = None) -> str:
    """``""`` where lm-eval's tokenization of the bare prompt equals `prompt_ids`, else the text of BOS.

    Args:
        tokenizer: a transformers tokenizer.
        add_bos_token: the model argument of that name, as lm-eval was given it.

    Raises:
        ModelError: neither gives the ids of training.
    """
    expected = prompt_ids(tokenizer, _PROBE)
    for prefix in ("", tokenizer.bos_token or ""):
        if _lm_eval_ids(tokenizer, prefix + question_prompt(_PROBE), add_bos_token) == expected:
            return prefix
    raise ModelError(
        f"lm-eval would not show the tokenizer {tokenizer.name_or_path} the prompt of training (exactly one BOS); "
        "add add_bos_token=True to --model_args"
    )


def _lm_eval_ids(tokenizer: Any, text: str, add_bos_token: bool | None) -> list[int]:
    """The ids of ``lm_eval.models.huggingface.HFLM.tok_batch_encode``, without its padding."""
    special: dict[str, bool] = {}
    if tokenizer.bos_token and text.startswith(tokenizer.bos_token):
        special = {"add_special_tokens": False}
    elif add_bos_token is not None:
        special = {"add_special_tokens": add_bos_token}
    ids: list[int] = tokenizer(text, **special)["input_ids"]
    return ids
