"""Token divergence of one checkpoint pair outside a run; used by `sftknow divergence`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from sftknow.facts.topics import load_topics
from sftknow.pipeline.base import local_model
from sftknow.records import ModelRef, TokenDivergence
from sftknow.storage.mastery_data import MasteryData
from sftknow.tokens.analysis import measure_divergence
from sftknow.tokens.base import measure_base
from sftknow.tokens.forward import load_for_logits
from sftknow.tokens.selection import select_prompts
from sftknow.tokens.tables import write_divergence


def diverge_pair(
    base: ModelRef,
    tuned: ModelRef,
    dataset: Path,
    *,
    k: int,
    window: int,
    prompt: Literal["statement", "question"],
    topics_file: Path | None,
    batch_size: int,
    device: str,
    out: Path | None,
) -> TokenDivergence:
    """Token divergence of one pair on the data set's bucket-4 test facts (paper, 4.1)."""
    rows = MasteryData(dataset).bucket("test", 4)
    topics = load_topics(topics_file)
    selection = select_prompts(rows, {name: topic.templates for name, topic in topics.items()})
    model, tokenizer = load_for_logits(local_model(base), device)
    view = measure_base(model, tokenizer, selection, window=window, prompt=prompt, batch_size=batch_size)
    model, tokenizer = load_for_logits(local_model(tuned), device)
    result = measure_divergence(view, model, tokenizer, k=k)
    if out is not None:
        write_divergence(out, result)
    return result.summary
