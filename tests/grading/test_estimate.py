"""What a statement takes is told from a few of them, whatever the sampler counts."""

import pytest

from sftknow.answers import MatchRule
from sftknow.grading import estimate
from sftknow.grading.estimate import seconds_each
from sftknow.grading.rules import RuleSampler
from sftknow.grading.sampling import SampleRequest
from sftknow.records import SampleTally, SamplingPolicy

POLICY = SamplingPolicy(samples=2)
ASKED = [SampleRequest(fact_id=f"{i}", template=0, prompt="x", answers=("y",)) for i in range(500)]


class Clock:
    """A sampler that takes a tenth of a second a statement, by a clock of its own, and tells parts of statements."""

    def __init__(self, *, stops):
        self.now, self.stops, self.asked = 0.0, stops, 0

    def sample(self, requests, policy, *, keep_texts=False, on_done=None):
        for _ in requests:
            self.asked += 1
            for part in (0.25, 0.75) if self.stops else (1,):
                self.now += 0.1 * part
                if on_done is not None:
                    on_done(part)
        return [
            SampleTally(fact_id=r.fact_id, template=r.template, tries=2, hits=0, texts=("a", "b")) for r in requests
        ]


@pytest.mark.parametrize("stops", [True, False])
@pytest.mark.parametrize("wrapped", [False, True])
def test_it_is_the_time_of_a_statement(monkeypatch, stops, wrapped):
    sampler = Clock(stops=stops)
    monkeypatch.setattr(estimate.time, "monotonic", lambda: sampler.now)
    asked = RuleSampler(sampler, MatchRule(match="word")) if wrapped else sampler
    assert seconds_each(asked, ASKED, POLICY, seconds=5.0) == pytest.approx(0.1)
    assert sampler.asked <= 52 if stops else sampler.asked < 200
    assert seconds_each(asked, ASKED, POLICY, seconds=5.0, statements=4) == pytest.approx(0.1)
    assert seconds_each(asked, ASKED[:3], POLICY, seconds=5.0) == pytest.approx(0.1)
