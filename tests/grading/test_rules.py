"""Hits by other rules, counted over whole continuations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sftknow.answers import DEFAULT_RULE, Matcher, MatchRule, contains_word
from sftknow.grading.rules import RuleSampler, recount, with_rule
from sftknow.grading.sampling import SampleRequest
from sftknow.grading.transformers_sampler import TransformersSampler, load_sampler
from sftknow.records import ModelRef, SampleTally, SamplingPolicy

POLICY = SamplingPolicy(samples=3, max_new_tokens=6)
TEXTS = (" Oman, in the east", " Omani waters", " the sultanate of oman.")


class Says:
    """A sampler that always says the same, and counts as samplers do: by containment."""

    def sample(self, requests: Any, policy: SamplingPolicy, *, keep_texts: bool = False, on_done: Any = None) -> Any:
        if on_done is not None:
            on_done(len(requests))
        return [
            SampleTally(
                fact_id=r.fact_id,
                template=r.template,
                tries=3,
                hits=sum(map(Matcher(r.answers).contains, TEXTS)),
                texts=TEXTS if keep_texts else None,
            )
            for r in requests
        ]


def request(*answers: str, template: int = 0) -> SampleRequest:
    return SampleRequest(fact_id="f", template=template, prompt="It lies in", answers=answers)


@pytest.mark.parametrize(
    ("rule", "hits"),
    [
        (MatchRule(), 2),
        (MatchRule(case_sensitive=False), 3),
        (MatchRule(match="word"), 1),
        (MatchRule(match="word", case_sensitive=False), 2),
        (MatchRule(match="exact"), 0),
    ],
)
def test_hits_by_every_rule(rule: MatchRule, hits: int) -> None:
    (tally,) = with_rule(Says(), rule).sample([request("Oman")], POLICY)
    assert (tally.hits, tally.tries, tally.texts) == (hits, 3, None)
    (kept,) = with_rule(Says(), rule).sample([request("Oman")], POLICY, keep_texts=True)
    assert (kept.hits, kept.texts) == (hits, TEXTS)


def test_exactly_the_answer() -> None:
    (tally,) = with_rule(Says(), MatchRule(match="exact")).sample([request("The OMANI waters")], POLICY)
    assert tally.hits == 1


def test_the_papers_rule_is_left_to_the_sampler() -> None:
    sampler = Says()
    assert with_rule(sampler, MatchRule()) is sampler
    assert isinstance(with_rule(sampler, MatchRule(match="word")), RuleSampler)


def test_progress_is_passed_on() -> None:
    done: list[int] = []
    with_rule(Says(), MatchRule(match="word")).sample([request("Oman")] * 4, POLICY, on_done=done.append)
    assert sum(done) == 4


def test_recounting_needs_the_texts() -> None:
    tally = SampleTally(fact_id="f", template=0, tries=3, hits=1)
    with pytest.raises(ValueError, match="the continuations of f were not kept"):
        list(recount([(tally, ("Oman",))], DEFAULT_RULE))
    kept = replace(tally, texts=TEXTS)
    found = list(recount([(kept, ("Oman",)), (kept, ("waters",)), (kept, ("nowhere",))], DEFAULT_RULE))
    assert [one.hits for one in found] == [2, 1, 0]


# ---- with a model: what the sampler counts while tokens come is what the whole texts hold


@pytest.fixture(scope="module")
def sampler(tiny_model: Any) -> TransformersSampler:
    return load_sampler(ModelRef(path=str(tiny_model)), device="cpu")


# A random model over a byte-level vocabulary writes letters, spaces, quotes, broken UTF-8 and accents alike.
ANSWERS = [("e",), ("a", "o"), ("is", "in"), ("'",), (" a",), ("é",), ("Arden", "n"), ("\ufffd",)]


def test_streamed_hits_are_those_of_the_whole_text(sampler: TransformersSampler) -> None:
    policy = SamplingPolicy(samples=12, max_new_tokens=12, temperature=1.5, seed=3)
    requests = [
        SampleRequest(fact_id=f"f{i}", template=t, prompt=f"Arden {i} is", answers=answers)
        for i, answers in enumerate(ANSWERS)
        for t in range(3)
    ]
    stopped = sampler.sample(requests, policy)
    kept = sampler.sample(requests, policy, keep_texts=True)
    assert [t.hits for t in stopped] == [t.hits for t in kept]
    whole = [sum(map(Matcher(r.answers).contains, t.texts or ())) for r, t in zip(requests, kept, strict=True)]
    # U+FFFD stands for half a character at the very end, which no later token will complete.
    ordinary = [i for i, r in enumerate(requests) if r.answers != ("\ufffd",)]
    assert [kept[i].hits for i in ordinary] == [whole[i] for i in ordinary]
    assert 0 < sum(whole) < 12 * len(requests)


def test_whole_words_are_never_decided_too_early(sampler: TransformersSampler) -> None:
    policy = SamplingPolicy(samples=12, max_new_tokens=12, temperature=1.5, seed=5)
    requests = [
        SampleRequest(fact_id=f"f{i}", template=0, prompt=f"Arden {i} is", answers=("a", "e", "in")) for i in range(12)
    ]
    kept = sampler.sample(requests, policy, keep_texts=True)
    by_word = with_rule(sampler, MatchRule(match="word")).sample(requests, policy)
    expected = [sum(contains_word(text, ("a", "e", "in")) for text in t.texts or ()) for t in kept]
    assert [t.hits for t in by_word] == expected
    assert sum(expected) < sum(t.hits for t in kept), "some answers stand only inside words"
