"""What has to stand before the prompt's text so that lm-eval feeds the very token ids of training.

lm-eval tokenizes texts, and its model types differ in which special tokens they add. Nearly always the answer is the
text of BOS: a text that begins with it is tokenized as it is.
"""

from __future__ import annotations

from typing import Any, Literal

from sftknow.errors import ModelError
from sftknow.prompts import prompt_ids, question_prompt

Route = Literal["local", "server-ids", "server-text"]
"""Who makes the token ids: lm-eval for a model that it runs (``hf``, ``vllm``), lm-eval for a server, or the server."""

_PROBE = "What is the capital of France?"


def needed_prefix(tokenizer: Any, *, route: Route = "local", add_bos_token: bool | None = None) -> str:
    """The text of BOS, or ``""`` where the bare prompt gives the ids of `prompt_ids`.

    Args:
        tokenizer: a transformers tokenizer.
        route: who tokenizes.
        add_bos_token: the model argument of that name, as lm-eval was given it.

    Raises:
        ModelError: neither gives the ids of training, or those do not begin with exactly one BOS.
    """
    expected = prompt_ids(tokenizer, _PROBE)
    name = tokenizer.name_or_path or "of this model"
    if tokenizer.bos_token and (expected[0] != tokenizer.bos_token_id or expected.count(tokenizer.bos_token_id) != 1):
        raise ModelError(
            f"the tokenizer {name} does not read its own BOS {tokenizer.bos_token!r} in a text as one token; mark it "
            "as special in its tokenizer.json"
        )
    for prefix in (tokenizer.bos_token or "", ""):
        if lm_eval_ids(tokenizer, prefix + question_prompt(_PROBE), route, add_bos_token) == expected:
            return prefix
    way_out = "tokenized_requests=True" if route == "server-text" else "add_bos_token=False"
    raise ModelError(
        f"lm-eval would not show the tokenizer {name} the prompt of training (with {_in_words(tokenizer)}); add "
        f"{way_out} to --model_args"
    )


def lm_eval_ids(tokenizer: Any, text: str, route: Route, add_bos_token: bool | None) -> list[int]:
    """The ids that lm-eval 0.4.13 makes of a prompt.

    ``local`` is ``tok_batch_encode`` of its ``hf`` models and ``tok_encode`` of its ``vllm`` models; ``server-ids`` is
    ``TemplateAPI.tok_encode``; with ``server-text`` the text is sent, and servers add what the tokenizer adds.
    """
    special: dict[str, bool] = {}
    if route == "server-ids":
        special = {"add_special_tokens": bool(add_bos_token)}
    elif route == "local":
        if tokenizer.bos_token and text.startswith(tokenizer.bos_token):
            special = {"add_special_tokens": False}
        elif add_bos_token is not None:
            special = {"add_special_tokens": add_bos_token}
    ids: list[int] = tokenizer(text, **special)["input_ids"]
    return ids


def _in_words(tokenizer: Any) -> str:
    return "exactly one BOS" if tokenizer.bos_token else "no special token"
