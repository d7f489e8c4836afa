"""How SFT data are graded and drawn from: options of `sftknow select`."""

from __future__ import annotations

from dataclasses import dataclass

from sftknow.options import Bucket, Count, Options, Positive


@dataclass(frozen=True, kw_only=True)
class SelectOptions(Options):
    """How often each example is asked, what counts as a short answer, and what is drawn."""

    size: Count = 240
    """Examples to draw. With 240 the paper's models did best; with 1,920 up to 14 points worse (3.4)."""
    buckets: tuple[Bucket, ...] = ()
    """Buckets to draw from; None for 1 to 3, and 4 where these hold too few."""
    limit: Count | None = None
    """Grade at most this many examples, drawn at random, of facts balanced over the relations; None for all."""
    minutes: Positive | None = None
    """Time for asking. What it does not suffice for is left out, at random; None for as long as it takes."""
    samples: Count = 10
    """Answers drawn in each form of asking."""
    shots: Count = 4
    """Solved examples of the same data before the asked one, so that its format plays no part."""
    templates: Count = 6
    """Of facts: statements asked of each, of the topic's 21."""
    temperature: Positive = 0.7
    """Sampling temperature."""
    max_new_tokens: Count = 32
    """Longest continuation of a fact's statement, and longest answer of a chat model, in tokens."""
    short: Count = 5
    """Answers of at most so many words, on one line, are sampled and matched; longer ones are scored by probability."""
    seed: int = 0
    """Seed of the answers and of the draw."""
