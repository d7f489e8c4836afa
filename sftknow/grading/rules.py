"""Other ways of counting hits, over any sampler.

A sampler ends a continuation as soon as it contains an answer. Whether an answer stands there as a whole word, or is
all that stands there, can only be told from the whole text: "Oman" may go on as "Omani". Here continuations are drawn
to their end and then counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sftknow.answers import DEFAULT_RULE, Matcher, MatchRule
from sftknow.grading.sampling import Sampler, SampleRequest
from sftknow.records import SampleTally, SamplingPolicy


@dataclass(frozen=True)
class RuleSampler:
    """A sampler whose hits are those of another rule. The random streams, and so the texts, are the inner one's."""

    inner: Sampler
    rule: MatchRule

    def sample(
        self,
        requests: Sequence[SampleRequest],
        policy: SamplingPolicy,
        *,
        keep_texts: bool = False,
        on_done: Callable[[float], None] | None = None,
        **more: Any,
    ) -> list[SampleTally]:
        """See `sftknow.grading.sampling.Sampler.sample`; what else is given goes to the inner sampler."""
        drawn = self.inner.sample(requests, policy, keep_texts=True, on_done=on_done, **more)
        pairs = ((tally, request.answers) for tally, request in zip(drawn, requests, strict=True))
        counted = list(recount(pairs, self.rule))
        return counted if keep_texts else [replace(tally, texts=None) for tally in counted]


def journals(sampler: Sampler) -> tuple[bool, bool]:
    """Whether a sampler takes a journal of statements that are done, and whether it keeps texts there in any case."""
    inner = sampler.inner if isinstance(sampler, RuleSampler) else sampler
    return bool(getattr(inner, "journals", False)), inner is not sampler


def with_rule(sampler: Sampler, rule: MatchRule) -> Sampler:
    """The sampler itself for the paper's rule, which every sampler knows; else one that counts by the rule."""
    return sampler if rule == DEFAULT_RULE else RuleSampler(sampler, rule)


def recount(tallies: Iterable[tuple[SampleTally, tuple[str, ...]]], rule: MatchRule) -> Iterator[SampleTally]:
    """Count the hits of kept continuations anew.

    Args:
        tallies: with continuations, each with the answers that now count as correct.
        rule: how to compare.

    Raises:
        ValueError: a tally without continuations.
    """
    answers: tuple[str, ...] | None = None
    for tally, accepted in tallies:
        if tally.texts is None:
            raise ValueError(f"the continuations of {tally.fact_id} were not kept")
        if accepted != answers:  # a fact's statements follow each other
            answers, matcher = accepted, Matcher(accepted, rule)
        yield replace(tally, hits=sum(map(matcher.hit, tally.texts)))
