"""Where a model's texts end: the tokens that end one, and how long one may become."""

from __future__ import annotations

from typing import Any


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
