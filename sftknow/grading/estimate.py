"""How long grading takes with this model on this machine: a few statements are continued, and timed."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace

from sftknow.grading.sampling import Sampler, SampleRequest
from sftknow.records import SamplingPolicy

SECONDS = 20.0
"""How long is measured, at most; the model is loaded before."""


class _EnoughError(Exception):
    """Ends a measurement."""


def seconds_each(
    sampler: Sampler,
    requests: Sequence[SampleRequest],
    policy: SamplingPolicy,
    *,
    seconds: float = SECONDS,
    statements: float = float("inf"),
) -> float:
    """Seconds that a statement takes with all its continuations, beside as many others as the memory holds.

    Statements are begun as in a grading and left where the time is over. What was done of them then is told by the
    sampler, which counts tokens (`sftknow.grading.pace`); one that counts whole statements finishes some.

    Args:
        sampler: with its model.
        requests: to choose from, at least one. How well facts are known decides how long they take: give some from
            everywhere.
        policy: how they are sampled.
        seconds: how long to measure.
        statements: end earlier once so many are done.
    """
    order = random.Random(0).sample(range(len(requests)), len(requests))
    sampler.sample([requests[order[0]]], replace(policy, samples=1))  # readies the libraries
    done, began = 0.0, time.monotonic()

    def on_done(count: float) -> None:
        nonlocal done
        done += count
        if stops and (time.monotonic() - began >= seconds or done >= statements):
            raise _EnoughError

    stops = bool(getattr(getattr(sampler, "inner", sampler), "stops", False))
    begun, count = 0, len(order) if stops else 16
    while begun < len(order) and time.monotonic() - began < seconds and done < statements:
        some = order[begun : begun + count]
        before = done
        try:
            sampler.sample([requests[i] for i in some], policy, on_done=on_done)
        except _EnoughError:
            break
        done, begun, count = before + len(some), begun + len(some), 2 * count
    return (time.monotonic() - began) / max(done, 1e-9)
