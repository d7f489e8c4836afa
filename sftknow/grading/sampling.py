"""What a sampler is: statements in, for each statement the number of tries and hits.

Also the random streams. Every sample owns the uniforms that decide its tokens, so that which samples share a row, and
which statements share a batch, has no bearing on what is drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sftknow.records import SampleTally, SamplingPolicy

GREEDY = 1e-3
"""A sampling temperature at which nothing but the likeliest token is drawn."""


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """One statement of one fact, to be continued."""

    fact_id: str
    template: int
    """Index of the statement template within its topic, from 0."""
    prompt: str
    """The statement's text without its object, without BOS."""
    answers: tuple[str, ...]
    """Everything that counts as correct."""
    first: int = 0
    """Continuations before this one are left out: an earlier request drew them."""


class Sampler(Protocol):
    """Whatever can continue statements and say how many continuations contain an answer."""

    def sample(
        self,
        requests: Sequence[SampleRequest],
        policy: SamplingPolicy,
        *,
        keep_texts: bool = False,
        on_done: Callable[[float], None] | None = None,
    ) -> list[SampleTally]:
        """Continue every statement ``policy.samples`` times.

        Args:
            requests: statements, in any order.
            policy: samples, temperature, length and seed. There is no top-k and no top-p: the paper
                (3.3 and appendix F.1) names a temperature alone.
            keep_texts: put the continuations into the tallies. They are then drawn to their end, where otherwise a
                sample ends with its hit; the counts are the same.
            on_done: called with the number of statements finished since the last call, or with the part of one that
                the work since then amounts to; all calls together give the number of statements.

        Returns:
            One tally a request, in the order of the requests.
        """
        ...


def uniforms(request: SampleRequest, policy: SamplingPolicy) -> npt.NDArray[np.float64]:
    """The random numbers of one statement: a function of (seed, fact id, template) and of nothing else.

    Sample ``i`` draws its ``t``-th token by inverting the cumulative distribution at ``[i, t]``. Asking for fewer
    samples gives the first of them; a request that leaves out the first ones gives the others.

    Returns:
        float64 in [0, 1), shape [samples, max_new_tokens], from a Philox generator keyed by a hash.
    """
    name = f"{policy.seed}\0{request.template}\0{request.fact_id}".encode()
    key = int.from_bytes(hashlib.blake2b(name, digest_size=16, person=b"sftknow-grading").digest(), "little")
    stream = np.random.Generator(np.random.Philox(key=key))
    return stream.random((request.first + policy.samples, policy.max_new_tokens))[request.first :]
