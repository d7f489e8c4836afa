"""Grading on a real Ray cluster: the shards of one machine, byte for byte, whatever is lost on the way."""

import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from sftknow.cluster import Cluster
from sftknow.errors import ClusterError, ModelError
from sftknow.grading.ray_engine import RayEngine
from sftknow.grading.shards import plan_shards, sample_shards, unfinished
from sftknow.grading.transformers_sampler import load_sampler
from sftknow.records import ModelRef, SamplingPolicy
from tests.grading.hash_sampler import work
from tests.ray_cluster import ray_cluster

POLICY = SamplingPolicy(samples=5, max_new_tokens=6)
FACTS = [(fact, [text[:14] for text in statements]) for fact, statements in work(20)]


@dataclass(frozen=True)
class SlowLoad:
    """The real sampler on a tiny model, and a note of who began and ended what."""

    model: Path
    log: Path
    seconds: float = 0.0

    def __call__(self):
        return SlowSampler(load_sampler(ModelRef(path=str(self.model)), device="cpu"), self.log, self.seconds)


class SlowSampler:
    def __init__(self, inner, log, seconds):
        self.inner, self.log, self.seconds = inner, log, seconds

    def note(self, what, requests):
        import ray

        with self.log.open("a") as file:
            file.write(f"{what} {ray.get_runtime_context().get_node_id()} {requests[0].fact_id}\n")

    def sample(self, requests, policy, *, keep_texts=False, on_done=None):
        self.note("begin", requests)
        time.sleep(self.seconds)
        tallies = self.inner.sample(requests, policy, keep_texts=keep_texts, on_done=on_done)
        self.note("end", requests)
        return tallies


@dataclass(frozen=True)
class Missing:
    def __call__(self):
        raise ModelError("there is no model at /nowhere; copy it there")


def entries(log):
    return [line.split() for line in log.read_text().splitlines()]


def planned(folder, *, keep_texts=False):
    return plan_shards(FACTS, POLICY, folder, shard_size=2, keep_texts=keep_texts)


def content(shards):
    return [shard.path.read_bytes() for shard in shards]


@pytest.fixture(scope="module")
def one_machine(tmp_path_factory, tiny_model):
    """The shards of one machine: {whether texts are kept: their bytes}."""
    done = {}
    for keep_texts in (False, True):
        shards = planned(tmp_path_factory.mktemp("one"), keep_texts=keep_texts)
        sample_shards(shards, load_sampler(ModelRef(path=str(tiny_model)), device="cpu"), POLICY, keep_texts=keep_texts)
        done[keep_texts] = content(shards)
    return done


@pytest.fixture(scope="module")
def address():
    with ray_cluster(1, 1) as cluster:
        yield cluster.address


@pytest.mark.ray
@pytest.mark.parametrize("keep_texts", [False, True])
def test_two_nodes_give_the_bytes_of_one_machine(address, one_machine, tiny_model, tmp_path, keep_texts):
    engine = RayEngine(load=SlowLoad(tiny_model, tmp_path / "log", 0.5), cluster=Cluster(address=address))
    shards = planned(tmp_path, keep_texts=keep_texts)
    sample_shards(shards, engine, POLICY, keep_texts=keep_texts)
    assert content(shards) == one_machine[keep_texts]
    assert len({node for _, node, _ in entries(tmp_path / "log")}) == 2
    assert len(entries(tmp_path / "log")) == 2 * len(shards)


@pytest.mark.ray
def test_a_run_goes_on_under_the_other_engine(address, one_machine, tiny_model, tmp_path):
    sampler = load_sampler(ModelRef(path=str(tiny_model)), device="cpu")
    shards = planned(tmp_path)
    sample_shards(shards, sampler, POLICY, left=shards[:4])
    engine = RayEngine(load=SlowLoad(tiny_model, tmp_path / "log"), cluster=Cluster(address=address, replicas=1))
    sample_shards(shards, engine, POLICY)
    assert content(shards) == one_machine[False]
    assert len(entries(tmp_path / "log")) == 2 * (len(shards) - 4)


@pytest.mark.ray
def test_a_stopped_run_keeps_what_came_and_ends_its_workers(address, one_machine, tiny_model, tmp_path):
    shards = planned(tmp_path)
    engine = RayEngine(load=SlowLoad(tiny_model, tmp_path / "log", 1.0), cluster=Cluster(address=address))

    class Stopped(RayEngine):
        def tallies(self, *arguments, **options):
            for number, done in enumerate(engine.tallies(*arguments, **options)):
                if number == 3:
                    raise KeyboardInterrupt
                yield done

    with pytest.raises(KeyboardInterrupt):
        sample_shards(shards, Stopped(load=engine.load, cluster=engine.cluster), POLICY)
    assert len(unfinished(shards, POLICY)) == len(shards) - 3
    sample_shards(shards, engine, POLICY)
    assert content(shards) == one_machine[False]


@pytest.mark.ray
def test_a_node_without_the_model_is_one_line(address, tmp_path):
    engine = RayEngine(load=Missing(), cluster=Cluster(address=address))
    with pytest.raises(ClusterError, match=r"on node \S+: there is no model at /nowhere; copy it there"):
        sample_shards(planned(tmp_path), engine, POLICY)
    assert len(unfinished(planned(tmp_path), POLICY)) == 10


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_a_node_that_is_killed_midway_costs_nothing_but_time(one_machine, tiny_model, tmp_path, capfd):
    log = tmp_path / "log"
    shards = planned(tmp_path)
    with ray_cluster(1, 1) as cluster:
        head, other = cluster.head_node.node_id, next(iter(cluster.worker_nodes))

        class Killing(RayEngine):
            def tallies(self, *arguments, **options):
                killed = False
                for done in super().tallies(*arguments, **options):
                    yield done
                    if not killed and ["begin", other.node_id] in [entry[:2] for entry in entries(log)]:
                        cluster.remove_node(other, allow_graceful=False)
                        killed = True
                assert killed

        # Long shards, so that the node dies with one begun.
        sample_shards(
            shards, Killing(load=SlowLoad(tiny_model, log, 2.0), cluster=Cluster(address=cluster.address)), POLICY
        )
    assert content(shards) == one_machine[False]
    begun = [fact for what, _, fact in entries(log) if what == "begin"]
    on_other = {fact for what, node, fact in entries(log) if what == "begin" and node == other.node_id}
    ended_there = {fact for what, node, fact in entries(log) if what == "end" and node == other.node_id}
    lost = on_other - ended_there
    assert lost, "the node was killed while it worked"
    assert all(["end", head, fact] in entries(log) for fact in lost)
    assert len(begun) > len(shards)
    shown = capfd.readouterr().err
    assert "was lost; what it was doing is done again" in shown
    assert "raylet" not in shown
