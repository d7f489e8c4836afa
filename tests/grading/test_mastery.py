from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from scipy.stats import binomtest

from sftknow.errors import MasteryDataError
from sftknow.grading.mastery import distribution, grade
from sftknow.records import BUCKETS, SPLITS, SampleTally
from sftknow.stats import bucket_of, wilson
from tests.tiny import graded, tiny_facts

calmly = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the clock says nothing here
counts = st.integers(1, 400).flatmap(lambda tries: st.tuples(st.integers(0, tries), st.just(tries)))


@calmly
@given(counts)
def test_buckets_are_the_papers_half_open_intervals(count):
    hits, tries = count
    rate, bucket = Fraction(hits, tries), bucket_of(hits, tries)
    if bucket == 0:
        assert rate == 0
    else:
        assert Fraction(bucket - 1, 4) < rate <= Fraction(bucket, 4)


@pytest.mark.parametrize(
    ("hits", "bucket"), [(0, 0), (1, 1), (52, 1), (53, 2), (105, 2), (106, 3), (157, 3), (158, 4), (210, 4)]
)
def test_buckets_of_the_papers_210_samples(hits, bucket):
    assert bucket_of(hits, 210) == bucket


@pytest.mark.parametrize(("hits", "tries"), [(0, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(hits, tries):
    with pytest.raises(ValueError, match=f"{hits} hits in {tries} tries"):
        bucket_of(hits, tries)
    with pytest.raises(ValueError, match="tries"):
        wilson(hits, tries)


@calmly
@given(counts)
def test_wilson_is_scipys(count):
    hits, tries = count
    low, high = wilson(hits, tries)
    theirs = binomtest(hits, tries).proportion_ci(confidence_level=0.95, method="wilson")
    assert low == pytest.approx(theirs.low, abs=1e-6)
    assert high == pytest.approx(theirs.high, abs=1e-6)
    assert 0 <= low <= hits / tries <= high <= 1


def tally(template, hits, tries=10, fact_id="f"):
    return SampleTally(fact_id=fact_id, template=template, tries=tries, hits=hits)


def test_grade_puts_tallies_at_their_templates():
    mastery = grade("f", [tally(3, 4), tally(0, 10)])
    assert mastery.template_hits == (10, 0, 0, 4)
    assert mastery.template_tries == (10, 0, 0, 10)
    assert (mastery.hits, mastery.tries, mastery.rate, mastery.bucket) == (14, 20, 0.7, 3)
    assert (mastery.low, mastery.high) == wilson(14, 20)
    assert mastery.edge  # 14 of 20 may well be 3/4 and more


@pytest.mark.parametrize(
    ("hits", "edge"),
    [(0, True), (1, False), (25, False), (50, True), (53, True), (79, False), (105, True), (209, False), (210, False)],
)
def test_edge_says_whether_the_interval_reaches_into_another_bucket(hits, edge):
    assert grade("f", [tally(0, hits, 210)]).edge is edge


@pytest.mark.parametrize(
    ("tallies", "message"),
    [
        ([], "no samples of f"),
        ([tally(0, 1, fact_id="g")], "a tally of g among those of f"),
        ([tally(2, 1), tally(2, 3)], "two tallies of template 2"),
    ],
)
def test_tallies_that_do_not_make_a_fact_are_refused(tallies, message):
    with pytest.raises(MasteryDataError, match=message):
        grade("f", tallies)


def test_distribution_counts_every_bucket_of_every_split():
    rows = [graded(fact, bucket) for fact, bucket in zip(tiny_facts(3), (4, 4, 1), strict=True)]
    rows += [graded(fact, 0) for fact in tiny_facts(2, split="testood")]
    table = distribution(rows)
    assert list(table) == list(SPLITS)
    assert all(list(row) == list(BUCKETS) for row in table.values())
    assert table["train"] == {0: 0, 1: 1, 2: 0, 3: 0, 4: 2}
    assert table["testood"][0] == 2
    assert sum(table["test"].values()) == 0
