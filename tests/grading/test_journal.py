"""A shard that is stopped in its middle goes on there, and its file is that of an undisturbed one."""

import json

import pytest

from sftknow.answers import MatchRule
from sftknow.grading import journal as journals
from sftknow.grading.journal import Journal
from sftknow.grading.rules import RuleSampler
from sftknow.grading.shards import plan_shards, sample_shards
from sftknow.grading.transformers_sampler import TransformersSampler
from sftknow.records import SamplingPolicy
from tests.grading.hash_sampler import work
from tests.grading.test_transformers_sampler import TOKENIZER, build

POLICY = SamplingPolicy(samples=4, max_new_tokens=6)


@pytest.fixture(scope="module")
def sampler():
    return TransformersSampler(build("llama"), TOKENIZER, max_rows=12)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(journals, "EVERY", 0.0)
    monkeypatch.setattr(Journal.__init__, "__kwdefaults__", {"every": 0.0})


def facts():
    return [(fact, [text[:14] for text in statements]) for fact, statements in work(6)]


def shards(folder, keep_texts=False):
    return plan_shards(facts(), POLICY, folder, shard_size=6, keep_texts=keep_texts)


class StoppedError(Exception):
    pass


def stop_after(count):
    """Stands for `Journal.add`: as if the process were killed after so many statements."""
    plain, seen = Journal.add, []

    def add(self, place, tally):
        if len(seen) == count:
            raise StoppedError
        seen.append(place)
        plain(self, place, tally)

    return add


@pytest.mark.parametrize("keep_texts", [False, True])
def test_a_shard_goes_on_where_it_was(tmp_path, sampler, monkeypatch, keep_texts):
    asks = sampler if keep_texts else RuleSampler(sampler, MatchRule(match="word"))
    (whole,) = shards(tmp_path / "whole", keep_texts)
    sample_shards([whole], asks, POLICY, keep_texts=keep_texts)
    assert [path.name for path in whole.path.parent.iterdir()] == [whole.path.name]
    (shard,) = shards(tmp_path / "cut", keep_texts)
    for count in (5, 6):
        with monkeypatch.context() as patched:
            patched.setattr(Journal, "add", stop_after(count))
            with pytest.raises(StoppedError):
                sample_shards([shard], asks, POLICY, keep_texts=keep_texts)
    journal = shard.path.with_suffix(".journal")
    assert len(journal.read_text().splitlines()) == 1 + 5 + 6
    told = []
    plain = sampler.sample

    def listen(requests, policy, *, on_done, **more):
        return plain(requests, policy, on_done=lambda n: (told.append(n), on_done(n))[1], **more)

    monkeypatch.setattr(sampler, "sample", listen)
    sample_shards([shard], asks, POLICY, keep_texts=keep_texts)
    assert told[0] == 11
    assert sum(told) == 18
    assert shard.path.read_bytes() == whole.path.read_bytes()
    assert not journal.exists()


def damaged(lines):
    yield "half a line", "\n".join(lines) + "\n" + lines[1][:-3]
    yield "not JSON", "\n".join([lines[0], lines[1], "{", *lines[2:]]) + "\n"
    yield "impossible", "\n".join([lines[0], lines[1], json.dumps([3, 99, None]), *lines[2:]]) + "\n"
    yield "no such place", "\n".join([lines[0], json.dumps([999, 1, None]), *lines[1:]]) + "\n"
    yield "of other work", "\n".join(['{"key": "other", "texts": false}', json.dumps([0, 4, None])]) + "\n"
    yield "empty", ""
    yield "bytes", "\x00\xff" * 20


@pytest.mark.parametrize("place", range(7))
def test_a_damaged_journal_costs_time_only(tmp_path, sampler, monkeypatch, place):
    (whole,) = shards(tmp_path / "whole")
    sample_shards([whole], sampler, POLICY)
    (shard,) = shards(tmp_path / "cut")
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "add", stop_after(5))
        with pytest.raises(StoppedError):
            sample_shards([shard], sampler, POLICY)
    file = shard.path.with_suffix(".journal")
    _, content = list(damaged(file.read_text().splitlines()))[place]
    file.write_text(content)
    sample_shards([shard], sampler, POLICY)
    assert shard.path.read_bytes() == whole.path.read_bytes()


def test_it_is_saved_by_time(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(journals.time, "monotonic", lambda: now[0])
    (shard,) = shards(tmp_path)
    journal = Journal(tmp_path / "x.journal", shard.key, shard.requests, POLICY, keep_texts=False, every=60.0)
    tally = journal._tally(0, 1, None)
    journal.add(0, tally)
    assert not journal.path.exists()
    now[0] = 61.0
    journal.add(1, tally)
    assert len(journal.path.read_text().splitlines()) == 3
    again = Journal(tmp_path / "x.journal", shard.key, shard.requests, POLICY, keep_texts=False)
    assert [again.known[i].hits for i in (0, 1)] == [1, 1]


def test_a_sampler_without_journals_is_asked_as_before(tmp_path):
    from tests.grading.hash_sampler import HashSampler

    (shard,) = plan_shards(work(2), POLICY, tmp_path, shard_size=2)
    sample_shards([shard], HashSampler(), POLICY)
    assert [path.name for path in shard.path.parent.iterdir()] == [shard.path.name]
