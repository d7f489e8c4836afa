"""Deciding early: how often it is wrong, what it saves, and that rounds and kills change nothing."""

from dataclasses import replace

import numpy as np
import pytest

from sftknow.errors import OptionError
from sftknow.grading.options import GradingOptions
from sftknow.grading.sampling import SampleRequest, uniforms
from sftknow.grading.sequential import PRIOR, EarlyGrading, rounds, sure
from sftknow.grading.shards import grade_facts
from sftknow.grading.transformers_sampler import TransformersSampler
from sftknow.records import SamplingPolicy
from sftknow.stats import bucket_of
from tests.grading.hash_sampler import work
from tests.grading.test_transformers_sampler import TOKENIZER, build

POLICY = SamplingPolicy(samples=10, max_new_tokens=6)


def test_rounds_cover_every_continuation_once():
    assert rounds(10) == [(0, 3), (3, 6), (6, 10)]
    for samples in range(1, 40):
        drawn = [i for first, stop in rounds(samples) for i in range(first, stop)]
        assert drawn == list(range(samples))


def test_what_is_sure():
    assert sure(63, 63, 210, 0.95), "known throughout"
    assert not sure(0, 63, 210, 0.95), "a small rate may still show itself"
    assert sure(0, 126, 210, 0.95)
    assert not sure(16, 63, 210, 0.95), "on an edge"
    assert sure(52, 210, 210, 0.95), "the whole grading"
    assert not sure(0, 126, 210, 0.99)


def outcomes(rng, rates, alike):
    """Hits of 21 statements × 10 continuations; statements of a fact differ, the more the less ``alike``."""
    a, b = (np.maximum(alike * part, 1e-6)[:, None] for part in (rates, 1 - rates))
    each = rng.beta(a, b, (len(rates), 21))
    return rng.random((len(rates), 21, 10)) < each[:, :, None]


@pytest.mark.parametrize("alike", [1.0, 8.0, 1000.0])
@pytest.mark.parametrize("spread", [PRIOR, (0.3, 0.3), (1.0, 1.0), (0.05, 2.0)])
def test_the_error_is_what_the_rule_states(alike, spread):
    rng = np.random.default_rng(1)
    tried = outcomes(rng, rng.beta(*spread, 3000), alike)
    wrong = tries = 0
    for fact in tried:
        whole = bucket_of(int(fact.sum()), 210)
        for _, stop in rounds(10):
            hits, seen = int(fact[:, :stop].sum()), 21 * stop
            if sure(hits, seen, 210, 0.95):
                wrong += bucket_of(hits, seen) != whole
                tries += seen
                break
    assert wrong / len(tried) <= 0.05
    assert tries < 0.9 * 210 * len(tried)


def test_later_rounds_draw_what_the_whole_grading_would():
    request = SampleRequest(fact_id="f", template=3, prompt="x", answers=("y",))
    later = SampleRequest(fact_id="f", template=3, prompt="x", answers=("y",), first=6)
    whole = uniforms(request, POLICY)
    assert np.array_equal(uniforms(later, SamplingPolicy(samples=4, max_new_tokens=6)), whole[6:])


@pytest.fixture(scope="module")
def sampler():
    return TransformersSampler(build("llama"), TOKENIZER)


def facts():
    objects = ("a", "ar", "e", "th", "o", "s", "Arden", "i")
    return [(replace(f, object=o), [t[:14] for t in texts]) for o, (f, texts) in zip(objects, work(8), strict=True)]


def early(folder, certainty=0.95, **options):
    return EarlyGrading(
        statements=facts(), policy=POLICY, folder=folder, certainty=certainty, templates=None, identity="",
        **{"shard_size": 3, "keep_texts": False, **options},
    )  # fmt: skip


def test_a_fact_that_is_asked_to_the_end_has_the_whole_gradings_tries(tmp_path, sampler):
    whole = {
        row.fact.id: row.mastery for row in grade_facts(facts(), sampler, POLICY, tmp_path / "whole", shard_size=3)
    }
    grading = early(tmp_path / "early")
    grading.sample(lambda left: sampler)
    found = {row.fact.id: row.mastery for row in grading.facts()}
    assert list(found) == sorted(whole)
    assert {m.tries for m in found.values()} == {18, 30}, "some are sure early and some never"
    for name, mastery in found.items():
        if mastery.tries == 30:
            assert mastery == whole[name]
        assert mastery.template_tries == (mastery.tries // 3,) * 3


def test_a_second_start_goes_on_in_its_round_and_gives_the_same(tmp_path, sampler):
    one = early(tmp_path / "one", keep_texts=True)
    one.sample(lambda left: sampler)
    expected = list(one.facts()), list(one.tallies())
    again = early(tmp_path / "one", keep_texts=True)
    again.sample(lambda left: pytest.fail("nothing is left"))
    assert (list(again.facts()), list(again.tallies())) == expected
    later = sorted((tmp_path / "one").glob("round-*/shards/*"))
    assert {path.parts[-3] for path in later} == {"round-1", "round-2", "round-3"}
    later[-1].unlink()
    later[0].write_bytes(b"PAR1")
    asked = []
    third = early(tmp_path / "one", keep_texts=True)
    third.sample(lambda left: (asked.extend(left), sampler)[1])
    assert (list(third.facts()), list(third.tallies())) == expected
    assert len(asked) == 1
    assert all(len(tally.texts) == tally.tries for tally in expected[1])


def test_what_does_not_go_together_is_refused():
    for value in (0.5, 1.0, 0.2, 1.5):
        with pytest.raises(OptionError, match="certainty should be"):
            GradingOptions(certainty=value)
    assert GradingOptions(certainty=0.95).certainty == 0.95
