"""A sampler without a model, and work for it: what lies around samplers is tested with these, free of torch."""

import hashlib

from sftknow.records import Fact, SampleTally, SamplingPolicy

POLICY = SamplingPolicy(samples=4, max_new_tokens=6)


FACTS = [
    Fact(id=f"P17/train/{i}", topic="P17", subject=f"Place {i}", object="Arden", question="Where?", split="train")
    for i in range(20)
]


class HashSampler:
    """Hits that are a function of the statement; remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def sample(self, requests, policy, *, keep_texts=False, on_done=None):
        self.asked += [request.fact_id for request in requests]
        tallies = []
        for request in requests:
            hits = hashlib.sha256(f"{request.prompt}{policy.seed}".encode()).digest()[0] % (policy.samples + 1)
            texts = tuple("x" * i for i in range(policy.samples)) if keep_texts else None
            tallies.append(
                SampleTally(
                    fact_id=request.fact_id, template=request.template, tries=policy.samples, hits=hits, texts=texts
                )
            )
            if on_done is not None:
                on_done(1)
        return tallies


def work(count=10):
    return [(fact, [f"{fact.subject} lies in", f"{fact.subject}, a part of", "It is"]) for fact in FACTS[:count]]
