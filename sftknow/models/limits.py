"""Where a model's texts end: the tokens that end one, and how long one may become."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sftknow.errors import ModelError


def end_ids(*holders: Any) -> tuple[int, ...]:
    """Every token that ends a text, each once.

    Args:
        holders: what names them in ``eos_token_id``, as one id or a list: a tokenizer, a config, a generation config.
            Those of the first come first; None names none.
    """
    named = [getattr(holder, "eos_token_id", None) for holder in holders]
    ids = [i for each in named for i in (each if isinstance(each, (list, tuple)) else [each])]
    return tuple(dict.fromkeys(int(i) for i in ids if i is not None))


def most_positions(config: Any) -> int | None:
    """Most tokens that a model takes by its config; None where that names no limit."""
    limit: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit


def refuse_long(
    name: str, tokenizer: Any, texts: Iterable[str], *, new_tokens: int, positions: int | None, way_out: str
) -> None:
    """Refuse texts that leave no room in a model's context, before the first of them is computed.

    Args:
        name: of the model, for the message.
        tokenizer: its tokenizer; called for texts only that have more bytes than there is room for tokens.
        texts: what the model is to go on with.
        new_tokens: most tokens that follow a text.
        positions: most tokens that the model takes (`most_positions`); None refuses nothing.
        way_out: what the person can do, beside taking another model.

    Raises:
        ModelError: the message names the model, its context and the longest text.
    """
    if positions is None:
        return
    # A token has at least one byte of text, save the few that a tokenizer puts around it.
    long = sorted({text for text in texts if len(text.encode()) + 8 + new_tokens > positions})
    lengths = [len(ids) for ids in tokenizer(long)["input_ids"]] if long else [0]
    if max(lengths) + new_tokens <= positions:
        return
    longest = long[lengths.index(max(lengths))]
    shown = longest if len(longest) <= 160 else f"{longest[:120]} … {longest[-30:]}"
    count = sum(length + new_tokens > positions for length in lengths)
    more = f" with {new_tokens} new ones" if new_tokens else ""
    raise ModelError(
        f"{name} takes {positions} tokens, which {count:,} of the texts that it is to go on with exceed{more}; the "
        f"longest has {max(lengths)}: {shown!r}. {way_out}, or take a model with a longer context"
    )
