import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sftknow.artifacts.stages import RunDirectory
from sftknow.errors import FactsError, RunError
from sftknow.grading.shards import grade_facts, plan_shards, read_shard
from sftknow.grading.transformers_sampler import TransformersSampler, load_sampler
from sftknow.records import ModelRef, SamplingPolicy
from tests.grading.hash_sampler import POLICY, HashSampler, work
from tests.tiny import tiny_facts


def run(folder, facts=None, **options):
    sampler = HashSampler()
    options = {"shard_size": 4, **options}
    return grade_facts(
        work() if facts is None else facts, sampler, options.pop("policy", POLICY), folder, **options
    ), sampler.asked


def files(folder):
    return sorted((folder / "shards").iterdir())


def test_facts_come_back_in_the_order_given_with_every_template_counted(tmp_path):
    given = work()
    graded, asked = run(tmp_path, given)
    assert [row.fact for row in graded] == [fact for fact, _ in given]
    assert [row.mastery.fact_id for row in graded] == [fact.id for fact, _ in given]
    assert all(row.mastery.template_tries == (4, 4, 4) for row in graded)
    assert len(asked) == 30
    assert len(files(tmp_path)) == 3


def test_a_second_run_samples_nothing(tmp_path):
    first, _ = run(tmp_path)
    before = [(path, path.stat().st_mtime_ns) for path in files(tmp_path)]
    second, asked = run(tmp_path)
    assert second == first
    assert asked == []
    assert [(path, path.stat().st_mtime_ns) for path in files(tmp_path)] == before


def test_shards_do_not_depend_on_the_order_of_facts(tmp_path):
    first, _ = run(tmp_path)
    backwards, asked = run(tmp_path, work()[::-1])
    assert asked == []
    assert backwards == first[::-1]


def test_a_missing_shard_alone_is_redone(tmp_path):
    first, asked = run(tmp_path)
    files(tmp_path)[1].unlink()
    second, again = run(tmp_path)
    assert second == first
    assert again == sorted(asked)[12:24]


@pytest.mark.parametrize("share", [0.0, 0.02, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0])
def test_a_flipped_byte_anywhere_is_redone_or_harmless(tmp_path, share):
    first, _ = run(tmp_path, keep_texts=True)
    shard = files(tmp_path)[1]
    content = bytearray(shard.read_bytes())
    content[min(int(share * len(content)), len(content) - 1)] ^= 0x55
    shard.write_bytes(content)
    assert run(tmp_path, keep_texts=True)[0] == first


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all" * 50])
def test_a_damaged_shard_is_redone(tmp_path, content):
    first, _ = run(tmp_path)
    files(tmp_path)[0].write_bytes(content)
    second, asked = run(tmp_path)
    assert second == first
    assert len(asked) == 12


def test_a_damaged_shard_is_named(tmp_path, capsys):
    run(tmp_path)
    damaged = files(tmp_path)[0]
    damaged.write_bytes(b"PAR1")
    capsys.readouterr()
    run(tmp_path)
    assert f"{damaged.name} is damaged; its 4 facts are done again" in capsys.readouterr().err


def test_two_runs_cannot_work_in_one_folder(tmp_path):
    with RunDirectory(tmp_path), pytest.raises(RunError, match="another process is working in"):
        run(tmp_path)
    assert len(run(tmp_path)[1]) == 30


class Backwards:
    """An engine: does the shards elsewhere, last first, and is cut off after some."""

    def __init__(self, stop_after=99):
        self.sampler, self.stop_after, self.closed = HashSampler(), stop_after, False

    def tallies(self, shards, policy, *, keep_texts, say):
        try:
            for count, shard in enumerate(reversed(shards)):
                if count == self.stop_after:
                    raise KeyboardInterrupt
                yield shard, self.sampler.sample(shard.requests, policy, keep_texts=keep_texts)
        finally:
            self.closed = True


def test_an_engine_gives_what_one_process_gives_and_either_goes_on_with_the_others_work(tmp_path):
    alone, _ = run(tmp_path / "alone")
    engine = Backwards(stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        grade_facts(work(), engine, POLICY, tmp_path / "both", shard_size=4)
    assert engine.closed
    graded, asked = run(tmp_path / "both")
    assert graded == alone
    assert len(asked) == 12
    other = Backwards()
    files(tmp_path / "both")[1].unlink()
    assert grade_facts(work(), other, POLICY, tmp_path / "both", shard_size=4) == alone
    assert len(other.sampler.asked) == 12
    assert [a.read_bytes() for a in files(tmp_path / "both")] == [a.read_bytes() for a in files(tmp_path / "alone")]


def test_a_shard_of_other_work_under_this_name_is_redone(tmp_path):
    first, _ = run(tmp_path / "a")
    run(tmp_path / "b", policy=SamplingPolicy(samples=4, seed=9))
    for mine, foreign in zip(files(tmp_path / "a"), files(tmp_path / "b"), strict=True):
        mine.write_bytes(foreign.read_bytes())
    second, asked = run(tmp_path / "a")
    assert second == first
    assert len(asked) == 30


@pytest.mark.parametrize(
    "change",
    [
        {"policy": SamplingPolicy(samples=5, max_new_tokens=6)},
        {"policy": SamplingPolicy(samples=4, max_new_tokens=6, seed=1)},
        {"keep_texts": True},
        {"identity": "another model"},
        {"templates": [0, 2]},
        {"facts": [(fact, [*statements[:2], "It was"]) for fact, statements in work()]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_work_never_takes_over_a_shard(tmp_path, change):
    run(tmp_path)
    _, asked = run(tmp_path, **change)
    assert len(set(asked)) == 10


def test_chosen_templates_keep_their_places(tmp_path):
    graded, asked = run(tmp_path, templates=[2, 0, 7])
    assert len(asked) == 20
    assert {row.mastery.template_tries for row in graded} == {(4, 0, 4)}
    everything, _ = run(tmp_path)
    for some, whole in zip(graded, everything, strict=True):
        hits = whole.mastery.template_hits
        assert some.mastery.template_hits == (hits[0], 0, hits[2])


def test_texts_are_kept_in_the_shards(tmp_path):
    run(tmp_path, keep_texts=True)
    shard = plan_shards(work(), POLICY, tmp_path, shard_size=4, keep_texts=True)[0]
    tallies = read_shard(shard, POLICY, keep_texts=True)
    assert tallies is not None
    assert tallies[0].texts == ("", "x", "xx", "xxx")


def test_an_error_in_the_middle_loses_no_finished_shard(tmp_path):
    class Breaks(HashSampler):
        def sample(self, requests, policy, **options):
            if self.asked:
                raise KeyboardInterrupt
            return super().sample(requests, policy, **options)

    with pytest.raises(KeyboardInterrupt):
        grade_facts(work(), Breaks(), POLICY, tmp_path, shard_size=4)
    graded, asked = run(tmp_path)
    assert len(asked) == 18
    assert graded == run(tmp_path / "other")[0]


def test_facts_that_cannot_be_graded_are_refused(tmp_path):
    fact = tiny_facts(1)[0]
    with pytest.raises(FactsError, match=f"two facts have the id {fact.id}"):
        run(tmp_path, [(fact, ["a"]), (fact, ["b"])])
    with pytest.raises(FactsError, match="has no statement to sample"):
        run(tmp_path, [(fact, [])])


KILLED = """
import os, sys, time
from pathlib import Path
from sftknow.grading.shards import grade_facts
from sftknow.artifacts.stages import RunDirectory
from tests.grading.hash_sampler import POLICY, HashSampler, work

class Slow(HashSampler):
    def sample(self, requests, policy, **options):
        if len(self.asked) >= 12:
            print("second shard", flush=True)
            time.sleep(600)
        return super().sample(requests, policy, **options)

grade_facts(work(), Slow(), POLICY, Path(sys.argv[1]), shard_size=4)
"""


def test_a_killed_run_goes_on_and_gives_what_an_undisturbed_one_gives(tmp_path):
    folder = tmp_path / "killed"
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(folder)]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "second shard\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    # What a kill in the middle of writing leaves behind.
    (folder / "shards" / f".00001-abc.parquet.{process.pid}.partial").write_bytes(b"PAR1 half")
    graded, asked = run(folder)
    assert len(asked) == 18
    undisturbed, _ = run(tmp_path / "undisturbed")
    assert graded == undisturbed
    assert [path.name for path in files(folder)] == [path.name for path in files(tmp_path / "undisturbed")]
    assert [path.read_bytes() for path in files(folder)] == [
        path.read_bytes() for path in files(tmp_path / "undisturbed")
    ]


def test_with_a_model_a_resumed_run_equals_an_undisturbed_one(tmp_path, tiny_model):
    sampler: TransformersSampler = load_sampler(ModelRef(path=str(tiny_model)), device="cpu")
    facts = [(fact, [text[:14] for text in statements]) for fact, statements in work(6)]
    whole = grade_facts(facts, sampler, POLICY, tmp_path / "whole", shard_size=2)
    grade_facts(facts[:4], sampler, POLICY, tmp_path / "part", shard_size=2)
    resumed = grade_facts(facts, sampler, POLICY, tmp_path / "part", shard_size=2)
    assert resumed == whole
    assert sum(row.mastery.tries for row in whole) == 6 * 3 * 4
